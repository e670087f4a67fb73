"""Turns, ratios and intervals, on a clock that does not run by itself."""

import gc
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubprune.evaluation.speed import bootstrap, ratio_to_base, take_turns

NAMES = ("base", "again", "pruned")


def turns(runs, *, rounds=20, warm_ups=3, seed=0):
    return take_turns(runs, rounds=rounds, warm_ups=warm_ups, seed=seed, advance=lambda _: None)


def test_every_round_runs_everything_once_in_an_order_of_its_own_and_warm_ups_do_not_count():
    ran, told = [], []
    runs = {name: lambda name=name: ran.append(name) or len(ran) for name in NAMES}
    seen = take_turns(runs, rounds=20, warm_ups=3, seed=0, advance=told.append)
    rounds = [tuple(ran[i : i + 3]) for i in range(0, len(ran), 3)]
    assert [sorted(order) for order in rounds] == [sorted(NAMES)] * 23
    assert len(set(rounds)) == 6  # all orders there are
    assert told == [1] * 23
    assert len(seen) == 20
    assert min(min(row.values()) for row in seen) == 10  # nine runs of three warm-ups came before


def test_the_seed_alone_decides_the_orders():
    def orders(seed):
        ran = []
        turns({name: lambda name=name: ran.append(name) for name in NAMES}, seed=seed)
        return ran

    assert orders(1) == orders(1)
    assert orders(1) != orders(2)


def test_garbage_is_collected_between_rounds_only():
    assert gc.isenabled()
    seen = turns({"base": gc.isenabled}, rounds=2)
    assert seen == [{"base": False}] * 2
    with pytest.raises(ZeroDivisionError):
        turns({"base": lambda: 1 / 0})
    assert gc.isenabled()


def test_a_machine_that_drifts_by_far_more_than_the_difference_changes_nothing():
    # Every round takes half as long again as the one before: one after the other, the models would seem worlds apart.
    calls = {"n": 0}

    def run(cost):
        def timed():
            round_number = calls["n"] // 3
            calls["n"] += 1
            return cost * 1.5**round_number

        return timed

    seen = turns({"base": run(1.10), "again": run(1.10), "pruned": run(1.00)})
    ratio, control = ratio_to_base([(row["base"], row["again"], row["pruned"]) for row in seen], seed=0)
    assert (ratio.low, ratio.median, ratio.high) == pytest.approx((1.1,) * 3)
    assert (control.low, control.median, control.high) == pytest.approx((1.0,) * 3)


def test_a_ratio_is_that_of_seconds_within_a_round_and_above_one_for_the_faster():
    ratio, control = ratio_to_base([(2.0, 4.0, 1.0)] * 20, seed=0)
    assert (ratio.median, control.median) == (2.0, 0.5)


def noisy(center, *, count, seed):
    chance = random.Random(seed)
    return [chance.gauss(center, 0.05) for _ in range(count)]


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    held = [bootstrap(noisy(1.0, count=20, seed=n), seed=1000 + n).holds_one for n in range(200)]
    assert 0.90 <= sum(held) / len(held) <= 0.98


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=40), st.floats(0.5, 2))
def test_an_interval_lies_within_the_values_around_their_median_and_scales_with_them(values, factor):
    found = bootstrap(values, seed=0)
    assert min(values) <= found.low <= found.median <= found.high <= max(values)
    scaled = bootstrap([factor * value for value in values], seed=0)
    assert (scaled.low, scaled.high) == pytest.approx((factor * found.low, factor * found.high))
