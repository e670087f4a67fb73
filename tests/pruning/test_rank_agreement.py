"""How well two orders agree: known answers, scipy's, and what has no order."""

import random

import pytest

from hubprune.core.artifacts import ImportanceScores
from hubprune.pruning.aggregation import agreements, kendall, mean_ranks, overlap, spearman

RISING = (1.0, 2.0, 3.0, 4.0, 5.0)


def test_the_same_order_agrees_wholly_and_the_reverse_not_at_all():
    assert (spearman(RISING, (2, 3, 10, 11, 90)), kendall(RISING, (2, 3, 10, 11, 90))) == (1, 1)
    assert (spearman(RISING, RISING[::-1]), kendall(RISING, RISING[::-1])) == (-1, -1)


def test_known_answers():
    # One swap of neighbours among five: rho = 1 - 6 * 2 / (5 * 24), tau = (9 - 1) / 10.
    swapped = (1.0, 3.0, 2.0, 4.0, 5.0)
    assert spearman(RISING, swapped) == pytest.approx(0.9)
    assert kendall(RISING, swapped) == pytest.approx(0.8)


def test_equal_values_share_their_mean_rank():
    assert mean_ranks((3.0, 1.0, 3.0, 2.0, 3.0)) == [4, 1, 4, 2, 4]


@pytest.mark.parametrize("ties", [2, 5, 100])
def test_scipy_finds_the_same(ties):
    stats = pytest.importorskip("scipy.stats")
    source = random.Random(ties)
    for _ in range(20):
        one, other = ([source.randrange(ties) + 0.0 for _ in range(17)] for _ in range(2))
        assert spearman(one, other) == pytest.approx(stats.spearmanr(one, other).statistic, abs=1e-12)
        assert kendall(one, other) == pytest.approx(stats.kendalltau(one, other).statistic, abs=1e-12)


def test_scores_that_are_all_equal_have_no_order():
    assert spearman(RISING, (1.0,) * 5) is None
    assert kendall((0.5,) * 5, RISING) is None
    assert spearman((1.0,), (1.0,)) is None


def test_the_overlap_counts_the_lowest_and_breaks_ties_as_selection_does():
    assert overlap((1, 2, 3, 4), (2, 1, 9, 0), lowest=2) == 1
    assert overlap((1, 1, 1, 1), (9, 9, 0, 0), lowest=2) == 2
    assert overlap((1, 2), (1, 2), lowest=5) == 2


@pytest.mark.parametrize("measure", [spearman, kendall, lambda a, b: overlap(a, b, lowest=1)])
def test_different_numbers_of_layers_cannot_be_compared(measure):
    with pytest.raises(ValueError, match="2 and 3 layers"):
        measure((1, 2), (1, 2, 3))


def test_every_kind_of_score_is_compared():
    one = ImportanceScores(attn=(1, 2, 3), mlp=(1, 2, 3), block=(1, 1, 1))
    other = ImportanceScores(attn=(1, 2, 3), mlp=(3, 2, 1), block=(1, 2, 3))
    found = {a.kind: (a.spearman, a.kendall, a.overlap, a.lowest) for a in agreements(one, other, lowest=1)}
    assert found == {"attn": (1, 1, 1, 1), "mlp": (-1, -1, 0, 1), "block": (None, None, 0, 1)}
