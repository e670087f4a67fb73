"""Run checks with the transformers of this interpreter; one line of JSON on stdout per result.

Called as `python inside.py CASES.json [CHECK ...]`; nothing else of this folder but cases and checks is imported.
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import checks_reading
import checks_running
import checks_training
import transformers
from cases import CHECKS, Case, judge

MODULES = (checks_reading, checks_running, checks_training)


def read_cases(path: Path) -> list[Case]:
    """Read the cases that `folders.py` wrote."""
    names = {field.name for field in fields(Case)}
    return [
        Case(**{key: value for key, value in case.items() if key in names}) for case in json.loads(path.read_text())
    ]


def matching(words: list[str]) -> list[str]:
    """Return the checks whose names contain one of some words; all where there is none."""
    found = [name for name in CHECKS if not words or any(word.lower() in name.lower() for word in words)]
    if not found:
        raise SystemExit(f"No check is called like {', '.join(words)}. There are: {'; '.join(CHECKS)}.")
    return found


def results(cases: list[Case], names: list[str]) -> Iterator[dict[str, object]]:
    """Run checks on all cases that they take."""
    for name in matching(names):
        for case in filter(CHECKS[name].takes, cases):
            begin = time.monotonic()
            status, message = judge(CHECKS[name], case)
            seconds = round(time.monotonic() - begin, 3)
            yield {
                "kind": case.kind, "check": name, "drops": case.drops, "status": status, "message": message,
                "seconds": seconds,
            }  # fmt: skip


def main() -> None:
    """Keep stdout for results: libraries print there too."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    print(json.dumps({"transformers": transformers.__version__}), file=out, flush=True)
    for result in results(read_cases(Path(sys.argv[1])), sys.argv[2:]):
        print(json.dumps(result), file=out, flush=True)


if __name__ == "__main__":
    main()
