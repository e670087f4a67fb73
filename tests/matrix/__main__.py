"""Check published folders with many versions of transformers: `python tests/matrix [VERSION ...]`."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from environments import python_of, released
from kinds import KINDS, NEWEST, VERSIONS, Kind, all_versions
from rich.console import Console
from table import Result, any_failed, show

INSIDE = Path(__file__).resolve().with_name("inside.py")
LIMIT_SECONDS = 3600
TOKENIZERS = "tokenizers"
"""Stands for all bases that are there for their tokenizer."""
DIED = "the process that runs the checks"
"""Check of the result that stands for all that a process did not get to."""


def parser() -> argparse.ArgumentParser:
    """Return the options."""
    found = argparse.ArgumentParser(prog="make matrix", description=__doc__)
    found.add_argument(
        "versions", nargs="*", type=version_of, default=list(all_versions()), metavar="VERSION",
        help="versions of transformers, or oldest, newest (of those known here), released (on PyPI); all by default",
    )  # fmt: skip
    labels = [*(kind.label for kind in KINDS), TOKENIZERS]
    found.add_argument("--families", nargs="+", choices=labels, help="bases to prune")
    found.add_argument("--checks", nargs="+", metavar="CHECK", help="names of rows, or parts of names")
    found.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="versions at a time")
    found.add_argument("--brief", action="store_true", help="leave out the tables of bases with which all is well")
    found.add_argument("--json", type=Path, metavar="FILE", help="write every result here too")
    return found


def version_of(word: str) -> str:
    """Return the version that a word on the command line means."""
    return released() if word == "released" else {"oldest": VERSIONS[0], "newest": NEWEST}.get(word, word)


def selected(kinds: Sequence[Kind], version: str, families: Sequence[str] | None) -> list[str]:
    """Return the labels of the kinds that a version reads, of those asked for."""
    return [kind.label for kind in kinds if kind.runs_on(version) and _is_asked_for(kind, families)]


def _is_asked_for(kind: Kind, families: Sequence[str] | None) -> bool:
    return not families or kind.label in families or (kind.words is not None and TOKENIZERS in families)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for and print the tables; 1 if something failed."""
    options = parser().parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 160)
    with tempfile.TemporaryDirectory(prefix="hubprune-matrix-") as work:
        os.environ["HF_MODULES_CACHE"] = f"{work}/modules"  # before transformers is imported, which reads it
        from folders import make_folders
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        wanted = {label for version in options.versions for label in selected(KINDS, version, options.families)}
        cases = make_folders([kind for kind in KINDS if kind.label in wanted], Path(work))
        run = partial(run_version, cases, options.families, options.checks or [], console)
        with ThreadPoolExecutor(options.jobs) as pool:
            results = [result for found in pool.map(run, options.versions) for result in found]
    if options.json:
        options.json.write_text(json.dumps([result.as_json() for result in results], indent=1) + "\n")
    show(results, options.versions, console, brief=options.brief)
    failed = any_failed(results) or not results
    console.print(f"{len(results)} results, {sum(r.status == 'FAIL' for r in results)} failed.", highlight=False)
    return int(failed)


def run_version(
    cases: Path, families: Sequence[str] | None, checks: Sequence[str], console: Console, version: str
) -> list[Result]:
    """Run the checks with one version of transformers, in a process of its own."""
    labels = selected(KINDS, version, families)
    if not labels:
        return []
    python = python_of(version, say=console.print)
    mine = cases.with_name(f"cases-{version}.json")
    mine.write_text(json.dumps([case for case in json.loads(cases.read_text()) if case["kind"] in labels]))
    begin = time.monotonic()
    results = list(results_of(python, mine, checks, version))
    done = f"transformers {version}: {len(results)} results in {time.monotonic() - begin:.0f} s"
    console.print(done, highlight=False)
    return results


def results_of(python: Path, cases: Path, checks: Sequence[str], version: str) -> Iterator[Result]:
    """Run `inside.py` and read what it says; that it died, or ran another version, is a failure of its own."""
    code, out, err = _run([str(python), str(INSIDE), str(cases), *checks], cases.parent)
    lines = [json.loads(line) for line in out.splitlines() if line.endswith("}")]
    if lines and lines[0]["transformers"] != version:
        yield Result(version, "all", DIED, "", "FAIL", f"it has transformers {lines[0]['transformers']}")
    for line in lines[1:]:
        yield Result(version=version, **line)
    if code:
        last = (err.strip().splitlines() or ["it ended without a word"])[-1]
        yield Result(version, "all", DIED, "", "FAIL", f"exit status {code}: {last}")


def _run(command: list[str], folder: Path) -> tuple[int, str, str]:
    """Run a command with files for its output, which are whole up to the last line even where it takes too long."""
    with tempfile.TemporaryDirectory(dir=folder) as home:
        out, err = Path(home) / "out", Path(home) / "err"
        try:
            with out.open("w") as stdout, err.open("w") as stderr:
                variables = environment(home)
                code = subprocess.run(
                    command, env=variables, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, check=False,
                    timeout=LIMIT_SECONDS,
                ).returncode  # fmt: skip
        except subprocess.TimeoutExpired as error:
            return 124, out.read_text(), str(error)
        return code, out.read_text(), err.read_text()


def environment(home: str) -> dict[str, str]:
    """Return the variables under which checks run: no network, one thread, and a cache of modules to throw away."""
    ours = {"HF_HOME": home, "HF_MODULES_CACHE": f"{home}/modules", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "TRANSFORMERS_CACHE")}
    return {**kept, **ours, "TOKENIZERS_PARALLELISM": "false"}


if __name__ == "__main__":
    sys.exit(main())
