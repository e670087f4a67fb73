"""Which attentions go: the lowest scores, by rules that can be worked out by hand."""

from __future__ import annotations

import math

import pytest

from hubprune.core.artifacts import CalibrationRecord, CalibrationSource, DocumentScores, ImportanceScores
from hubprune.core.errors import PlanError
from hubprune.core.specs import DropSpec
from hubprune.pruning.aggregation import aggregate
from hubprune.pruning.selection import Shape, check_request, make_plan


def scores(*documents, aggregation="document", tokens=(4, 4, 4, 4)):
    """Scores of documents of one subset; each is a row of attention scores."""
    source = CalibrationSource(
        dataset="d", config=None, split="train", commit=None, weight=1.0, documents=len(documents), tokens=4
    )
    record = CalibrationRecord(
        mix="m", sources=(source,), max_tokens=4, seed=0, shuffle_buffer=1, token_sha256="0" * 64
    )
    rows = [
        DocumentScores(source=0, tokens=size, scores=ImportanceScores(attn=attn, mlp=attn, block=attn))
        for attn, size in zip(documents, tokens, strict=False)
    ]
    return aggregate(rows, record, aggregation=aggregation, dtype="float32", device="cpu")


def planned(drop, found):
    layers = len(found.mean.attn) if found else 6
    return make_plan(drop, found, Shape(num_hidden_layers=layers, name="acme/base"))


FIVE = scores((0.5, 0.1, 0.4, 0.2, 0.3))


@pytest.mark.parametrize(("number", "layers"), [(1, (1,)), (2, (1, 3)), (3, (1, 3, 4)), (4, (1, 2, 3, 4))])
def test_the_lowest_scores_go(number, layers):
    plan = planned(DropSpec(attn_drop=number), FIVE)
    assert plan.layers("attn") == layers
    assert plan.layers("mlp") == ()
    assert plan.selected_by == "score"


def test_the_order_of_selection_ranks_and_scores_are_kept():
    rows = planned(DropSpec(attn_drop=3), FIVE).dropped
    assert [(row.layer, row.score, row.rank) for row in rows] == [(1, 0.1, 1), (3, 0.2, 2), (4, 0.3, 3)]


def test_of_equal_scores_the_deeper_layer_goes():
    plan = planned(DropSpec(attn_drop=2), scores((0.1, 0.5, 0.1, 0.1)))
    assert [row.layer for row in plan.dropped] == [3, 2]


def test_protected_layers_stay_and_keep_their_rank():
    plan = planned(DropSpec(attn_drop=2, protect=(1, 4)), FIVE)
    assert [(row.layer, row.rank) for row in plan.dropped] == [(3, 2), (2, 4)]
    assert plan.protected == (1, 4)
    assert (plan.margins[0].last_dropped, plan.margins[0].first_kept) == (2, 0)


def test_given_layers_go_whatever_they_score():
    plan = planned(DropSpec(attn_layers=(2, 0)), FIVE)
    assert [(row.layer, row.score, row.rank) for row in plan.dropped] == [(0, 0.5, 5), (2, 0.4, 4)]
    assert (plan.selected_by, plan.margins) == ("hand", ())


def test_given_layers_need_no_scores():
    plan = planned(DropSpec(attn_layers=(3, 5)), None)
    assert [(row.layer, row.score, row.rank) for row in plan.dropped] == [(3, None, None), (5, None, None)]
    with pytest.raises(ValueError, match="needs scores"):
        planned(DropSpec(attn_drop=1), None)


# ---- margin ------------------------------------------------------------------------------------------------------


def test_the_margin_is_the_mean_difference_with_its_paired_standard_error():
    # Layer 1 minus layer 0, document by document: 0.1, 0.3, 0.2 and 0.2, so mean 0.2 and squares 0.01 + 0.01 = 0.02.
    found = scores((0.1, 0.2, 9), (0.2, 0.5, 9), (0.1, 0.3, 9), (0.3, 0.5, 9))
    margin = planned(DropSpec(attn_drop=1), found).margins[0]
    assert (margin.last_dropped, margin.first_kept) == (0, 1)
    assert margin.difference == pytest.approx(0.2)
    assert margin.standard_error == pytest.approx(math.sqrt(0.02 / 3 / 4))
    assert not margin.near_tie


def test_a_margin_within_two_standard_errors_is_a_near_tie():
    # Differences 0.1, -0.1, 0.1 and 0.1: mean 0.05, squares 3 * 0.0025 + 0.0225 = 0.03, standard error 0.05.
    found = scores((0.2, 0.3), (0.3, 0.2), (0.2, 0.3), (0.2, 0.3))
    margin = planned(DropSpec(attn_drop=1), found).margins[0]
    assert margin.difference == pytest.approx(0.05)
    assert margin.standard_error == pytest.approx(0.05)
    assert margin.near_tie


def test_by_token_the_margin_weighs_documents_by_their_length():
    # Lengths 1 and 3, differences 0.1 and 0.3: mean 1/4 * 0.1 + 3/4 * 0.3 = 0.25; residuals weighted: -0.15 and 0.15.
    found = scores((0.1, 0.2), (0.1, 0.4), aggregation="token", tokens=(1, 3))
    margin = planned(DropSpec(attn_drop=1), found).margins[0]
    assert margin.difference == pytest.approx(0.25)
    assert margin.standard_error == pytest.approx(math.sqrt(2 * 0.15**2 * 2 / 16))


