"""Measure what `hubprune --help` costs in CPU seconds, and fail where it is more than a person would wait for.

    python benchmarks/cli_startup.py

Importing torch and transformers takes 5 to 6 s, so a single heavy import at the top of a module shows at once.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys

LIMIT_SECONDS = 0.5
RUNS = 5


def children_seconds() -> float:
    """CPU seconds, user and system, of all child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def help_seconds() -> float:
    """CPU seconds of one `hubprune --help`."""
    before = children_seconds()
    subprocess.run([sys.executable, "-m", "hubprune", "--help"], check=True, stdout=subprocess.DEVNULL)
    return children_seconds() - before


def main() -> int:
    help_seconds()  # the first run may write bytecode
    seconds = [help_seconds() for _ in range(RUNS)]
    median = statistics.median(seconds)
    print(f"hubprune --help: {median:.3f} CPU s (median of {RUNS}, {min(seconds):.3f} to {max(seconds):.3f})")
    if median > LIMIT_SECONDS:
        print(
            f"That is over {LIMIT_SECONDS} s. Which module imports torch, transformers, datasets or lm_eval at its top?"
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
