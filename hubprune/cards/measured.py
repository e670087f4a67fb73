"""The benchmarks of base and pruned model, task by task, and how their changes were tested."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from hubprune.cards.context import Benchmarks, Picture, Table
from hubprune.cards.numbers import NONE, count, plain, signed, with_error, with_interval
from hubprune.core.artifacts import BenchmarkComparison, PairedComparison, TaskComparison

__all__ = ["benchmarks"]


def benchmarks(comparison: BenchmarkComparison | None, *, picture: str | None = None) -> Benchmarks | None:
    """Compare base and pruned task by task; None where nothing was run.

    Args:
        comparison: None where nothing was run.
        picture: path of a picture of the changes among the published files.
    """
    if comparison is None or not comparison.tasks:
        return None
    columns = (
        "Task", "Metric", "Base", "This model", "Δ points", "Δ relative, %", "Verdict", "n", "Shots", "Chance",
    )  # fmt: skip
    rows = tuple(_task_row(task) for task in comparison.tasks)
    return Benchmarks(
        sentences=tuple(_benchmark_sentences(comparison)),
        table=Table(columns=columns, align="llrrrrlrrr", rows=rows),
        picture=_picture(comparison, picture) if picture else None,
        notes=tuple(_test_sentences(comparison)),
    )


def _picture(comparison: BenchmarkComparison, path: str) -> Picture:
    changes = [f"{row.task} {signed(row.points.value)}" for row in comparison.main_metrics() if row.points]
    text = "Changes of the benchmarks in points with their 95 % intervals, against no change"
    return Picture(path=path, text=f"{text}: {', '.join(changes)}")


def _task_row(task: TaskComparison) -> tuple[str, ...]:
    values = [with_error(m.value, m.standard_error) for m in (task.base, task.pruned)]
    n = count(task.documents)
    if task.documents != task.documents_available:
        n += f" of {count(task.documents_available)}"
    read_by = f" ({task.filter})" if task.filter else ""
    metric = f"{task.metric}{read_by} {'↑' if task.higher_is_better else '↓'}"
    chance = NONE if task.chance is None else plain(task.chance, digits=4)
    changes = (with_interval(change) if change else NONE for change in (task.points, task.percent))
    mark = (task.paired and task.paired.mark) or NONE
    return task.task, metric, *values, *changes, mark, n, str(task.num_fewshot), chance


def _benchmark_sentences(comparison: BenchmarkComparison) -> Iterator[str]:
    yield (
        f"Base and this model were measured in the same run, on the same documents, with lm-eval {comparison.lm_eval}"
        f" ({comparison.dtype}, {comparison.device}, seed {comparison.seed})."
    )
    yield from _backend_sentences(comparison)
    yield (
        "± is one standard error of a model's own value. Chance is the accuracy of guessing. Δ points is"
        " 100 × (this − base) for metrics between 0 and 1 and does not exist for others; Δ relative is this / base − 1."
        " ↑: higher is better, ↓: lower is better."
    )
    if comparison.limit is not None:
        limit = count(comparison.limit)
        yield f"Limited to the first {limit} documents of each task: no figure here is the full benchmark's."


def _backend_sentences(comparison: BenchmarkComparison) -> Iterator[str]:
    """Say what computed the log-likelihoods, and how that was compared with lm-eval's own backend."""
    if comparison.backend == "hf":
        why = f", since {comparison.fallback}" if comparison.fallback else ""
        yield f"Log-likelihoods are from lm-eval's own Hugging Face backend{why}."
        return
    check = comparison.self_check
    compared = (
        f"; lm-eval's own backend computed {count(check.requests)} requests of each as well, and differed by at most"
        f" {check.largest_difference:.1e} nats"
        if check
        else ""
    )
    yield f"Log-likelihoods were computed for both in one pass, which runs once what they have in common{compared}."


def _test_sentences(comparison: BenchmarkComparison) -> Iterator[str]:
    """Say how changes were tested, as far as the rows of this card were."""
    tested = [(row, row.paired) for row in comparison.tasks if row.paired and row.paired.mark]
    if not tested:
        return
    yield (
        "Changes are compared document by document. Behind a change, in brackets, is its 95 % interval, for itself"
        " alone: that of Agresti and Min where answers are right or wrong, else that of Student's t. A mean over tasks"
        " has its interval from theirs, with the tasks taken as independent of each other. Verdicts answer for all"
        " tasks at once, so that an interval may leave out 0 where its verdict is not distinguishable."
    )
    used = [TESTS[key] for key in TESTS if key in {_test_of(paired) for _, paired in tested}]
    yield (
        f"Verdicts rest on two-sided tests: {'; '.join(used)}. Their p values are adjusted by Holm's method over the"
        " first metric of each task, and apart from these over all others. Worse, better: adjusted p below 0.05."
        f"{_chance_rule(comparison)} Not distinguishable: all else."
    )
    if untested := [f"{row.task} ({row.metric})" for row in comparison.tasks if (row, row.paired) not in tested]:
        yield f"Not tested, for want of values per document that vary: {', '.join(untested)}."


TESTS: Mapping[str, str] = {
    "mcnemar": "McNemar's exact test of the documents that one of the two alone got right",
    "likelihoods": "for perplexities, a paired t-test of the documents' log-likelihoods",
    "t": "a paired t-test of the documents' values",
    "normal": "for groups in which every task counts the same, a normal test of the mean over their tasks",
}
"""What a row's verdict rests on."""


def _test_of(paired: PairedComparison) -> str:
    return "likelihoods" if paired.ratio else paired.test


def _chance_rule(comparison: BenchmarkComparison) -> str:
    if all(row.chance is None for row in comparison.tasks):
        return ""
    return (
        " At chance: neither of them, and the base is no better than guessing (exact binomial test, one-sided, 5 %), so"
        " that the task could show no loss."
    )