def test_the_margin_of_what_helps_by_going_is_in_the_units_that_it_is_ranked_by():
    found = scores((-0.4, -0.2, 9), (-0.4, -0.2, 9))
    shape = Shape(num_hidden_layers=3, name="it", saved={("attn", n): 8.0 / 10**n for n in range(3)})
    margin = make_plan(DropSpec(attn_drop=1, per="bytes"), found, shape).margins[0]
    assert (margin.last_dropped, margin.first_kept) == (0, 1)
    assert margin.difference == pytest.approx(0.2)


def test_where_no_candidate_is_left_there_is_no_margin():
    assert planned(DropSpec(attn_drop=2, protect=(0, 1, 2)), FIVE).margins == ()


# ---- refusals ----------------------------------------------------------------------------------------------------

REFUSED = {
    "too many": (
        DropSpec(attn_drop=99),
        "Cannot drop 99 attention sublayers: acme/base has 28 layers. Pass --attn-drop 27 or less.",
    ),
    "all": (
        DropSpec(attn_drop=28),
        "Cannot drop 28 attention sublayers: acme/base has 28 layers. Pass --attn-drop 27 or less.",
    ),
    "more than are unprotected": (
        DropSpec(attn_drop=27, protect=(0, 1)),
        "Cannot drop 27 attention sublayers: acme/base has 28 layers, 2 of them protected. "
        "Pass --attn-drop 26 or less.",
    ),
    "everything protected": (
        DropSpec(attn_drop=1, protect=tuple(range(28))),
        "Cannot drop 1 attention sublayers: acme/base has 28 layers, 28 of them protected. Nothing is left to drop.",
    ),
    "all by hand": (
        DropSpec(attn_layers=tuple(range(28))),
        "Cannot drop 28 attention sublayers: acme/base has 28 layers. Name 27 or fewer in --attn-layers.",
    ),
    "a layer that is not there": (
        DropSpec(attn_layers=(3, 28, 40)),
        "--attn-layers names layer 28: acme/base has 28 layers, 0 to 27. Pass layers between 0 and 27.",
    ),
    "protecting a layer that is not there": (
        DropSpec(attn_drop=1, protect=(28,)),
        "--protect names layer 28: acme/base has 28 layers, 0 to 27. Pass layers between 0 and 27.",
    ),
}


@pytest.mark.parametrize(("drop", "message"), REFUSED.values(), ids=REFUSED)
def test_a_request_that_does_not_fit_is_refused_with_what_would(drop, message):
    with pytest.raises(PlanError) as caught:
        check_request(drop, Shape(num_hidden_layers=28, name="acme/base"))
    assert str(caught.value) == message
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "drop", [DropSpec(attn_drop=27), DropSpec(attn_drop=26, protect=(0, 27)), DropSpec(attn_layers=(27,))]
)
def test_a_request_that_just_fits_is_accepted(drop):
    check_request(drop, Shape(num_hidden_layers=28, name="acme/base"))


# ---- what has to stay --------------------------------------------------------------------------------------------

MIXED = Shape(num_hidden_layers=5, name="acme/base", attention_kinds=("full", "sliding", "sliding", "sliding", "full"))


def test_the_last_attention_of_a_kind_is_passed_over():
    # Ascending: 1, 3, 4, 2, 0.  Of the full ones 4 goes, and 0 has to stay; of the sliding ones 2 has to.
    assert make_plan(DropSpec(attn_drop=3), FIVE, MIXED).layers("attn") == (1, 3, 4)
    assert make_plan(DropSpec(attn_drop=2, protect=(1,)), FIVE, MIXED).layers("attn") == (3, 4)
    assert make_plan(DropSpec(attn_drop=3, protect=(1,)), FIVE, MIXED).layers("attn") == (2, 3, 4)


def test_more_than_all_but_one_of_each_kind_is_refused_without_scores():
    with pytest.raises(PlanError, match="Cannot drop 4 attention sublayers: acme/base has 5 layers") as caught:
        check_request(DropSpec(attn_drop=4), MIXED)
    assert caught.value.hint == "Pass --attn-drop 3 or less. One attention of each kind has to stay."


def test_a_joint_ranking_leaves_one_attention_and_one_mlp():
    plan = make_plan(DropSpec(joint_drop=8), FIVE, Shape(num_hidden_layers=5, name="acme/base"))
    assert (len(plan.layers("attn")), len(plan.layers("mlp"))) == (4, 4)
    with pytest.raises(PlanError, match="Cannot drop 9 sublayers: acme/base has 5 layers with 10 sublayers"):
        check_request(DropSpec(joint_drop=9), Shape(num_hidden_layers=5, name="acme/base"))


def test_whole_layers_go_by_their_block_scores():
    plan = make_plan(DropSpec(block_drop=2), FIVE, Shape(num_hidden_layers=5, name="acme/base"))
    assert plan.removed_layers == plan.layers("attn") == plan.layers("mlp") == (1, 3)
    assert {row.ranking for row in plan.dropped} == {"block"}


def test_attentions_and_mlps_are_ranked_apart_when_both_are_asked_for():
    plan = make_plan(DropSpec(attn_drop=1, mlp_drop="40%"), FIVE, Shape(num_hidden_layers=5, name="acme/base"))
    assert (plan.layers("attn"), plan.layers("mlp"), plan.removed_layers) == ((1,), (1, 3), (1,))
    assert [margin.ranking for margin in plan.margins] == ["attn", "mlp"]


def test_a_random_order_depends_on_the_seed_alone_and_reverse_order_begins_at_the_end():
    shape = Shape(num_hidden_layers=9, name="acme/base")
    chosen = [make_plan(DropSpec(attn_drop=4), None, shape, metric="random", seed=s).layers("attn") for s in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]
    assert make_plan(DropSpec(mlp_drop=2), None, shape, metric="reverse-order").layers("mlp") == (7, 8)
