"""What a model got on each document, read from lm-eval's samples.  Pure: no model, no network."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hubprune.core.artifacts import PairedComparison, TaskComparison, perplexity_of
from hubprune.evaluation.compare import Scale, Value, compare_pairs, pair

__all__ = ["Answers", "Document", "compare_answers", "fits", "read_answers"]

Document = tuple[str, int, str]
"""Task, id and hash of a document."""
Answers = Mapping[Document, Value]


def read_answers(samples: Sequence[Mapping[str, Any]], *, task: str, metric: str, filter_name: str) -> Answers:
    """Read the value of a metric for every document of a task that has one; nothing where one is no finite number."""
    own = (s for s in samples if metric in s and s.get("filter", filter_name) == filter_name)
    found = {(task, int(s["doc_id"]), str(s["doc_hash"])): _value(s[metric]) for s in own}
    known = {document: value for document, value in found.items() if value is not None}
    return known if len(known) == len(found) else {}


def _value(value: Any) -> Value | None:
    """Take a number, or a sum with the words or bytes that it is over."""
    parts = value if isinstance(value, (list, tuple)) else [value]
    try:
        numbers = [float(part) for part in parts]
    except (TypeError, ValueError):
        return None
    if not all(map(math.isfinite, numbers)):
        return None
    if len(numbers) == 2:
        return (numbers[0], numbers[1]) if numbers[1] > 0 else None
    return numbers[0] if not isinstance(value, (list, tuple)) else None


def compare_answers(base: Sequence[Answers], pruned: Sequence[Answers], row: TaskComparison) -> PairedComparison | None:
    """Compare what both models got on the documents of a row.

    Nothing is taken for granted of how lm-eval makes one number of many: only a way that gives both models' own values
    from the documents is used.

    Args:
        base: values of the documents of each task of the row, of which a group has several.
        pruned: the same.
        row: with the values that lm-eval gives.

    Returns:
        None where no such way is known, as for the F1 of a whole corpus.
    """
    tasks = list(zip(base, pruned, strict=True))
    if any(not ours or ours.keys() != theirs.keys() for ours, theirs in tasks):
        return None
    for scale, ours, theirs in _ways(base, pruned):
        if fits(ours, scale=scale, expected=row.base.value) and fits(theirs, scale=scale, expected=row.pruned.value):
            pairs = [pair(one, other, of=row.task) for one, other in zip(ours, theirs, strict=True)]
            return compare_pairs(pairs, scale=scale, chance=row.chance)
    return None


def _ways(
    base: Sequence[Answers], pruned: Sequence[Answers]
) -> Iterator[tuple[Scale, Sequence[Answers], Sequence[Answers]]]:
    """Yield ways to make one number: over all documents at once, or as the mean over tasks."""
    ours, theirs = ([{d: v for answers in side for d, v in answers.items()}] for side in (base, pruned))
    weighted = isinstance(next(iter(ours[0].values())), tuple)
    yield from ((scale, ours, theirs) for scale in (WEIGHTED if weighted else PLAIN))
    if not weighted and len(base) > 1:
        yield "mean", base, pruned


PLAIN: tuple[Scale, ...] = ("mean", "perplexity")
WEIGHTED: tuple[Scale, ...] = ("perplexity", "bits")


def fits(tasks: Sequence[Answers], *, scale: Scale, expected: float) -> bool:
    """Tell whether a number is what a scale makes of the values of all documents, every task counting the same."""
    means = [_mean(list(answers.values())) for answers in tasks]
    nats = -sum(means) / len(means)
    value = {"mean": -nats, "perplexity": perplexity_of(nats), "bits": nats / math.log(2)}[scale]
    return math.isclose(value, expected, rel_tol=1e-6, abs_tol=1e-9)


def _mean(values: Sequence[Value]) -> float:
    sums = [value if isinstance(value, tuple) else (value, 1.0) for value in values]
    return math.fsum(total for total, _ in sums) / math.fsum(length for _, length in sums)
