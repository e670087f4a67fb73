"""Changes against the base with paired standard errors; pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean, stdev

from hubprune.artifacts import BenchmarkAnswers, Change, PerplexityAnswers, SweepTask, TaskAnswers
from hubprune.errors import EvaluationError

LARGEST_NATS = 50.0
"""A perplexity that rose by more than the exponential of this is told as that."""


def main_metrics(answers: BenchmarkAnswers) -> tuple[TaskAnswers, ...]:
    """Return the first metric of each task."""
    seen: dict[str, TaskAnswers] = {}
    for row in answers.tasks:
        seen.setdefault(row.task, row)
    return tuple(seen.values())


def mean_percent(answers: BenchmarkAnswers) -> float | None:
    """Return the mean of the main metrics that are shares, in percent; None where there is none."""
    shares = [row.result.value for row in main_metrics(answers) if row.is_share]
    return 100 * mean(shares) if shares else None


def mean_chance(answers: BenchmarkAnswers) -> float | None:
    """Return what guessing gets in the same mean, in percent; None where a task has no such value."""
    values = [row.chance for row in main_metrics(answers) if row.is_share]
    known = [value for value in values if value is not None]
    return 100 * mean(known) if known and len(known) == len(values) else None


def compare_tasks(point: BenchmarkAnswers, base: BenchmarkAnswers) -> tuple[SweepTask, ...]:
    """Compare the main metric of every task with the base's.

    Raises:
        EvaluationError: the two answered different documents.
    """
    others = {(row.task, row.metric): row for row in base.tasks}
    return tuple(_compare(row, others.get((row.task, row.metric))) for row in main_metrics(point))


def _compare(row: TaskAnswers, base: TaskAnswers | None) -> SweepTask:
    change = None
    if base and row.is_share:
        change = Change(value=100 * (row.result.value - base.result.value), standard_error=_paired(row, base))
    return SweepTask(task=row.task, metric=row.metric, value=row.result.value, change_points=change)


def _paired(row: TaskAnswers, base: TaskAnswers) -> float | None:
    if not row.answers or not base.answers:
        return None
    if row.documents != base.documents:
        raise EvaluationError(
            f"Two points answered different documents of {row.task}.", hint="Does the task draw them at random?"
        )
    differences = [100 * (one - other) for one, other in zip(row.answers, base.answers, strict=True)]
    return stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else None


def mean_change(tasks: Sequence[SweepTask]) -> Change | None:
    """Average the changes in points; tasks have no documents in common, so that their errors add in squares."""
    changes = [task.change_points for task in tasks if task.change_points]
    if not changes:
        return None
    errors = [change.standard_error for change in changes]
    known = [error for error in errors if error is not None]
    whole = math.sqrt(sum(error**2 for error in known)) / len(known) if len(known) == len(errors) else None
    return Change(value=mean(change.value for change in changes), standard_error=whole)


def perplexity_change(point: PerplexityAnswers, base: PerplexityAnswers) -> Change:
    """Return perplexity over the base's minus one in percent; its error is that of a ratio of sums over documents."""
    tokens, count = sum(point.tokens), len(point.tokens)
    differences = [one - other for one, other in zip(point.nats, base.nats, strict=True)]
    rise = sum(differences) / tokens
    residuals = [d - rise * t for d, t in zip(differences, point.tokens, strict=True)]
    error = math.sqrt(count / (count - 1) * sum(r * r for r in residuals)) / tokens if count > 1 else None
    ratio = math.exp(min(rise, LARGEST_NATS))
    return Change(value=100 * (ratio - 1), standard_error=None if error is None else 100 * ratio * error)
