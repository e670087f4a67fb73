"""Suites of benchmarks: which tasks a name stands for, how many examples each is shown, and what that costs.

A suite stands for its tasks wherever lm-eval's task names are taken; what is written down are the tasks, so that a
recipe keeps its meaning when a suite changes.

Pruned models keep what is asked by choices longer than what they have to write themselves (arXiv 2602.01997), so the
default has one task of short answers beside the five of log-likelihoods.  `generation` is what lm-eval 0.4.13 has of
written answers that are scored without running anything: grade-school sums, instructions that a program checks,
what a passage said before and what the model remembers, and the last word of a passage.  Its tasks of code are none of
these: humaneval, mbpp and cruxeval run what the model wrote, which is never done here, and code2text writes every
comment ten times over, by beam search.  triviaqa and drop ask 5 and 3 times as many questions as nq_open and can be
named; coqa cannot be loaded with transformers 5.

`long` is Table 11 of arXiv 2406.15786: which of 77 intents a bank's customer has, after 1 to 5 examples of each, in
prompts of 2k to 14k tokens.  The answer is the likeliest of all 77, since then the examples are read once for all rows
and all answers; `exact_match` says beside it whether greedy decoding writes the right one, which is what the paper
counts.  Of lm-eval's own long tasks, those of longbench and scrolls can be named; they bring prompts of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

DEFAULT_SUITE = "card"
LIKELIHOODS = dict.fromkeys(("arc_easy", "hellaswag", "lambada_openai", "piqa", "winogrande"), 0)
SUITES: Mapping[str, Mapping[str, int]] = {
    "card": {**LIKELIHOODS, "nq_open": 5},
    "card5": LIKELIHOODS,
    "card-width": dict.fromkeys(("arc_easy", "boolq", "lambada_openai", "lambada_standard"), 0),
    "paper": {
        "boolq": 0, "rte": 0, "openbookqa": 0, "piqa": 0, "mmlu": 5, "winogrande": 5, "gsm8k": 5, "hellaswag": 10,
        "arc_challenge": 25,
    },
    "quick": dict.fromkeys(("lambada_openai", "piqa", "winogrande"), 0),
    "long": {f"banking77_{shots}shot": 77 * shots for shots in range(1, 6)},
    "generation": {"gsm8k": 5, "ifeval": 0, "squad_completion": 0, "nq_open": 5, "lambada_openai": 0},
}  # fmt: skip
"""Name of a suite -> its tasks -> examples before each question.  `paper` is table 5 of arXiv 2406.15786, `card5` what
`card` was before it had a task of written answers; `quick` has a fifth of its requests."""


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
    """Say what every suite is made of, and what it costs."""
    told = []
    for name, suite in SUITES.items():
        tasks = (f"{task} ({shots}-shot)" if shots else task for task, shots in suite.items())
        told.append(f"{name}: {', '.join(tasks)} [{cost_of(tuple(suite), suite).told}]")
    return "; ".join(told)


# ---- what they cost ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Questions:
    """What one model is asked in a task.  Tokens are counted at 4.3 characters each."""

    documents: int
    requests: int
    """Of one document, rounded: one for each choice."""
    tokens: int
    """Of one document with all its endings, whose beginning is read once."""
    example: int
    """Tokens of a document where it is shown as an example."""
    new_tokens: int = 0
    """Tokens that the model may write for one document, by the task's own limit; most answers end long before it."""
    same_examples: bool = False
    """Whether all documents follow the same examples, which are read once."""


QUESTIONS: Mapping[str, Questions] = {
    "arc_challenge": Questions(1172, 4, 65, 40),
    "arc_easy": Questions(2376, 4, 55, 35),
    **{f"banking77_{shots}shot": Questions(100, 77, 500, 28, same_examples=True) for shots in range(1, 6)},
    "boolq": Questions(3270, 2, 150, 150),
    "gsm8k": Questions(1319, 1, 130, 230, 256),
    "hellaswag": Questions(10042, 4, 180, 100),
    "ifeval": Questions(541, 1, 50, 50, 1280),
    "lambada_openai": Questions(5153, 1, 75, 75),
    "lambada_standard": Questions(5153, 1, 85, 85),
    "mmlu": Questions(14042, 4, 100, 100),
    "nq_open": Questions(3610, 1, 19, 17, 256),
    "openbookqa": Questions(500, 4, 31, 20),
    "piqa": Questions(1838, 2, 60, 45),
    "rte": Questions(277, 2, 85, 85),
    "squad_completion": Questions(2984, 1, 170, 175, 256),
    "triviaqa": Questions(17944, 1, 22, 28, 256),
    "winogrande": Questions(1267, 2, 47, 25),
}
GUESSED = Questions(2000, 2, 100, 60)
"""For a task that is not named."""


@dataclass(frozen=True)
class Cost:
    """What one model is asked in several tasks."""

    requests: int
    read: int
    """Tokens."""
    written: int
    """Tokens at most."""

    @property
    def told(self) -> str:
        """The cost in round figures."""
        read = f"{_round(self.requests)} requests, {_round(self.read)} tokens"
        return f"{read}, at most {_round(self.written)} written" if self.written else read


def cost_of(tasks: Sequence[str], shots: Mapping[str, int], *, limit: int | None = None) -> Cost:
    """Count what one model is asked in some tasks, by the number of their documents; `limit` of each task at most."""
    requests = read = written = 0
    for task in tasks:
        asked = QUESTIONS.get(task, GUESSED)
        documents = min(asked.documents, limit or asked.documents)
        requests += documents * asked.requests
        read += documents * asked.tokens
        read += (1 if asked.same_examples else documents) * shots.get(task, 0) * asked.example
        written += documents * asked.new_tokens
    return Cost(requests, read, written)


def _round(number: int) -> str:
    """Write a number in two digits or so: 950, 65 k, 2.9 M."""
    if number < 1000:
        return str(number)
    return f"{number / 1000:.0f} k" if number < 10**6 else f"{number / 10**6:.1f} M"
