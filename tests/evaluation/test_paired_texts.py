"""Two models' texts beside each other: means and paired intervals against scipy and by hand."""

from __future__ import annotations

from statistics import mean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from hubprune.core.artifacts import GenerationComparison
from hubprune.evaluation.repetition import compare_repetition, measure

LOOP = [1, 2, 3, 4] * 6
PLAIN = list(range(24))
texts = st.lists(st.integers(0, 3), max_size=30) | st.just(LOOP) | st.just(PLAIN)
pairs = st.lists(st.tuples(texts, texts), min_size=2, max_size=12)
MEANS = ("tokens", "seq_rep_4", "diversity", "longest_repeat")


@settings(deadline=None)
@given(pairs)
def test_means_and_their_intervals_are_those_of_a_paired_t_test(texts):
    base, pruned = zip(*texts, strict=True)
    compared = compare_repetition(base, pruned)
    for name in MEANS:
        ours, theirs = ([getattr(measure(text), name) for text in side] for side in (base, pruned))
        found = getattr(compared, name)
        assert (found.base, found.pruned) == pytest.approx((mean(ours), mean(theirs)))
        assert found.change.value == pytest.approx(mean(theirs) - mean(ours), abs=1e-12)
        if found.change.low is not None:
            expected = stats.ttest_rel(theirs, ours).confidence_interval()
            limit = 1 if name in ("seq_rep_4", "diversity") else float("inf")
            assert found.change.low == pytest.approx(max(-limit, expected.low))
            assert found.change.high == pytest.approx(min(limit, expected.high))
        else:
            assert found.change.standard_error == pytest.approx(0, abs=1e-9)


@settings(deadline=None)
@given(pairs)
def test_the_other_way_round_every_change_turns_its_sign(texts):
    base, pruned = zip(*texts, strict=True)
    one, other = compare_repetition(base, pruned), compare_repetition(pruned, base)
    for name in (*MEANS, "loops"):
        change, back = getattr(one, name).change, getattr(other, name).change
        assert change.value == pytest.approx(-back.value)
        if change.low is not None:
            assert (change.low, change.high) == pytest.approx((-back.high, -back.low))


def test_loops_are_counted_in_pairs():
    base = [LOOP, LOOP, PLAIN, PLAIN, PLAIN, PLAIN, PLAIN, PLAIN]
    pruned = [LOOP, PLAIN, LOOP, LOOP, LOOP, LOOP, PLAIN, PLAIN]
    loops = compare_repetition(base, pruned).loops
    assert (loops.texts, loops.base, loops.pruned, loops.both) == (8, 2, 5, 1)
    assert loops.change.value == 3 / 8
    # Agresti and Min: half a text more in each of the four cells, 10 texts with 4.5 gained and 1.5 lost
    error = ((0.45 + 0.15 - 0.3**2) / 10) ** 0.5
    reach = stats.norm.ppf(0.975) * error
    assert (loops.change.low, loops.change.high) == pytest.approx((0.3 - reach, 0.3 + reach))


def test_distinct_2_is_pooled_and_has_no_interval():
    compared = compare_repetition([PLAIN, PLAIN[::-1]], [PLAIN, PLAIN])
    assert (compared.distinct_2.base, compared.distinct_2.pruned, compared.distinct_2.change.value) == (1, 0.5, -0.5)
    assert compared.distinct_2.change.low is None
    assert compared.seq_rep_4.change.value == 0


def test_a_single_prompt_has_no_interval():
    compared = compare_repetition([PLAIN], [LOOP])
    assert compared.tokens.change.value == 0
    assert all(getattr(compared, name).change.low is None for name in MEANS)
    assert (compared.loops.base, compared.loops.pruned) == (0, 1)


def test_what_was_written_before_texts_were_measured_can_be_read():
    old = {
        "continuations": [
            {"prompt": "Why?", "base": " So.", "pruned": " So so.", "base_tokens": 2, "pruned_tokens": 3}
        ],
        "max_new_tokens": 128, "decoding": "greedy", "dtype": "bfloat16", "device": "cpu",
    }  # fmt: skip
    read = GenerationComparison.model_validate(old)
    assert read.repetition is None
    assert read.continuations[0].base_repetition is None
