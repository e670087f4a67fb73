"""Scores that are losses: the greedy set is that of whole models, one after the other, for far fewer runs of layers."""

from __future__ import annotations

import json
from functools import cache

import pytest
import torch
from bases import LLAMA, plan, random_tensors, write_base
from test_importance import calibration
from test_iterative import LAYERS, chosen, request
from test_leave_one_out import NEAR, logits_of

from hubprune.core.architectures import architecture_of
from hubprune.core.bypass import bypassed
from hubprune.core.console import Reporter
from hubprune.core.errors import ScoringError
from hubprune.core.files import StageStore
from hubprune.core.specs import DropSpec
from hubprune.pruning import rooms
from hubprune.pruning.importance import Scoring
from hubprune.pruning.iterative import drop_in_rounds
from hubprune.pruning.loss_scores import LossScorer
from hubprune.pruning.selection import PARTS, Shape, make_plan
from hubprune.pruning.variants import RANKED

SHAPE = Shape(num_hidden_layers=LAYERS, name="acme/base")
WEIGHTS = (0.75, 0.25)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("llama") / "base"
    write_base(made, LLAMA, random_tensors(LLAMA, seed=3))
    return made


class Opening:
    """Opens scorers of a base, and keeps them."""

    def __init__(self, folder, metric, kinds, **options):
        self.folder, self.kinds, self.opened = folder, kinds, []
        family = architecture_of(json.loads((folder / "config.json").read_text()))
        self.scoring = Scoring(architecture=family, metric=metric, **{"batch_size": 3, **options})

    def __call__(self, *, keeps_states=True):
        scorer = LossScorer(
            self.folder, calibration(), self.scoring, self.kinds, shape=SHAPE, keeps_states=keeps_states
        )
        self.opened.append(scorer)
        return scorer


def scores(folder, metric, kinds=("attn", "mlp", "block"), **options):
    scorer = Opening(folder, metric, kinds, **options)(keeps_states=False)
    scorer.run(lambda amount=1: None)
    return scorer.scores()


def rounds(opening, drop, store):
    store = StageStore(store)
    return drop_in_rounds(drop, SHAPE, open_scorer=opening, store=store, key="base", reporter=Reporter(quiet=True))


