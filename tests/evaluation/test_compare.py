"""Paired statistics: equal to scipy's and statsmodels' where these have them, and sensible at every edge."""

from __future__ import annotations

import itertools
import math
from unittest import mock

import numpy
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as mcnemar_of_statsmodels
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from hubprune.core.artifacts import Estimate, MetricValue, PairedComparison, TaskComparison
from hubprune.core.console import LARGEST
from hubprune.core.errors import EvaluationError
from hubprune.evaluation import compare
from hubprune.evaluation.compare import Pairs

COUNTS = st.integers(0, 40)
NUMBERS = st.floats(-50, 50).map(lambda x: round(x, 3))
TWO = st.lists(st.tuples(NUMBERS, NUMBERS), min_size=2, max_size=30)
CHOICES = st.lists(st.tuples(st.sampled_from([0.0, 1.0]), st.sampled_from([0.0, 1.0])), min_size=1, max_size=60)


def outcomes(both: int, lost: int, won: int, neither: int) -> Pairs:
    """Answers with so many documents that both got right, the base alone, the pruned alone, and none."""
    base = [1.0] * (both + lost) + [0.0] * (won + neither)
    pruned = [1.0] * both + [0.0] * lost + [1.0] * won + [0.0] * neither
    return Pairs(base, pruned)


def apart(pairs: list[tuple[float, float]]) -> Pairs:
    base, pruned = zip(*pairs, strict=True)
    return Pairs(base, pruned)


# ---- documents ---------------------------------------------------------------------------------------------------


def test_documents_are_paired_by_id_and_hash_whatever_their_order():
    base = {(0, "a"): 1.0, (1, "b"): 0.0, (2, "c"): 1.0}
    pruned = {(2, "c"): 0.0, (0, "a"): 1.0, (1, "b"): 1.0}
    assert compare.pair(base, pruned, of="pets") == Pairs((1.0, 0.0, 1.0), (1.0, 1.0, 0.0))


@pytest.mark.parametrize(
    "other", [{(0, "a"): 1.0}, {(0, "a"): 1.0, (1, "changed"): 0.0}, {(0, "a"): 1.0, (2, "b"): 0.0}]
)
def test_differing_documents_are_refused(other):
    with pytest.raises(EvaluationError, match="different documents of pets: 1 only by the base"):
        compare.pair({(0, "a"): 1.0, (1, "b"): 0.0}, other, of="pets")


def test_documents_of_other_lengths_are_refused():
    with pytest.raises(EvaluationError, match="other lengths"):
        compare.pair({(0, "a"): (-3.0, 4.0)}, {(0, "a"): (-3.0, 5.0)}, of="pets")


@pytest.mark.parametrize("value", [math.nan, math.inf, (math.nan, 3.0), (-1.0, math.inf)])
def test_values_that_are_no_numbers_are_refused(value):
    whole = (1.0, 3.0) if isinstance(value, tuple) else 1.0
    keep = {**dict.fromkeys([(0, "a")], whole)}
    with pytest.raises(EvaluationError, match="pets"):
        compare.pair(keep | {(1, "b"): value}, keep | {(1, "b"): value}, of="pets")


def test_nothing_at_all_is_refused():
    with pytest.raises(EvaluationError, match="No document of pets"):
        compare.pair({}, {}, of="pets")


# ---- differences -------------------------------------------------------------------------------------------------


@given(TWO)
def test_a_mean_difference_is_that_of_the_paired_t_test(pairs):
    found = compare.difference(apart(pairs))
    base, pruned = (numpy.array(side) for side in zip(*pairs, strict=True))
    assume(numpy.ptp(pruned - base) > 1e-6 and not {*base, *pruned} <= {0, 1})
    reference = stats.ttest_rel(pruned, base)
    assert found.value == pytest.approx((pruned - base).mean(), rel=1e-9, abs=1e-12)
    assert found.standard_error == pytest.approx(stats.sem(pruned - base), rel=1e-6)
    assert (found.low, found.high) == pytest.approx(tuple(reference.confidence_interval(0.95)), rel=1e-6, abs=1e-9)
    assert compare.t_test(apart(pairs)) == pytest.approx(reference.pvalue, rel=1e-6, abs=1e-12)


