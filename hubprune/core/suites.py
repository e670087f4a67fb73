"""Suites: benchmarks that are run together under one name, each with the number of examples that it is shown.

A suite stands for its tasks wherever lm-eval's task names are taken; what is written down are the tasks, so that a
recipe keeps its meaning when a suite changes.  Main metrics are those that lm-eval's tasks have: `acc_norm` before
`acc`, and of gsm8k `exact_match` by its first filter, `strict-match`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

DEFAULT_SUITE = "card"
SUITES: Mapping[str, Mapping[str, int]] = {
    "card": dict.fromkeys(("arc_easy", "hellaswag", "lambada_openai", "piqa", "winogrande"), 0),
    "card-width": dict.fromkeys(("arc_easy", "boolq", "lambada_openai", "lambada_standard"), 0),
    "paper": {
        "boolq": 0, "rte": 0, "openbookqa": 0, "piqa": 0, "mmlu": 5, "winogrande": 5, "gsm8k": 5, "hellaswag": 10,
        "arc_challenge": 25,
    },
    "quick": dict.fromkeys(("lambada_openai", "piqa", "winogrande"), 0),
}  # fmt: skip
"""Name of a suite -> its tasks -> examples before each question.  `paper` is table 5 of arXiv 2406.15786; `quick` has a
fifth of the requests of `card`."""


def expand(names: Sequence[str], given: Mapping[str, int] | int) -> tuple[tuple[str, ...], dict[str, int]]:
    """Put the tasks of suites in their place, and find out how many examples each task is shown.

    Args:
        names: suites and tasks, in any mixture.
        given: task -> examples, or a number for all tasks; it comes before those of the suites.

    Returns:
        Each task once, and the examples of those that are not left to lm-eval's own default.

    Raises:
        ValueError: two suites show a task different numbers of examples, and none was given.
    """
    tasks = tuple(dict.fromkeys(task for name in names for task in SUITES.get(name, (name,))))
    if isinstance(given, int):
        return tasks, dict.fromkeys(tasks, given)
    shots: dict[str, int] = {}
    clashes: list[str] = []
    for suite in (SUITES[name] for name in dict.fromkeys(names) if name in SUITES):
        clashes += [f"{task}={n}" for task, n in suite.items() if shots.setdefault(task, n) != n and task not in given]
    if clashes:
        raise ValueError(
            "the suites show different numbers of examples for the same tasks: say how many, as in --num-fewshot "
            + ",".join(clashes)
        )
    return tasks, shots | dict(given)


def describe() -> str:
    """Say what every suite is made of."""
    told = []
    for name, suite in SUITES.items():
        tasks = (f"{task} ({shots}-shot)" if shots else task for task, shots in suite.items())
        told.append(f"{name}: {', '.join(tasks)}")
    return "; ".join(told)
