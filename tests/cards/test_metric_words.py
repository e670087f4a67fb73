"""What a card and the table of scores say of the metric and the schedule that were really used."""

from __future__ import annotations

from typing import get_args

import made
import pytest

from hubprune.cards.card import render
from hubprune.cards.overview import RUNTIMES
from hubprune.cards.removal import removal
from hubprune.commands import summary
from hubprune.commands.summary import scores_table
from hubprune.core.artifacts import Layout, Margin, Metric

FORMULAS = {
    "cosine": ("S = 1 − cos(X, Y)", "S = 1 - cos(X, Y)", "cosines were taken in float32"),
    "cosine-no-residual": ("S = 1 − cos(U, f(U))", "S = 1 - cos(U, f(U))", "cosines were taken in float32"),
    "relative-magnitude": ("S = |F| / |X + F|", "S = |F| / |X + F|", "norms were taken in float32"),
    "loss": ("S = L(without it) − L(base)", "S = rise of the loss", "logits and losses were taken in float32"),
    "angular": ("S = arccos(cos(X, Y)) / π", "S = arccos(cos(X, Y)) / pi", "angles were taken in float32"),
    "kl": ("S = KL(base ‖ without it)", "S = KL(base || without it)", "logits and divergences were taken in float32"),
}


def card(**changes):
    """Text of a card, on one line."""
    return " ".join(render(made.card_context(**changes)).split())


@pytest.mark.parametrize("metric", FORMULAS)
def test_card_and_table_name_the_formula_of_the_metric_and_no_other(metric):
    scores = made.scores().model_copy(update={"metric": metric})
    text = card(scores=scores, plan=made.plan(metric=metric))
    for name, (in_card, in_table, measured) in FORMULAS.items():
        assert (in_card in text) == (name == metric)
        assert (in_table in scores_table(scores)) == (name == metric)
        assert measured in text or name != metric


def test_scores_that_were_not_computed_have_no_column():
    scores = made.scores().only(("attn",)).model_copy(update={"metric": "loss"})
    found = removal(made.plan(metric="loss"), scores=scores, verification=made.verification(), picture="p.png")
    assert found.scores.columns == ("Rank", "Layer", "Attention S", "± SE", "Attention")
    assert found.picture.text.startswith("Bars of the scores of every layer's attention;")
    assert scores_table(scores).splitlines()[1].split() == ["layer", "attention", "±", "se"]


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        ("reverse-order", "The layers were chosen from the last one upwards, and by nothing else."),
        ("random", "The layers were chosen at random, by the seed of the recipe."),
        ("cosine", "The layers were chosen by score, lowest first."),
    ],
)
def test_the_card_says_how_the_layers_were_chosen(metric, said):
    found = removal(made.plan(metric=metric), scores=None, verification=made.verification())
    assert found.sentences[-1] == said


def test_rounds_are_told_in_their_order_with_the_scores_they_went_by():
    rows = [row.model_copy(update={"round": 3 - n}) for n, row in enumerate(made.plan().dropped[:3])]
    margin = Margin(last_dropped=4, first_kept=2, difference=0.1, standard_error=0.01)
    plan = made.plan(schedule="iterative", dropped=tuple(rows), margins=(margin,))
    found = removal(plan, scores=made.scores(), verification=made.verification())
    assert found.sentences[-1].endswith(
        "by score, the lowest in every round, and what was left was scored again after every drop."
    )
    told = next(note for note in found.score_notes if note.startswith("Dropped round by round"))
    places = [told.index(f"of layer {row.layer} at {row.score:.6f}") for row in reversed(rows)]
    assert places == sorted(places)
    assert "The table has the scores of the whole base" in " ".join(found.score_notes)
    assert "Margins are those of the last round." in found.score_notes


def test_one_shot_tells_no_rounds():
    found = removal(made.plan(), scores=made.scores(), verification=made.verification())
    assert not any("round" in note for note in found.score_notes)


def test_every_metric_that_computes_has_its_formula_and_every_layout_says_who_runs_it():
    assert set(FORMULAS) == set(summary.FORMULAS) == set(get_args(Metric)) - {"reverse-order", "random"}
    assert set(RUNTIMES) == set(get_args(Layout))
