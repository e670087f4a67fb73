"""Count how nearly valid files of every kind are read: `python tests/fuzz 2000`."""

from __future__ import annotations

import argparse
import sys
from collections import Counter

from fuzz_kinds import KINDS
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from trying import READ, REFUSED, attempt, files_of


def count(name: str, examples: int) -> Counter[str]:
    """Read so many files of a kind; return how often each end was met."""
    ends: Counter[str] = Counter()

    @settings(
        max_examples=examples, phases=[Phase.generate], deadline=None, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(data=st.data())
    def one(data):
        ends[attempt(KINDS[name], data.draw(files_of(KINDS[name])))] += 1

    one()
    return ends


def main() -> int:
    """Print a table of all kinds."""
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("examples", nargs="?", type=int, default=1000, help="files of each kind")
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=list(KINDS), metavar="KIND")
    parser.add_argument("--show", type=int, default=5, help="different escapes of a kind that are shown")
    given_options = parser.parse_args()
    failed = False
    for name in given_options.kinds:
        ends = count(name, given_options.examples)
        escaped = Counter({end: times for end, times in ends.items() if end not in (READ, REFUSED)})
        failed = failed or bool(escaped)
        known = f"{ends[READ]:7,} read  {ends[REFUSED]:7,} refused"
        print(f"{name:24} {ends.total():7,} files  {known}  {escaped.total():6,} tracebacks", flush=True)
        for found, times in escaped.most_common(given_options.show):
            print(f"    {times:5} x {found[:220]}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
