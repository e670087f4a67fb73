"""Time a publish of what is published already, and one that changes the card alone, against a full publish.

    python benchmarks/republish.py

The embedded model goes to a local Hub by the ordinary command.  For the two others torch cannot be imported at all: a
run that tried to would fail here.  Times are CPU seconds of the command, so that the Hub's own work is no part of them.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from measuring import Row, at_most, report

from hubprune.localhub import running_hub
from hubprune.workflows.demo import publish_options

BASE = "tiny-llama"
RUNS = 3
LONGEST_SHARE = 0.25
"""Of the time of a full publish of the smallest model there is, whose stages take seconds; of a real one hours."""


@dataclass(frozen=True)
class Took:
    """What a command cost."""

    cpu: float
    """Seconds of it and of its children, user and system."""
    wall: float
    """Seconds."""


def timed(arguments: Sequence[str], environment: Mapping[str, str], *, says: str = "") -> Took:
    """Run `hubprune` with some arguments, and make sure of what it says."""
    before, start = _children_seconds(), time.monotonic()
    command = [sys.executable, "-m", "hubprune", *arguments]
    done = subprocess.run(command, env=dict(environment), capture_output=True, text=True, check=False)
    took = Took(_children_seconds() - before, time.monotonic() - start)
    if done.returncode or says not in done.stderr:
        sys.exit(f"hubprune {' '.join(arguments)} should have said {says!r}:\n{done.stdout}{done.stderr}")
    return took


def _children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def without_torch(folder: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """Return variables with which whoever imports torch fails."""
    (folder / "torch").mkdir(parents=True)
    (folder / "torch" / "__init__.py").write_text('raise AssertionError("torch was imported")\n')
    places = [str(folder), *filter(None, [environment.get("PYTHONPATH")])]
    return {**environment, "PYTHONPATH": os.pathsep.join(places)}


def measure(place: Path, environment: Mapping[str, str]) -> dict[str, list[Took]]:
    """Run everything on a Hub that holds the embedded models and data."""
    subprocess.run([sys.executable, "-m", "hubprune.demo.fill"], env=dict(environment), check=True)
    command, bare = publish_options(BASE), without_torch(place / "without", environment)
    seen = {"full publish": [timed(command, environment, says="committed: ")]}
    timed(["--version"], bare)  # the first run may write bytecode
    seen["hubprune --version"] = [timed(["--version"], bare) for _ in range(RUNS)]
    seen["up to date"] = [timed(command, bare, says="up to date: ") for _ in range(RUNS)]
    notes = place / "notes.md"
    seen["card only"] = []
    for number in range(RUNS):
        notes.write_text(f"Words, version {number}.\n", encoding="utf-8")
        said = "changed since the last publish: card: "
        seen["card only"].append(timed([*command, "--notes", str(notes)], bare, says=said))
    return seen


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="hubprune-republish-") as name, running_hub(Path(name, "hub")) as hub:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUBPRUNE_"))}
        caches = {"HF_HOME": str(Path(name, "hf")), "HUBPRUNE_HOME": str(Path(name, "work"))}
        address = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": hub.token, "TOKENIZERS_PARALLELISM": "false"}
        seen = measure(Path(name), {**kept, **caches, **address})
    full = seen["full publish"][0].cpu
    rows = []
    for what, runs in seen.items():
        cpu, wall = statistics.median(t.cpu for t in runs), statistics.median(t.wall for t in runs)
        bound = at_most(cpu / full, LONGEST_SHARE) if what in ("up to date", "card only") else None
        rows.append(Row(what, (f"{cpu:.2f}", f"{wall:.2f}", f"{cpu / full:.3f}"), bound))
    return report(("CPU s", "wall s", "of the full publish"), rows)


if __name__ == "__main__":
    sys.exit(main())