def test_per_word_differences_are_ratios_of_sums_with_the_error_of_such_ratios():
    base, pruned, words = [-20.0, -35.0, -51.0], [-24.0, -36.0, -60.0], [10.0, 20.0, 30.0]
    found = compare.difference(Pairs(base, pruned, words))
    rate = -14 / 60
    residuals = numpy.array(pruned) - numpy.array(base) - rate * numpy.array(words)
    assert found.value == pytest.approx(rate)
    assert found.standard_error == pytest.approx(math.sqrt(3 / 2 * (residuals**2).sum()) / 60)


@given(TWO, st.floats(0.5, 20))
def test_with_equal_lengths_a_difference_per_word_is_the_plain_one_over_the_length(pairs, length):
    plain = apart(pairs)
    assume(not plain.right_or_wrong)
    each = compare.difference(Pairs(plain.base, plain.pruned, [length] * len(pairs)))
    whole = compare.difference(plain).affine(times=1 / length)
    assert each.value == pytest.approx(whole.value, abs=1e-12)
    assert each.standard_error == pytest.approx(whole.standard_error, rel=1e-6, abs=1e-9)


def jackknife(pairs: Pairs) -> float:
    """The standard error from leaving out each document once, which knows no formula for ratios."""
    changes = numpy.array(pairs.pruned) - numpy.array(pairs.base)
    words, n = numpy.array(pairs.weights), len(changes)
    rates = (changes.sum() - changes) / (words.sum() - words)
    return math.sqrt((n - 1) / n * ((rates - rates.mean()) ** 2).sum())


def test_the_error_of_a_difference_per_word_is_that_of_leaving_out_documents():
    random = numpy.random.default_rng(0)
    words = random.integers(20, 400, size=400).astype(float)
    base = -2.0 * words + random.normal(0, 3, 400) * numpy.sqrt(words)
    pruned = base - 0.1 * words + random.normal(0, 1, 400) * numpy.sqrt(words)
    pairs = Pairs(base.tolist(), pruned.tolist(), words.tolist())
    assert compare.difference(pairs).standard_error == pytest.approx(jackknife(pairs), rel=0.02)


@given(CHOICES)
def test_of_right_and_wrong_answers_the_interval_holds_the_difference_and_has_a_width(pairs):
    found = compare.difference(apart(pairs))
    assert -1 <= found.low <= found.value + 1e-12
    assert found.value - 1e-12 <= found.high <= 1
    assert found.high - found.low > 0
    base, pruned = zip(*pairs, strict=True)
    assert found.value == pytest.approx(numpy.mean(pruned) - numpy.mean(base))
    if len(pairs) > 1:
        assert found.standard_error == pytest.approx(stats.sem(numpy.subtract(pruned, base)), abs=1e-12)


def test_the_interval_for_right_and_wrong_is_the_one_of_the_literature():
    # The approval ratings of Agresti, Categorical Data Analysis, table 10.1, by the formula of Agresti and Min (2005).
    found = compare.difference(outcomes(794, 150, 86, 570))
    assert found.value == pytest.approx(-0.04)
    assert (found.low, found.high) == pytest.approx((-0.0587, -0.0212), abs=5e-5)


@pytest.mark.parametrize("shares", [(0.02, 0.02), (0.1, 0.05), (0.3, 0.1), (0.0, 0.05)])
def test_the_interval_for_right_and_wrong_holds_the_truth_as_often_as_it_says(shares):
    lost, won = shares
    documents, covered = 60, 0.0
    for b, c in itertools.product(range(documents + 1), repeat=2):
        if b + c <= documents:
            chance = stats.multinomial.pmf([b, c, documents - b - c], documents, [lost, won, 1 - lost - won])
            if chance > 1e-9:
                found = compare.difference(outcomes(0, b, c, documents - b - c))
                covered += chance * (found.low <= won - lost <= found.high)
    assert covered > 0.94


