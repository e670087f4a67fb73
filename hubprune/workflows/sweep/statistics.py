"""Changes of a point against the base, from the answers to each document; pure."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

from hubprune.core.artifacts import BenchmarkAnswers, Estimate, PerplexityAnswers, SweepTask, TaskAnswers, main_rows
from hubprune.evaluation import compare


def mean_percent(answers: BenchmarkAnswers) -> float | None:
    """Return the mean of the main metrics that are shares, in percent; None where there is none."""
    shares = [row.result.value for row in main_rows(answers.tasks) if row.is_share]
    return 100 * mean(shares) if shares else None


def mean_chance(answers: BenchmarkAnswers) -> float | None:
    """Return what guessing gets in the same mean, in percent; None where a task has no such value."""
    values = [row.chance for row in main_rows(answers.tasks) if row.is_share]
    known = [value for value in values if value is not None]
    return 100 * mean(known) if known and len(known) == len(values) else None


def compare_tasks(point: BenchmarkAnswers, base: BenchmarkAnswers) -> tuple[SweepTask, ...]:
    """Compare the main metric of every task with the base's.

    Raises:
        EvaluationError: the two answered different documents.
    """
    others = {(row.task, row.metric): row for row in base.tasks}
    return tuple(_compare(row, others.get((row.task, row.metric))) for row in main_rows(point.tasks))


def _compare(row: TaskAnswers, base: TaskAnswers | None) -> SweepTask:
    change = _change(row, base) if base and row.is_share else None
    return SweepTask(task=row.task, metric=row.metric, value=row.result.value, change_points=change)


def _change(row: TaskAnswers, base: TaskAnswers) -> Estimate:
    if not row.answers or not base.answers:
        return Estimate(value=100 * (row.result.value - base.result.value))
    ours, theirs = (dict(zip(r.documents, r.answers, strict=True)) for r in (base, row))
    return compare.difference(compare.pair(ours, theirs, of=row.task)).affine(times=100)


def mean_change(tasks: Sequence[SweepTask]) -> Estimate | None:
    """Average the changes in points; tasks count as independent of each other."""
    changes = [task.change_points for task in tasks if task.change_points]
    return compare.combine(changes, [1 / len(changes)] * len(changes)) if changes else None


def perplexity_change(point: PerplexityAnswers, base: PerplexityAnswers) -> Estimate:
    """Return perplexity over the base's minus one in percent, from the nats and tokens of every document."""
    nats = compare.difference(compare.Pairs(base.nats, point.nats, point.tokens))
    return compare.as_ratio(nats).affine(times=100, plus=-100)
