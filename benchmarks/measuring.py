"""What the benchmarks share: measured child processes, a warm or a cold page cache, and the table at the end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

QUIET = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
READ_BYTES = 2**20


@dataclass(frozen=True)
class Finished:
    """A child process that has ended."""

    answer: dict[str, Any]
    """The JSON object that it printed last; empty where a signal ended it."""
    peak_bytes: int
    """Its maximum resident set size, from `resource`."""


def run_child(arguments: Sequence[object], *, enter: Callable[[], object] | None = None) -> Finished:
    """Run a Python script on one thread and take the JSON object that it prints last.

    Args:
        arguments: the script and its arguments.
        enter: called in the child before Python starts, for instance to join a control group.
    """
    command = [sys.executable, *map(str, arguments)]
    environment = {**os.environ, **QUIET, **ONE_THREAD}
    child = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, preexec_fn=enter)
    assert child.stdout is not None
    with child.stdout as stdout:
        lines = stdout.read().splitlines()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode > 0:
        sys.exit(f"{' '.join(command)} failed with exit code {child.returncode}")
    answer = json.loads(lines[-1]) if child.returncode == 0 else {}
    return Finished(answer, usage.ru_maxrss * 1024)


def warm(folder: Path) -> None:
    """Read all files below a folder, so that they are in the page cache."""
    for path in _files(folder):
        with path.open("rb", buffering=0) as file:
            while file.read(READ_BYTES):
                pass


def cool(folder: Path) -> None:
    """Drop all files below a folder from the page cache; only what is on disk can be dropped."""
    os.sync()
    for path in _files(folder):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@dataclass(frozen=True)
class Bound:
    """What was measured against a bound, in words, and whether it holds."""

    text: str
    holds: bool


def at_most(value: float, limit: float) -> Bound:
    """Check an upper bound."""
    return Bound(f"{value:.3g} (at most {limit:g})", value <= limit)


def at_least(value: float, limit: float) -> Bound:
    """Check a lower bound."""
    return Bound(f"{value:.3g} (at least {limit:g})", value >= limit)


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    what: str
    values: tuple[str, ...] = ()
    """One figure per column, from the first."""
    bound: Bound | None = None


def report(columns: Sequence[str], rows: Sequence[Row]) -> int:
    """Print the table, and return the exit code: 1 where a bound is missed."""
    width = max(len(row.what) for row in rows)
    print(" " * width + "".join(f"{name:>20}" for name in columns))
    for row in rows:
        figures = "".join(f"{value:>20}" for value in row.values).ljust(20 * len(columns))
        verdict = f"{row.bound.text}{'' if row.bound.holds else '  MISSED'}" if row.bound else ""
        print(f"{row.what:<{width}}{figures}   {verdict}".rstrip())
    return 0 if all(row.bound is None or row.bound.holds for row in rows) else 1