# ---- perplexities ------------------------------------------------------------------------------------------------


@given(TWO.filter(lambda pairs: len({round(b - a, 6) for a, b in pairs}) > 1))
def test_a_perplexity_ratio_is_that_of_the_perplexities(pairs):
    base, pruned = (numpy.array(side) / 50 for side in zip(*pairs, strict=True))  # log-likelihoods
    found = compare.compare_pairs([Pairs(base.tolist(), pruned.tolist())], scale="perplexity")
    assert found.ratio.value == pytest.approx(math.exp(-pruned.mean()) / math.exp(-base.mean()))
    low, high = stats.ttest_rel(base, pruned).confidence_interval(0.95)
    assert (found.ratio.low, found.ratio.high) == pytest.approx((math.exp(low), math.exp(high)))
    assert found.p_value == pytest.approx(stats.ttest_rel(base, pruned).pvalue)
    assert (found.difference, found.lost, found.won) == (None, None, None)


def test_a_perplexity_per_word_is_compared_per_word():
    base, pruned, words = [-20.0, -35.0, -51.0], [-24.0, -36.0, -60.0], [10.0, 20.0, 30.0]
    found = compare.compare_pairs([Pairs(base, pruned, words)], scale="perplexity")
    assert found.ratio.value == pytest.approx(math.exp(120 / 60) / math.exp(106 / 60))
    bits = compare.compare_pairs([Pairs(base, pruned, words)], scale="bits").difference
    assert bits.value == pytest.approx((120 - 106) / 60 / math.log(2))
    assert bits.low < bits.value < bits.high


def test_a_ratio_that_no_number_can_hold_is_cut_off():
    found = compare.compare_pairs([Pairs([0.0, -1.0], [-3000.0, -1.0])], scale="perplexity")
    assert found.ratio.value == found.ratio.high == LARGEST
    assert found.ratio.low == 1 / LARGEST


# ---- tests -------------------------------------------------------------------------------------------------------


@given(COUNTS, COUNTS, COUNTS)
def test_mcnemar_is_that_of_statsmodels(lost, won, both):
    reference = mcnemar_of_statsmodels([[both, lost], [won, 3]], exact=True).pvalue
    assert compare.mcnemar(lost, won) == pytest.approx(reference if lost + won else 1.0)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_is_that_of_statsmodels(p_values):
    with mock.patch("gc.collect"):  # statsmodels calls it every time, which takes 0.6 s where torch is loaded
        reference = multipletests(p_values, method="holm")[1]
    assert compare.holm(p_values) == pytest.approx(reference)


def test_without_p_values_there_is_nothing_to_adjust():
    assert compare.holm([]) == ()


@given(st.integers(1, 200), st.data())
def test_chance_is_tested_as_scipy_does(documents, data):
    right = data.draw(st.integers(0, documents))
    p_value = stats.binom.sf(right - 1, documents, 0.25)
    assume(abs(p_value - 0.05) > 1e-9)
    assert compare.at_chance(right, documents=documents, chance=0.25) == (p_value >= 0.05)


# ---- several tasks -----------------------------------------------------------------------------------------------


@given(st.integers(0, 50), st.integers(50, 60), st.integers(0, 70), st.integers(70, 90))
@settings(max_examples=50)
def test_combined_intervals_are_newcombes_for_two_proportions(right, of, other_right, of_other):
    """Newcombe's interval is that combination of two of Wilson's, and statsmodels has it."""
    shares = []
    for k, n in ((right, of), (other_right, of_other)):
        low, high = proportion_confint(k, n, method="wilson")
        shares.append(Estimate(value=k / n, standard_error=0.1, low=low, high=high))
    found = compare.combine(shares, [1, -1])
    reference = confint_proportions_2indep(right, of, other_right, of_other, method="newcomb", compare="diff")
    assert (found.low, found.high) == pytest.approx(reference, abs=1e-9)
    assert found.standard_error == pytest.approx(0.1 * math.sqrt(2))


