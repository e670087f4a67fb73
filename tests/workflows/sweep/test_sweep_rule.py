"""The statistics of a point, and which count is recommended, on made-up numbers."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubprune.core.artifacts import (
    BenchmarkAnswers,
    Estimate,
    Interval,
    MetricValue,
    PerplexityAnswers,
    SpeedMeasured,
    SweepPoint,
    TaskAnswers,
)
from hubprune.core.errors import EvaluationError
from hubprune.core.requests import SweepRequest
from hubprune.workflows import sweep as reporting
from hubprune.workflows.sweep import recommend, rule_text


def point(count, *, mean=None, rise=None, speed=None):
    return SweepPoint(
        method="attn", count=count, dropped=tuple(("attn", i) for i in range(count)), parameters=100 - count,
        mean=None if mean is None else 90 + mean, mean_change=None if mean is None else change(mean), tasks=(),
        perplexity=None if rise is None else 5 * (1 + rise / 100),
        perplexity_change=None if rise is None else change(rise), speed=speed,
    )  # fmt: skip


def change(value):
    return Estimate(value=value, standard_error=0.25)


def picked(rows, **limits):
    return recommend("attn", rows, SweepRequest("acme/base", **limits), base="acme/base")


def test_the_largest_count_within_the_limit_is_taken_and_the_numbers_that_decided_are_told():
    found = picked([point(0, mean=0.0), point(1, mean=0.4), point(2, mean=-1.0), point(3, mean=-1.01)])
    assert (found.count, found.command) == (2, "hubprune publish acme/base --attn-drop 2")
    assert found.reason == "with 2, mean −1.00 ± 0.25 points (limit −1); with 3, mean −1.01 ± 0.25 points (limit −1)"


def test_a_count_behind_one_that_lost_too_much_is_not_taken():
    points = [point(0, mean=0.0), point(1, mean=-0.5), point(2, mean=-3.0), point(3, mean=0.2)]
    assert picked(points).count == 1


def test_benchmarks_and_perplexity_have_to_keep_to_their_limits_both():
    points = [point(0, mean=0.0, rise=0.0), point(1, mean=0.0, rise=4.9), point(2, mean=0.0, rise=5.1)]
    assert picked(points).count == 1
    assert picked(points, max_rise=6.0).count == 2
    assert "perplexity +5.10 ± 0.25 % (limit +5)" in picked(points).reason


def test_where_nothing_keeps_to_the_limit_nothing_is_recommended():
    found = picked([point(0, rise=0.0, mean=0.0), point(2, rise=80.2, mean=-1.04)])
    assert (found.count, found.command) == (0, None)
    assert found.takes == "It would need --max-loss 1.1 --max-rise 81."
    assert found.reason == (
        "already with 2, the mean loses 1.04 ± 0.25 points (limit 1)"
        " and the perplexity rises by 80.20 ± 0.25 % (limit 5 %)"
    )
    found = picked([point(0, rise=0.0, mean=0.0), point(1, rise=22.3, mean=-0.9)])  # the mean keeps to its limit
    assert (found.takes, "mean" in found.reason) == ("It would need --max-rise 23.", False)
    assert picked([point(0, mean=0.0), point(2, mean=0.0)]).takes is None


def test_where_everything_keeps_to_it_the_largest_count_is_taken_and_that_is_said():
    found = picked([point(0, rise=0.0), point(4, rise=0.1)])
    assert (found.count, found.reason.endswith("no larger count was measured")) == (4, True)


def test_the_rule_speaks_only_of_what_was_measured():
    assert "perplexity" not in rule_text(SweepRequest("acme/base"), [point(0, mean=0.0)])
    assert "mean" not in rule_text(SweepRequest("acme/base"), [point(0, rise=0.0)])
    assert rule_text(SweepRequest("acme/base"), [point(0)]) == ""
    both = rule_text(SweepRequest("acme/base"), [point(0, mean=0.0, rise=0.0)])
    assert "the mean loses at most 1 point and the perplexity rises by at most 5 %" in both


@given(st.lists(st.floats(-20, 20), min_size=1, max_size=12), st.floats(0, 5))
def test_every_count_up_to_the_recommended_one_keeps_to_the_limit(losses, limit):
    points = [point(0, mean=0.0), *(point(n, mean=-loss) for n, loss in enumerate(losses, start=1))]
    count = picked(points, max_loss=limit).count
    assert all(loss <= limit for loss in losses[:count])
    assert count == len(losses) or losses[count] > limit


# ---- statistics --------------------------------------------------------------------------------------------------


def answers(*values, task="pets", documents=None, chance=0.5):
    names = documents or tuple(f"pets {n}" for n in range(len(values)))
    row = TaskAnswers(
        task=task, metric="acc", is_share=True, higher_is_better=True, chance=chance,
        result=MetricValue(value=sum(values) / len(values)), documents=names, answers=values,
    )  # fmt: skip
    return BenchmarkAnswers(tasks=(row,), lm_eval="0", device="cpu", dtype="float32")


def test_the_error_of_a_change_is_paired_by_document():
    base, same, worse = answers(1, 0, 1, 1), answers(1, 0, 1, 1), answers(1, 0, 0, 1)
    (unchanged,) = reporting.compare_tasks(same, base)
    assert (unchanged.change_points.value, unchanged.change_points.standard_error) == (0.0, 0.0)
    (task,) = reporting.compare_tasks(worse, base)
    assert task.change_points.value == -25.0
    assert task.change_points.standard_error == pytest.approx(25.0)  # stdev of 0, 0, -100, 0 is 50; over sqrt(4)
    assert task.change_points.low < -25.0 < task.change_points.high


def test_tasks_add_their_errors_in_squares():
    base, worse = answers(1, 0, 1, 1), answers(1, 0, 0, 1)
    tasks = reporting.compare_tasks(worse, base) * 4
    found = reporting.mean_change(tasks)
    assert (found.value, found.standard_error) == (-25.0, pytest.approx(25 / math.sqrt(4)))


def test_a_task_that_is_only_guessed_is_told_apart():
    guessed, known = ([1, 0] * 10), ([1] * 20)
    assert [reporting.compare_tasks(answers(*a), answers(*a))[0].at_chance for a in (guessed, known)] == [True, False]
    assert not reporting.compare_tasks(answers(*guessed, chance=None), answers(*guessed))[0].at_chance


def test_points_that_answered_different_documents_are_not_compared():
    with pytest.raises(EvaluationError, match="different documents of pets"):
        reporting.compare_tasks(answers(1, 0, documents=("a", "b")), answers(1, 0, documents=("a", "c")))


def test_the_mean_of_chance_is_known_only_where_every_task_has_one():
    assert reporting.mean_chance(answers(1, 0)) == 50.0
    assert reporting.mean_chance(answers(1, 0, chance=None)) is None


def test_perplexity_weighs_tokens_and_its_error_is_paired():
    base = PerplexityAnswers(nats=(10.0, 30.0), tokens=(10, 20))
    assert base.perplexity == pytest.approx(math.exp(40 / 30))
    more = PerplexityAnswers(nats=(11.0, 32.0), tokens=(10, 20))
    found = reporting.perplexity_change(more, base)
    assert found.value == pytest.approx(100 * (math.exp(0.1) - 1))
    assert found.standard_error == pytest.approx(0.0, abs=1e-9)  # 0.1 nats more per token in either document
    assert PerplexityAnswers(nats=(1e6,), tokens=(1,)).perplexity is None


def test_a_point_tells_the_price_of_speed_where_both_were_measured():
    speed = SpeedMeasured(
        ratio=Interval(median=1.2, low=1.1, high=1.3), control=Interval(median=1.0, low=0.99, high=1.01), seconds=1.0,
        base_seconds=1.2, tokens_per_second=12.0, base_tokens_per_second=10.0, depth=64, new_tokens=8, batch_size=1,
        round_seconds=((1.2, 1.2, 1.0),),
    )  # fmt: skip
    found = point(3, mean=-2.0, speed=speed).sdr
    assert found == speed.sdr(-2.0, standard_error=0.25)
    assert found.value == pytest.approx(0.1)
    assert point(3, speed=speed).sdr is None
    assert point(3, mean=-2.0).sdr is None


def test_for_a_folder_the_next_command_prunes():
    rows = [point(0, mean=0.0), point(1, mean=0.4)]
    found = recommend("attn", rows, SweepRequest("./base", tasks="a"), base="./base", publishable=False)
    assert found.command == "hubprune prune ./base --attn-drop 1 --out pruned"
