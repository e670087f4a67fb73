"""Whether what dropping and quantizing cost adds up, from what four models got on the same documents."""

from __future__ import annotations

import math
from statistics import mean

import made
import pytest
from scipy import stats

from hubprune.core.artifacts import MetricValue
from hubprune.evaluation.compare import compare_pairs, pair
from hubprune.evaluation.results import together

RIGHT = {
    "base": [1, 1, 1, 0, 1, 1, 0, 1, 1, 1],
    "dropped": [1, 0, 1, 0, 1, 1, 0, 1, 1, 1],
    "quantized": [1, 1, 0, 0, 1, 1, 1, 1, 1, 1],
    "both": [0, 0, 0, 0, 1, 0, 1, 1, 1, 1],
}
"""What four models got on ten documents."""


def results(answers, *, task="t", metric="acc"):
    """The same as lm-eval writes it."""
    samples = [{"doc_id": n, "doc_hash": f"h{n}", metric: value} for n, value in enumerate(answers)]
    value = {f"{metric},none": mean(answers), f"{metric}_stderr,none": 0.1}
    return {"results": {task: value}, "group_subtasks": {}, "samples": {task: samples}}


def row(base, other, *, task="t"):
    sides = [dict(enumerate(map(float, answers))) for answers in (base, other)]
    compared = compare_pairs([pair(*sides, of=task)], scale="mean")
    found = made.task(task, "acc", (mean(base), 0.1), (mean(other), 0.1), paired=compared)
    return found.model_copy(update={"pruned": MetricValue(value=mean(other))})


def added(answers, **changes):
    told = {name: results(values) for name, values in answers.items()}
    rows = {name: [row(answers["base"], answers[name])] for name in ("dropped", "quantized", "both")}
    return together(told, **rows, **changes)


def test_what_both_change_beyond_the_sum_has_the_interval_of_the_documents():
    [found] = added(RIGHT)
    assert [found.dropped.value, found.quantized.value, found.both.value] == pytest.approx([-10, 0, -30])
    assert found.excess.value == pytest.approx(-20)
    columns = zip(*(RIGHT[name] for name in ("base", "dropped", "quantized", "both")), strict=True)
    beyond = [100 * (both - (dropped + quantized - base)) for base, dropped, quantized, both in columns]
    expected = stats.ttest_1samp(beyond, 0).confidence_interval(0.95)
    if {d + q - b for b, d, q in zip(RIGHT["base"], RIGHT["dropped"], RIGHT["quantized"], strict=True)} - {0, 1}:
        assert found.excess.ends == pytest.approx(tuple(expected))
    assert found.excess.low < found.excess.value < found.excess.high


def test_losses_that_add_up_document_by_document_leave_nothing():
    sums = [d + q - b for b, d, q in zip(RIGHT["base"], RIGHT["dropped"], RIGHT["quantized"], strict=True)]
    [found] = added({**RIGHT, "both": sums})
    assert found.excess.value == 0
    assert found.both.value == pytest.approx(found.dropped.value + found.quantized.value)


def test_several_tasks_get_a_mean_and_a_metric_without_documents_is_left_out():
    told, rows = {}, {name: [] for name in ("dropped", "quantized", "both")}
    for name, answers in RIGHT.items():
        one, other = results(answers, task="a"), results(answers[::-1], task="b")
        told[name] = {key: {**one[key], **other[key]} for key in one}
    for name in rows:
        rows[name] = [
            row(RIGHT["base"], RIGHT[name], task="a"), row(RIGHT["base"][::-1], RIGHT[name][::-1], task="b")
        ]  # fmt: skip
    *tasks, last = together(told, **rows)
    assert [found.name for found in tasks] == ["a", "b"]
    assert (last.name, last.metric) == ("mean", None)
    assert last.excess.value == pytest.approx(-20)
    assert last.excess.standard_error == pytest.approx(tasks[0].excess.standard_error / math.sqrt(2))
    for found in told.values():
        found["samples"]["b"] = []
    assert [found.name for found in together(told, **rows)] == ["a"]