def test_a_mean_of_one_task_is_that_task():
    (row,) = rows = (made("pets", outcomes(50, 9, 2, 30)),)
    expected = row.paired.difference.affine(times=100)
    found = compare.mean_change(rows)
    assert (found.value, found.standard_error, found.low, found.high) == pytest.approx(
        (expected.value, expected.standard_error, expected.low, expected.high)
    )


def test_the_mean_change_is_over_main_metrics_that_are_shares_and_counts_every_task_the_same():
    small, large = outcomes(5, 2, 0, 3), outcomes(500, 50, 30, 420)
    rows = [made("a", small), made("a", large, metric="acc_norm"), made("b", large), made("c", small, metric="ter")]
    found = compare.mean_change(rows)
    assert found.value == pytest.approx((-20 - 2) / 2)
    errors = [100 * compare.difference(pairs).standard_error for pairs in (small, large)]
    assert found.standard_error == pytest.approx(math.hypot(*errors) / 2)
    assert found.low < -20 < found.high


def test_a_mean_over_a_task_without_an_error_has_none():
    bare = made("b", outcomes(5, 2, 0, 3)).model_copy(update={"paired": None})
    found = compare.mean_change([made("a", outcomes(5, 2, 0, 3)), bare])
    assert (found.value, found.standard_error, found.low, found.high) == (pytest.approx(-20), None, None, None)
    assert compare.mean_change([made("c", outcomes(5, 2, 0, 3), metric="ter")]) is None


def test_tasks_of_equal_weight_are_compared_task_by_task():
    small, large = outcomes(5, 2, 0, 3), outcomes(500, 50, 30, 420)
    found = compare.compare_pairs([small, large], scale="mean", chance=0.25)
    assert (found.difference.value, found.test) == (pytest.approx((-0.2 - 0.02) / 2), "normal")
    z = found.difference.value / found.difference.standard_error
    assert found.p_value == pytest.approx(2 * stats.norm.sf(abs(z)))


# ---- marks -------------------------------------------------------------------------------------------------------


def made(task: str, pairs: Pairs, *, metric="acc", better="higher", chance=None, scale="mean") -> TaskComparison:
    means = [MetricValue(value=sum(side) / len(side)) for side in (pairs.base, pairs.pruned)]
    return TaskComparison(
        task=task, metric=metric, higher_is_better=better == "higher", documents=len(pairs.base),
        documents_available=len(pairs.base), num_fewshot=0, version="1", dataset=None, dataset_config=None,
        dataset_commit=None, split=None, base=means[0], pruned=means[1], chance=chance,
        paired=compare.compare_pairs([pairs], scale=scale, chance=chance),
    )  # fmt: skip


def marks(*rows: TaskComparison) -> list:
    return [row.paired.mark for row in compare.judge(rows)]


CLEAR, UNCLEAR = outcomes(60, 20, 2, 18), outcomes(60, 6, 4, 30)


def test_a_mark_says_worse_better_or_nothing():
    reverse = Pairs(CLEAR.pruned, CLEAR.base)
    assert marks(made("a", CLEAR), made("b", reverse), made("c", UNCLEAR)) == ["worse", "better", "not distinguishable"]
    assert marks(made("a", CLEAR, better="lower")) == ["better"]


def test_a_perplexity_that_rises_is_worse():
    texts = Pairs([-1.0, -2.0, -1.5, -3.0], [-1.5, -2.6, -2.0, -3.4])
    assert marks(made("a", texts, metric="perplexity", better="lower", scale="perplexity")) == ["worse"]


