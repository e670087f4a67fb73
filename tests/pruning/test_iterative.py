"""Drops in rounds: the same as a fresh pass over the whole model after every drop, for less work."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bases import LLAMA, MISTRAL, SHARED_DATA, random_tensors, write_base
from safetensors.torch import load_file
from test_importance import calibration, planted, scored

from hubprune.core import streaming
from hubprune.core.architectures import architecture_of
from hubprune.core.console import Reporter
from hubprune.core.errors import DiskSpaceError, PlanError, RecipeError
from hubprune.core.files import StageStore
from hubprune.core.recipe import Recipe, parse
from hubprune.core.specs import DropSpec
from hubprune.core.streaming import WeightReader
from hubprune.pruning.importance import Scorer, Scoring
from hubprune.pruning.iterative import drop_in_rounds, in_rounds
from hubprune.pruning.selection import Shape, make_plan
from hubprune.workflows.run import Run, score

OUTPUTS = {"attn": "self_attn.o_proj.weight", "mlp": "mlp.down_proj.weight"}
LAYERS, BATCHES = 5, 3
SHAPE = Shape(num_hidden_layers=LAYERS, name="acme/base")


class Counting:
    """Opens scorers of a base, and counts the layers that they run, one batch each."""

    def __init__(self, folder, *, metric="cosine", documents=None, batch_size=3, dtype="float32"):
        self.folder, self.documents = Path(folder), documents or calibration()
        config = json.loads((self.folder / "config.json").read_text())
        self.scoring = Scoring(architecture=architecture_of(config), metric=metric, batch_size=batch_size, dtype=dtype)
        self.batches, self.opened = 0, 0

    def __call__(self):
        self.opened += 1
        scorer, counting = Scorer(self.folder, self.documents, self.scoring, keeps_states=True), self
        really = scorer.run

        def run(advance, *, start=0):
            def count(amount=1, /):
                counting.batches += amount
                advance(amount)

            really(count, start=start)

        scorer.run = run
        return scorer


def dropped_in_rounds(open_scorer, drop, folder, *, shape=SHAPE, key="base"):
    return drop_in_rounds(
        drop, shape, open_scorer=open_scorer, store=StageStore(folder), key=key, reporter=Reporter(quiet=True)
    )


def chosen(plan):
    """Kind and layer of what goes, in the order of the rounds; both kinds of a whole layer in one."""
    rounds = {}
    for row in plan.dropped:
        rounds.setdefault(row.round, []).append((row.kind, row.layer))
    return [sorted(rows) for _, rows in sorted(rounds.items())]


def brute_force(folder, tmp_path, ranking, count, *, metric="cosine", protect=(), documents=None):
    """What goes when the whole model is scored anew after every drop, with what went set to zero."""
    config, tensors = json.loads((Path(folder) / "config.json").read_text()), load_all(folder)
    gone, found = [], []
    for number in range(count):
        zeroed = dict(tensors)
        for kind, layer in gone:
            name = f"model.layers.{layer}.{OUTPUTS[kind]}"
            zeroed[name] = torch.zeros_like(tensors[name])
        base = write_base(tmp_path / f"{ranking}-{metric}-{number}", config, zeroed)
        mean = scored(base.folder, Reporter(quiet=True), documents, metric=metric).mean
        kinds = {"attn": ["attn"], "mlp": ["mlp"], "joint": ["attn", "mlp"], "block": ["block"]}[ranking]
        rows = [
            (score, -layer, kind == "mlp", kind, layer)
            for kind in kinds
            for layer, score in enumerate(getattr(mean, kind))
            if layer not in protect and ("attn" if kind == "block" else kind, layer) not in gone
        ]
        kind, layer = min(rows)[-2:]
        new = [("attn", layer), ("mlp", layer)] if kind == "block" else [(kind, layer)]
        gone += new
        found.append(new)
    return found


def load_all(folder):
    tensors = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


def request(ranking, count, **more):
    return DropSpec(**{f"{ranking}_drop": count}, **more)


COUNTS = {"attn": 4, "mlp": 4, "block": 3, "joint": 7}
METRICS = ("cosine", "cosine-no-residual", "relative-magnitude")


@pytest.fixture(scope="module", params=["llama", "mistral", "planted"])
def folder(request, tmp_path_factory):
    """Bases with nothing in common but their size."""
    made = tmp_path_factory.mktemp(request.param)
    if request.param == "planted":
        return planted(made).folder
    config = {"llama": LLAMA, "mistral": MISTRAL}[request.param]
    return write_base(made / "base", config, random_tensors(config, seed=11)).folder


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("ranking", COUNTS)
def test_rounds_drop_what_fresh_passes_over_the_zeroed_model_would(folder, tmp_path, ranking, metric):
    expected = brute_force(folder, tmp_path, ranking, COUNTS[ranking], metric=metric)
    _, plan = dropped_in_rounds(Counting(folder, metric=metric), request(ranking, COUNTS[ranking]), tmp_path / "home")
    assert chosen(plan) == expected
    assert (plan.schedule, plan.metric) == ("iterative", metric)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("ranking", COUNTS)
def test_one_shot_drops_the_lowest_of_one_pass(folder, tmp_path, ranking, metric):
    found = scored(folder, Reporter(quiet=True), metric=metric)
    kinds = {"joint": ["attn", "mlp"], "block": ["block"]}.get(ranking, [ranking])
    rows = sorted(
        (s, -layer, kind == "mlp", kind) for kind in kinds for layer, s in enumerate(getattr(found.mean, kind))
    )
    expected = sorted((kind, -layer) for _, layer, _, kind in rows[: COUNTS[ranking]])
    plan = make_plan(request(ranking, COUNTS[ranking]), found, SHAPE, metric=metric)
    taken = {(row.kind if ranking != "block" else "block", row.layer) for row in plan.dropped}
    assert sorted(taken) == expected


def test_rounds_can_choose_otherwise_than_one_shot(tmp_path):
    differing = 0
    for seed in range(4):
        base = write_base(tmp_path / f"base {seed}", LLAMA, random_tensors(LLAMA, seed=seed))
        first, plan = dropped_in_rounds(Counting(base.folder), request("joint", 6), tmp_path / f"home {seed}")
        differing += plan.sublayers != make_plan(request("joint", 6), first, SHAPE).sublayers
    assert differing


def test_protected_layers_stay_and_ranks_are_those_of_the_round(folder, tmp_path):
    expected = brute_force(folder, tmp_path, "joint", 4, protect=(2, 3))
    _, plan = dropped_in_rounds(Counting(folder), request("joint", 4, protect=(2, 3)), tmp_path / "home")
    assert chosen(plan) == expected
    assert all(row.rank >= 1 and row.layer not in (2, 3) for row in plan.dropped)
    assert [row.round for row in plan.dropped] == [1, 2, 3, 4]


def test_all_attentions_go_before_the_first_mlp(folder, tmp_path):
    _, plan = dropped_in_rounds(Counting(folder), DropSpec(attn_drop=2, mlp_drop="40%"), tmp_path / "home")
    assert [(row.kind, row.round) for row in plan.dropped] == [("attn", 1), ("attn", 2), ("mlp", 3), ("mlp", 4)]
    assert chosen(plan)[:2] == brute_force(folder, tmp_path, "attn", 2)
    assert [margin.ranking for margin in plan.margins] == ["attn", "mlp"]


def test_named_sublayers_are_gone_before_the_first_round(tmp_path):
    base = write_base(tmp_path / "base", LLAMA)
    _, plan = dropped_in_rounds(Counting(base.folder), DropSpec(attn_layers=(1,), mlp_drop=2), tmp_path / "home")
    tensors = random_tensors(LLAMA)
    tensors["model.layers.1.self_attn.o_proj.weight"].zero_()
    without = write_base(tmp_path / "without", LLAMA, tensors)
    assert [(row.kind, row.round) for row in plan.dropped[:1]] == [("attn", None)]
    expected = brute_force(without.folder, tmp_path, "mlp", 2)
    assert [[(row.kind, row.layer)] for row in plan.dropped[1:]] == expected


def test_scores_are_those_of_the_whole_base_and_margins_those_of_the_last_round(tmp_path, llama, reporter):
    first, plan = dropped_in_rounds(Counting(llama.folder), request("attn", 3), tmp_path / "home")
    assert first.mean == scored(llama.folder, reporter, batch_size=3).mean
    tensors = load_all(llama.folder)
    for row in plan.dropped[:2]:
        tensors[f"model.layers.{row.layer}.self_attn.o_proj.weight"].zero_()
    base = write_base(tmp_path / "two gone", LLAMA, tensors)
    last = scored(base.folder, reporter, batch_size=3)
    row, margin = plan.dropped[2], plan.margins[0]
    assert (row.score, row.rank, row.round) == (pytest.approx(last.mean.attn[row.layer], abs=1e-9), 1, 3)
    assert margin.last_dropped == row.layer
    assert margin.difference == pytest.approx(last.mean.attn[margin.first_kept] - row.score, abs=1e-9)


# ---- the work that is done ---------------------------------------------------------------------------------------


def test_layers_below_a_drop_are_neither_run_nor_read_again(tmp_path, llama, monkeypatch):
    read, really = [], WeightReader.layer

    def layer(self, prefix, *args, **options):
        read.append(int(prefix.split(".")[-2]))
        return really(self, prefix, *args, **options)

    monkeypatch.setattr(WeightReader, "layer", layer)
    counting = Counting(llama.folder)
    _, plan = dropped_in_rounds(counting, request("joint", 6), tmp_path / "home")
    gone, expected = set(), list(range(LAYERS))
    for row in plan.dropped[:-1]:
        gone.add((row.kind, row.layer))
        whole = {i for i in range(LAYERS) if {("attn", i), ("mlp", i)} <= gone}
        expected += [i for i in range(row.layer, LAYERS) if i not in whole]
    assert read == expected
    assert counting.batches == len(expected) * BATCHES
    assert len(expected) < 6 * LAYERS
    assert counting.opened == 1


def test_the_weights_of_what_is_gone_are_not_read(tmp_path, llama):
    scorer = Counting(llama.folder)()
    scorer.model.bypass("attn", 2)
    names = scorer.model._places(2)
    assert set(names) == {
        "mlp.down_proj.weight", "mlp.gate_proj.weight", "mlp.up_proj.weight", "post_attention_layernorm.weight"
    }  # fmt: skip


def test_rounds_that_were_done_are_not_done_again(tmp_path, llama):
    one, other = Counting(llama.folder), Counting(llama.folder)
    _, plan = dropped_in_rounds(one, request("attn", 3), tmp_path / "home")
    assert dropped_in_rounds(other, request("attn", 3), tmp_path / "home")[1] == plan
    assert (other.opened, other.batches) == (0, 0)
    _, more = dropped_in_rounds(other, request("attn", 4), tmp_path / "home")
    assert more.dropped[:3] == plan.dropped
    # One pass makes the states anew, without what is gone.
    assert (other.opened, other.batches) == (1, LAYERS * BATCHES)
    assert more == dropped_in_rounds(Counting(llama.folder), request("attn", 4), tmp_path / "elsewhere")[1]


def test_a_run_that_was_stopped_goes_on_with_the_round_it_was_in(tmp_path, llama, monkeypatch):
    whole = dropped_in_rounds(Counting(llama.folder), request("joint", 5), tmp_path / "whole")[1]
    stopped = Counting(llama.folder)
    stopped_after(stopped, runs=3, monkeypatch=monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        dropped_in_rounds(stopped, request("joint", 5), tmp_path / "home")
    monkeypatch.undo()
    assert len(list((tmp_path / "home" / "stages").glob("rounds-*"))) == 3
    again = Counting(llama.folder)
    assert dropped_in_rounds(again, request("joint", 5), tmp_path / "home")[1] == whole
    assert again.batches < 2 * LAYERS * BATCHES


def stopped_after(counting, *, runs, monkeypatch):
    """Let a scorer be interrupted in the middle of the run after so many."""
    really, done = Scorer.run, []

    def run(self, advance, *, start=0):
        done.append(start)
        if len(done) > runs:
            raise KeyboardInterrupt
        really(self, advance, start=start)

    monkeypatch.setattr(Scorer, "run", run)


def test_another_request_has_other_rounds(tmp_path, llama):
    dropped_in_rounds(Counting(llama.folder), request("attn", 2), tmp_path)
    _, plan = dropped_in_rounds(Counting(llama.folder), request("attn", 2, protect=(0, 1, 2)), tmp_path)
    assert set(plan.layers("attn")) <= {3, 4}


def test_rounds_by_another_saving_are_other_rounds(tmp_path, llama):
    dropped_in_rounds(Counting(llama.folder), request("joint", 1), tmp_path)
    saved = {(kind, layer): 0.0 for kind in ("attn", "mlp") for layer in range(LAYERS)} | {("attn", 2): 1.0}
    shape = replace(SHAPE, saved=saved)
    _, plan = dropped_in_rounds(Counting(llama.folder), request("joint", 1), tmp_path, shape=shape)
    assert plan.sublayers == (("attn", 2),)


# ---- room and refusals -------------------------------------------------------------------------------------------


def test_rounds_are_the_same_from_a_mapped_file(tmp_path, llama, monkeypatch):
    expected = dropped_in_rounds(Counting(llama.folder), request("joint", 4), tmp_path / "memory")[1]
    monkeypatch.setattr(streaming, "available_bytes", lambda: 0)
    assert dropped_in_rounds(Counting(llama.folder), request("joint", 4), tmp_path / "file")[1] == expected


def test_without_room_for_the_states_of_all_layers_nothing_is_run(tmp_path, llama, monkeypatch):
    monkeypatch.setattr(streaming, "available_bytes", lambda: 0)
    monkeypatch.setattr(streaming.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10**4}))
    counting = Counting(llama.folder)
    with pytest.raises(DiskSpaceError, match=r"keeps those that enter every layer\. Set TMPDIR .* --schedule one-shot"):
        dropped_in_rounds(counting, request("attn", 2), tmp_path / "home")
    assert counting.batches == 0


def test_the_last_attention_stays_however_little_it_does(tmp_path):
    tensors = random_tensors(LLAMA)
    for layer in range(LAYERS):
        tensors[f"model.layers.{layer}.self_attn.o_proj.weight"] *= 1e-3
    base = write_base(tmp_path / "base", LLAMA, tensors)
    _, plan = dropped_in_rounds(Counting(base.folder), request("joint", 6), tmp_path / "home")
    assert [row.kind for row in plan.dropped] == ["attn"] * 4 + ["mlp"] * 2
    assert [row.rank for row in plan.dropped] == [1, 1, 1, 1, 2, 2]


def test_a_request_that_does_not_fit_is_refused_before_a_layer_is_run(tmp_path, llama):
    counting = Counting(llama.folder)
    with pytest.raises(PlanError, match=r"Cannot drop 9 sublayers: acme/base has 5 layers with 10 sublayers\."):
        dropped_in_rounds(counting, request("joint", 9), tmp_path / "home")
    assert counting.opened == 0


def test_an_order_that_no_score_changes_is_numbered_without_any():
    plan = in_rounds(make_plan(DropSpec(block_drop=2), None, SHAPE, metric="reverse-order"))
    assert [(row.kind, row.layer, row.round) for row in plan.dropped] == [
        ("attn", 4, 1), ("mlp", 4, 1), ("attn", 3, 2), ("mlp", 3, 2)
    ]  # fmt: skip
    assert plan.schedule == "iterative"
    both = in_rounds(make_plan(DropSpec(attn_drop=2, mlp_drop=1), None, SHAPE, metric="random", seed=3))
    assert [row.round for row in both.dropped] == [1, 2, 3]


def test_rounds_of_what_is_named_by_hand_are_refused():
    with pytest.raises(RecipeError, match=r"--schedule iterative chooses by rank.* or leave it out\."):
        recipe_of(drop={"attn_layers": [1]})


def test_scores_of_a_metric_that_computes_none_are_refused(tmp_path):
    store = StageStore(tmp_path)
    for metric in ("random", "reverse-order"):
        made = recipe_of(drop={"attn_drop": 1}, metric=metric)
        with pytest.raises(RecipeError, match=f"--metric {metric} is an order of layers and computes no scores"):
            score(Run(made, None, Reporter(quiet=True), store))


def recipe_of(**values):
    mix = {"name": "own", "subsets": [{"dataset": "acme/data", "weight": 1}]}
    return parse(Recipe, {"base": {"repo_id": "acme/base"}, "calibration": mix, "schedule": "iterative", **values})


# ---- a model that learned something ------------------------------------------------------------------------------


@pytest.mark.skipif(not (SHARED_DATA / "models" / "stories260K").is_dir(), reason="the stories260K model is not here")
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("ranking", COUNTS)
def test_rounds_on_stories260k_are_those_of_fresh_passes(tmp_path, ranking, metric):
    folder, documents = SHARED_DATA / "models" / "stories260K", calibration(vocabulary=512)
    count = min(COUNTS[ranking], 5)  # with the sixth, no attention would be left
    expected = brute_force(folder, tmp_path, ranking, count, metric=metric, documents=documents)
    counting = Counting(folder, metric=metric, documents=documents)
    _, plan = dropped_in_rounds(counting, request(ranking, count), tmp_path / "home")
    assert chosen(plan) == expected
    assert counting.batches < count * LAYERS * BATCHES
