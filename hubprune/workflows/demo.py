"""`hubprune demo`: a local Hub that holds the embedded models and data sets, and the ordinary `publish` against it.

Nothing here knows more than a user does: it starts `hubprune hub`, fills it with the client, and runs
`hubprune publish` with options that anybody can type.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from hubprune import demo
from hubprune.core.console import Reporter
from hubprune.core.devices import VARIABLES
from hubprune.core.errors import HubError, RecipeError
from hubprune.core.files import make_writable, work_folder
from hubprune.core.fresh import SAFE_PATH

DROPPED = 3
"""Attention sublayers that the demo drops."""
HEAL = ("--heal", "--heal-steps", "50")
HUB_STOP_SECONDS = 10


def run(base: str, *, directory: Path | None, reporter: Reporter, heal: bool = False) -> int:
    """Publish an embedded model on a local Hub and return the exit code of that publish.

    Hub, caches and work are kept in the directory; None for a place in the work folder.

    Raises:
        RecipeError: there is no such embedded model.
        HubError: the local Hub did not start.
    """
    if base not in demo.MODELS:
        raise RecipeError(f"There is no embedded model {base!r}.", hint=f"Embedded: {', '.join(demo.MODELS)}.")
    place = (directory or work_folder() / "demo").resolve()
    make_writable(place)
    with _local_hub(place / "hub") as address:
        # A client's cache that remembers another Hub at the same address would make uploads fail.
        caches = {"HF_HOME": str(place / "hf"), "HUBPRUNE_HOME": str(place / "work")}
        # Left out is what would send the clients offline, to other caches, or to loopback through a proxy.
        passed_over = ("HF_", "HUGGING", "TRANSFORMERS_", *VARIABLES)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(passed_over)}
        own = {"NO_PROXY": "127.0.0.1,localhost", "TOKENIZERS_PARALLELISM": "false"}
        environment = {**kept, **own, **address, **caches}
        reporter.note(f"local Hub at {address['HF_ENDPOINT']}, kept in {place}")
        python = [sys.executable, SAFE_PATH, "-m"]
        if subprocess.run([*python, "hubprune.demo.fill"], env=environment, check=False).returncode:
            raise HubError("The local Hub could not be filled.", hint="The message above says why.")
        command = [*publish_options(base), *(HEAL if heal else [])]
        reporter.note(f"$ hubprune {shlex.join(command)}")
        code = subprocess.run([*python, "hubprune", *command], env=environment, check=False).returncode
    if not code:
        cards = sorted((place / "work" / "checkpoints").glob("*/README.md"), key=lambda path: path.stat().st_mtime)
        reporter.note("")
        if cards:
            reporter.note(f"The card and all published files: {cards[-1].parent}")
            reporter.note(
                f"To see it as the Hub shows it: hubprune card {shlex.quote(str(cards[-1].parent))} --preview"
            )
        for card in sorted((place / "work" / "siblings").glob("*/README.md")) if heal else ():
            reporter.note(f"The same of the healed model: {card.parent}")
        again = shlex.join(["hubprune", "hub", "--dir", str(place / "hub")])
        reporter.note(f"The demo's Hub has stopped, so the address above is gone; it starts again with: {again}")
        reporter.note("On a real model: hf auth login && hubprune publish meta-llama/Llama-3.2-3B --attn-drop 3")
    return code


def publish_options(base: str) -> list[str]:
    """Return the command line that the demo runs, without the program's name."""
    tasks = ",".join((*demo.TASK_NAMES, demo.WRITTEN_TASK))
    return [
        *("publish", demo.repo_id(base), "--attn-drop", str(DROPPED)),
        *("--calibration", str(demo.MIX), "--include-path", str(demo.TASKS), "--tasks", tasks),
        *("--prompts", str(demo.PROMPTS), "--batch-size", "32", "--score-batch-size", "32"),
    ]


@contextmanager
def _local_hub(directory: Path) -> Iterator[Mapping[str, str]]:
    """Run `hubprune hub` while the block runs, and yield the two variables that it prints first."""
    command = [sys.executable, SAFE_PATH, "-m", "hubprune", "hub", "--dir", str(directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            lines = [server.stdout.readline().strip() for _ in range(2)]
            if not all("=" in line for line in lines):
                raise HubError("The local Hub did not start.", hint="Its own message is above.")
            yield dict(line.split("=", 1) for line in lines)
        finally:
            server.terminate()
            try:
                server.wait(HUB_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                server.kill()