def test_a_base_at_chance_marks_the_task_unless_it_changed():
    guessed = outcomes(10, 15, 15, 60)  # 25 of 100 either way
    assert marks(made("a", guessed, chance=0.25)) == ["at chance"]
    assert made("a", guessed, chance=0.25).paired.at_chance == ("base", "pruned")
    fallen = outcomes(20, 50, 5, 25)  # from 70 to 25
    (row,) = compare.judge([made("a", fallen, chance=0.25)])
    assert (row.paired.mark, row.paired.at_chance) == ("worse", ("pruned",))
    risen = Pairs(fallen.pruned, fallen.base)
    assert marks(made("a", risen, chance=0.25)) == ["better"]


def test_a_model_that_only_guesses_marks_no_task_where_the_base_knew_a_little():
    (row,) = compare.judge([made("a", outcomes(25, 9, 6, 60), chance=0.25)])  # from 34 to 31 of 100
    assert (row.paired.mark, row.paired.at_chance) == ("not distinguishable", ("pruned",))


def test_below_chance_is_at_chance():
    assert made("a", outcomes(2, 3, 3, 92), chance=0.25).paired.at_chance == ("base", "pruned")


def test_p_values_are_adjusted_over_the_main_metrics_and_apart_over_the_others():
    rows = [made("a", CLEAR), made("a", UNCLEAR, metric="acc_norm"), made("b", UNCLEAR), made("c", CLEAR)]
    clear, unclear = (compare.mcnemar(*compare.discordant(pairs)) for pairs in (CLEAR, UNCLEAR))
    found = [row.paired.holm_p_value for row in compare.judge(rows)]
    assert found == pytest.approx([3 * clear, unclear, unclear, 3 * clear])


def test_what_is_clear_alone_need_not_be_among_many():
    alone = outcomes(60, 9, 1, 30)  # p = 0.021
    assert marks(made("a", alone)) == ["worse"]
    assert marks(*(made(name, alone) for name in "abc")) == ["not distinguishable"] * 3


def test_a_row_that_cannot_be_tested_has_no_mark_and_counts_for_nothing():
    untested = made("a", UNCLEAR).model_copy(update={"paired": None})
    constant = made("b", Pairs([0.1, 0.2, 0.3], [0.2, 0.3, 0.4]), metric="f1")
    judged = compare.judge([untested, constant, made("c", CLEAR)])
    assert [row.paired and row.paired.mark for row in judged] == [None, None, "worse"]
    assert judged[2].paired.holm_p_value == judged[2].paired.p_value


# ---- edges -------------------------------------------------------------------------------------------------------


def test_where_nothing_changed_nothing_is_claimed_and_the_interval_still_has_a_width():
    found = compare.compare_pairs([outcomes(150, 0, 0, 50)], scale="mean")
    assert (found.lost, found.won, found.p_value) == (0, 0, 1.0)
    assert (found.difference.value, found.difference.standard_error) == (0, 0)
    assert found.difference.high == -found.difference.low == pytest.approx(0.0097, abs=1e-4)


def test_one_document_shows_nothing():
    found = compare.compare_pairs([outcomes(0, 1, 0, 0)], scale="mean")
    assert (found.p_value, found.difference.standard_error) == (1.0, None)
    assert (found.difference.low, found.difference.value) == (-1, -1)
    text = compare.compare_pairs([Pairs([-1.0], [-2.0])], scale="perplexity")
    assert (text.p_value, text.ratio.standard_error, text.ratio.low, text.ratio.high) == (None, None, None, None)
    assert text.ratio.value == pytest.approx(math.e)


def test_where_all_documents_are_lost_that_is_significant_from_six_on():
    five, six = (compare.compare_pairs([outcomes(0, n, 0, 0)], scale="mean") for n in (5, 6))
    assert (five.p_value, six.p_value) == (pytest.approx(2 / 32), pytest.approx(2 / 64))


def test_numbers_that_all_changed_alike_are_not_tested():
    alike = compare.compare_pairs([Pairs([0.1, 0.2, 0.7], [0.2, 0.3, 0.8])], scale="mean")
    assert (alike.p_value, alike.difference.low, alike.difference.standard_error) == (None, None, 0.0)
    unchanged = compare.compare_pairs([Pairs([0.1, 0.2, 0.7], [0.1, 0.2, 0.7])], scale="mean")
    assert unchanged.p_value == 1.0


