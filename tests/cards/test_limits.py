"""Every rule of the limits and of the verdict, on both sides of its threshold."""

from __future__ import annotations

import made
import pytest

from hubprune.cards.limits import limits, verdict
from hubprune.core.artifacts import Estimate, Margin, PairedLoops
from hubprune.evaluation.repetition import pair_texts


def said(plan=None, *, scores=None, comparison=None, generation=None):
    return limits(plan or made.plan(), scores=scores or made.scores(), comparison=comparison, generation=generation)


def row(name, points, *, lost=0, won=0, error=0.3, chance=None, at_chance=()):
    paired = made.right_or_wrong(lost, won, points=points, error=error, at_chance=at_chance)
    return made.task(name, "acc", (0.7, 0.01), (0.7 + points / 100, 0.01), chance=chance, paired=paired)


def runs(*rows, **changes):
    return made.benchmarks(tasks=rows, **changes)


def worst(*others):
    return said(comparison=runs(row("lambada_openai", -7.80, lost=54, won=15), *others))


@pytest.mark.parametrize(("lost", "won", "clear"), [(14, 4, True), (13, 4, True), (12, 4, False)])
def test_a_loss_is_a_limit_below_five_percent(lost, won, clear):
    """Exact two-sided binomial: 14 to 4 has p = 0.031, 13 to 4 has p = 0.049, 12 to 4 has p = 0.077."""
    lines = said(comparison=runs(row("piqa", -2.0, lost=lost, won=won)))
    assert any("piqa (acc) got worse" in line for line in lines) == clear


def test_holms_adjustment_decides_and_not_the_bare_p_value():
    alone, beside = row("piqa", -2.0, lost=13, won=4), row("arc_easy", -0.1, lost=5, won=5)
    assert any("got worse" in line for line in said(comparison=runs(alone)))
    assert not any("(acc) got worse" in line for line in said(comparison=runs(alone, beside)))


def test_word_prediction_is_named_where_it_got_worse_and_where_it_is_that():
    assert any("lambada_openai (acc), predicting the last word of a passage, got worse" in line for line in worst())
    assert not any("last word" in line for line in said(comparison=runs(row("lambada_openai", -0.1, lost=5, won=5))))
    assert not any("last word" in line for line in said(comparison=runs(row("piqa", -7.8, lost=54, won=15))))


@pytest.mark.parametrize(
    ("others", "told"),
    [
        ((-1.00, -1.12), "7.4 times the mean loss of the other 2 benchmarks (1.06 points)"),
        ((-3.90, -3.90), "2.0 times the mean loss of the other 2 benchmarks (3.90 points)"),
        ((-3.91, -3.91), None),
        ((-1.0,), None),
        ((0.0, 0.0), None),
        ((1.0, -0.5), None),
    ],
)
def test_the_largest_loss_stands_out_from_twice_the_others_on(others, told):
    rows = [row(f"task{n}", points, lost=5, won=5) for n, points in enumerate(others)]
    lines = [line for line in worst(*rows) if "times the mean loss" in line]
    assert [told in line for line in lines] == ([True] if told else [])


def test_a_largest_loss_that_chance_can_make_does_not_stand_out():
    rows = [row("a", -7.8, lost=5, won=4), row("b", -1.0, lost=5, won=5), row("c", -1.0, lost=5, won=5)]
    assert not any("times the mean loss" in line for line in said(comparison=runs(*rows)))


@pytest.mark.parametrize(
    ("at_chance", "who"), [((), None), (("base", "pruned"), "the base itself"), (("pruned",), "this")]
)
def test_guessing_is_a_limit_of_whoever_guesses(at_chance, who):
    lines = said(comparison=runs(row("winogrande", -0.4, lost=20, won=18, chance=0.5, at_chance=at_chance)))
    found = [line for line in lines if "no better than guessing" in line]
    assert [f"winogrande (acc): {who}" in line for line in found] == ([True] if who else [])


@pytest.mark.parametrize(("limit", "told"), [(None, False), (200, True)])
def test_a_part_of_the_documents_is_a_limit(limit, told):
    assert any("at most 200 documents" in s for s in said(comparison=runs(row("piqa", 0.0), limit=limit))) == told


@pytest.mark.parametrize(("difference", "tie"), [(0.0002, True), (0.000201, False)])
def test_two_standard_errors_are_a_near_tie(difference, tie):
    margin = Margin(last_dropped=5, first_kept=2, difference=difference, standard_error=0.0001)
    assert any("near tie" in line for line in said(made.plan(margins=(margin,)))) == tie


@pytest.mark.parametrize(("base", "pruned", "low", "told", "by_chance"), [
    (1, 1, -0.1, False, False), (2, 1, -0.2, False, False), (0, 1, -0.01, True, True), (0, 1, 0.0, True, True),
    (0, 9, 0.001, True, False),
])  # fmt: skip
def test_loops_above_the_bases_are_a_limit_and_of_the_verdict(base, pruned, low, told, by_chance):
    measured = made.generation()
    change = Estimate(value=(pruned - base) / 32, low=low, high=0.9)
    loops = PairedLoops(texts=32, base=base, pruned=pruned, both=0, change=change)
    repetition = measured.repetition.model_copy(update={"loops": loops})
    lines = said(generation=measured.model_copy(update={"repetition": repetition}))
    assert any(f"loop: {pruned} of 32, against {base} of the base's" in line for line in lines) == told
    assert any("not distinguishable from chance" in line for line in lines) == by_chance
    sentence = verdict(None, repetition=repetition)[1]
    assert ("No more of its texts" in sentence) == (not told)
    assert ("not distinguishable from chance" in sentence) == by_chance


@pytest.mark.parametrize(("low", "told"), [(0.0, False), (0.001, True), (None, False)])
def test_more_repetition_is_a_limit_where_its_interval_is_above_zero(low, told):
    measured = made.generation()
    change = Estimate(value=0.2, low=low, high=None if low is None else 0.5)
    number = measured.repetition.seq_rep_4.model_copy(update={"change": change})
    repetition = measured.repetition.model_copy(update={"seq_rep_4": number})
    lines = said(generation=measured.model_copy(update={"repetition": repetition}))
    assert any("repeats itself more than the base" in line for line in lines) == told


def test_what_was_not_measured_is_said():
    bare = limits(made.plan_by_hand(), scores=None, comparison=None, generation=None)
    for part in ("No benchmark was run", "No free text was written", "given by hand and nothing was scored"):
        assert any(part in line for line in bare)
    full = said(comparison=made.benchmarks(), generation=pair_texts(["a"], made.written(["b"]), made.written(["c"])))
    assert (
        full[-1] == "Not measured: speed, safety and bias, long contexts, languages and tasks other than those above."
    )
    assert bare[-1] == "Not measured: speed, safety and bias, long contexts, other languages."
    assert not any(line.startswith("No ") for line in full)


def test_the_verdict_counts_every_benchmark_once():
    rows = (
        row("a", -7.8, lost=54, won=15), row("b", 7.8, lost=15, won=54), row("c", 0.0, lost=5, won=5),
        row("d", -0.4, lost=20, won=18, chance=0.5, at_chance=("base", "pruned")),
        made.task("e", "acc", (0.7, 0.01), (0.6, 0.01)),
    )  # fmt: skip
    assert verdict(runs(*rows), repetition=None)[0] == (
        "Verdict: of 5 benchmarks, 1 is worse (a), 1 better (b), 1 not distinguishable from the base (c),"
        " 1 at chance in the base already (d), 1 not tested."
    )
    assert verdict(None, repetition=None)[0] == "Verdict: what the removal cost on benchmarks was not measured."