@cache
def model_of(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def whole_model(folder, gone, metric):
    """The mix's mean of a whole model's loss, or of its divergence from the base, with sublayers bypassed."""
    model, family = model_of(folder), architecture_of(json.loads((folder / "config.json").read_text()))
    layers = {kind: tuple(layer for k, layer in gone if k == kind) for kind in ("attn", "mlp")}
    subsets = [], []
    for document in calibration().documents:
        base = logits_of(model, document)
        with bypassed(model, plan(LAYERS, **layers), family):
            pruned = logits_of(model, document)
        loss = -pruned.gather(1, torch.tensor(document.ids[1:])[:, None]).mean()
        kl = (base.exp() * (base - pruned)).sum(-1).mean()
        subsets[document.source].append(float(loss if metric == "loss" else kl))
    return sum(weight * sum(values) / len(values) for weight, values in zip(WEIGHTS, subsets, strict=True))


def greedy(folder, ranking, count, metric):
    """What goes in each round by whole models, with the score that it goes by."""
    gone, found = [], []
    for _ in range(count):
        before = whole_model(folder, gone, metric) if metric == "loss" else 0.0
        if ranking == "block":
            steps = [(("attn", layer), ("mlp", layer)) for layer in range(LAYERS)]
        else:
            steps = [((kind, layer),) for kind in PARTS[ranking] for layer in range(LAYERS)]
        left = [step for step in steps if not set(step) & set(gone)]
        values = {step: whole_model(folder, [*gone, *step], metric) - before for step in left}
        best = min(left, key=values.__getitem__)
        gone += best
        found.append((sorted(best), values[best]))
    return found


@pytest.mark.parametrize("metric", ["loss", "kl"])
def test_a_score_is_what_the_whole_model_loses_without_the_sublayer(folder, metric):
    found = scores(folder, metric)
    base = whole_model(folder, [], metric)
    for layer in range(LAYERS):
        for kind, gone in (("attn", ["attn"]), ("mlp", ["mlp"]), ("block", ["attn", "mlp"])):
            lost = whole_model(folder, [(k, layer) for k in gone], metric) - base
            assert getattr(found.mean, kind)[layer] == pytest.approx(lost, abs=NEAR)
    assert found.metric == metric


def test_documents_count_with_the_tokens_that_are_predicted(folder):
    found = scores(folder, "loss", aggregation="token")
    assert [row.tokens for row in found.per_document] == [len(d.ids) - 1 for d in calibration().documents]


def test_only_what_is_ranked_is_computed(folder):
    every, alone = scores(folder, "loss"), scores(folder, "loss", ("mlp",))
    assert alone.mean.attn == alone.mean.block == ()
    assert alone.mean.mlp == pytest.approx(every.mean.mlp, abs=NEAR)
    assert every.only(("mlp",)).mean.mlp == every.mean.mlp
    assert every.only(("mlp",)).per_document[0].scores.attn == ()
    named = make_plan(DropSpec(attn_layers=(1,), mlp_drop=1), alone, SHAPE, metric="loss")
    assert [(row.kind, row.rank) for row in named.dropped] == [("attn", None), ("mlp", 1)]
    assert [row.score is None for row in named.dropped] == [True, False]


@pytest.mark.parametrize(("ranking", "count"), [("attn", 3), ("mlp", 2), ("block", 2), ("joint", 4)])
@pytest.mark.parametrize("metric", ["loss", "kl"])
def test_the_greedy_set_is_that_of_whole_models(folder, tmp_path, metric, ranking, count):
    _, found = rounds(Opening(folder, metric, RANKED[ranking]), request(ranking, count), tmp_path)
    expected = greedy(folder, ranking, count, metric)
    assert chosen(found) == [step for step, _ in expected]
    each = {row.round: row.score for row in found.dropped}
    assert [each[number] for number in sorted(each)] == pytest.approx([value for _, value in expected], abs=2 * NEAR)
    assert found.metric == metric
    assert found.margins[0].difference >= 0


@pytest.mark.parametrize("metric", ["loss", "kl"])
def test_chunks_and_rounds_that_were_interrupted_change_nothing(folder, tmp_path, metric, monkeypatch):
    whole, drop = rounds(Opening(folder, metric, ("attn",)), request("attn", 3), tmp_path / "whole"), request("attn", 3)
    rounds(Opening(folder, metric, ("attn",)), request("attn", 2), tmp_path / "again")
    again = Opening(folder, metric, ("attn",))
    assert near(rounds(again, drop, tmp_path / "again"), whole)
    assert len(again.opened) == 1
    monkeypatch.setattr(rooms, "available_bytes", lambda: 200_000)
    monkeypatch.setattr(rooms, "device_bytes", lambda device: 200_000)
    chunked = Opening(folder, metric, ("attn",))
    assert near(rounds(chunked, drop, tmp_path / "chunked"), whole)
    assert len(chunked.opened[0].left_out._rooms.chunks) > 1


def near(one, other):
    (first, plan), (second, expected) = one, other
    assert first.mean.attn == pytest.approx(second.mean.attn, abs=NEAR)
    assert chosen(plan) == chosen(expected)
    return [row.score for row in plan.dropped] == pytest.approx([row.score for row in expected.dropped], abs=NEAR)


def test_attentions_go_before_mlps_and_each_round_computes_one_kind(folder, tmp_path):
    opening = Opening(folder, "loss", ("attn", "mlp"))
    _, found = rounds(opening, DropSpec(attn_drop=2, mlp_drop=2), tmp_path)
    assert [row.kind for row in found.dropped] == ["attn", "attn", "mlp", "mlp"]
    gone = [("attn", row.layer) for row in found.dropped if row.kind == "attn"]
    before = whole_model(folder, gone, "loss")
    lost = {layer: whole_model(folder, [*gone, ("mlp", layer)], "loss") - before for layer in range(LAYERS)}
    assert found.dropped[2].layer == min(lost, key=lost.__getitem__)


def test_rounds_take_half_of_what_leaving_out_anew_would(folder, tmp_path):
    opening = Opening(folder, "loss", ("attn",))
    rounds(opening, request("attn", LAYERS - 1), tmp_path)
    (scorer,) = opening.opened
    anew = sum(LAYERS + (LAYERS - number) * (LAYERS + 1) / 2 for number in range(LAYERS - 1))
    assert scorer.layer_runs < anew


def test_documents_without_a_second_token_are_refused(folder):
    scoring = Opening(folder, "loss", ("attn",)).scoring
    scorer = LossScorer(folder, calibration(lengths=(1, 1)), scoring, ("attn",), shape=SHAPE)
    scorer.run(lambda amount=1: None)
    with pytest.raises(ScoringError, match="No document has two tokens"):
        scorer.scores()