SEED_CARD = {
    # documents, share right of base and pruned, assumed share of documents on which they disagree
    "arc_easy": (2376, 0.7180, 0.7104, 0.06), "hellaswag": (10042, 0.7405, 0.7274, 0.06),
    "lambada_openai": (5153, 0.6969, 0.6189, 0.14), "piqa": (1838, 0.7813, 0.7693, 0.06),
    "winogrande": (1267, 0.6961, 0.6843, 0.10),
}  # fmt: skip


def seed_row(task: str) -> TaskComparison:
    documents, base, pruned, apart_share = SEED_CARD[task]
    lost = round((apart_share + base - pruned) / 2 * documents)
    won = round((apart_share - base + pruned) / 2 * documents)
    both = round(base * documents) - lost
    return made(task, outcomes(both, lost, won, documents - both - lost - won))


def test_on_the_numbers_of_a_published_card_pairing_sharpens_and_holm_decides():
    rows = compare.judge([seed_row(task) for task in SEED_CARD])
    found = {row.task: row.paired.mark for row in rows}
    assert found == {
        "arc_easy": "not distinguishable", "hellaswag": "worse", "lambada_openai": "worse",
        "piqa": "not distinguishable", "winogrande": "not distinguishable",
    }  # fmt: skip
    for row in rows:
        _, base, pruned, share = SEED_CARD[row.task]
        assert row.paired.difference.value == pytest.approx(pruned - base, abs=2e-3)
        variance = (share - (pruned - base) ** 2) / row.documents
        assert row.paired.difference.standard_error == pytest.approx(math.sqrt(variance), rel=0.02)
        unpaired = math.sqrt((base * (1 - base) + pruned * (1 - pruned)) / row.documents)
        assert row.paired.difference.standard_error < 0.65 * unpaired
    mean = compare.mean_change(rows)
    assert mean.value == pytest.approx(-2.45, abs=0.02)
    assert mean.high < 0


def test_what_is_told_survives_json():
    (row,) = compare.judge([seed_row("hellaswag")])
    assert TaskComparison.model_validate_json(row.model_dump_json()) == row
    old = row.model_dump(mode="json")
    del old["paired"]
    assert TaskComparison.model_validate(old).paired is None


def test_an_effect_is_negative_where_the_metric_went_down():
    assert PairedComparison(ratio=Estimate(value=0.5), test="t", p_value=None).effect == -0.5
    assert PairedComparison(difference=Estimate(value=-0.1), test="t", p_value=None).effect == -0.1


# ---- which share of a loss came back ---------------------------------------------------------------------------------


def test_the_interval_of_a_share_that_came_back_is_fieller_s():
    draws = numpy.random.default_rng(0)
    lost = draws.normal(0.3, 1.0, 400)
    back = 0.7 * lost + draws.normal(0, 0.2, 400)
    found = compare.share_of_loss(lost.tolist(), back.tolist())
    assert found.value == pytest.approx(back.mean() / lost.mean())
    assert found.low < 0.7 < found.high
    # At its ends, the mean of back - share x lost is just not distinguishable from 0 in a t-test.
    for end in found.ends:
        assert stats.ttest_1samp(back - end * lost, 0).pvalue == pytest.approx(0.05)


def test_all_that_was_lost_comes_back_with_certainty_where_every_document_does():
    lost = [0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0]
    found = compare.share_of_loss(lost, lost)
    assert (found.value, found.low, found.high) == (1, pytest.approx(1), pytest.approx(1))


@pytest.mark.parametrize("lost", [[0.0] * 9, [1.0, -1.0, 0.5, -0.4], [-1.0] * 5, [1.0]], ids=str)
def test_no_share_is_told_of_a_loss_that_is_not_clear(lost):
    assert compare.share_of_loss(lost, lost) is None
