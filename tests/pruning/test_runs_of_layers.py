"""The run of layers that goes by angular distance: that of whole models, one document at a time."""

from __future__ import annotations

import math

import pytest
import torch
from bases import LLAMA, random_tensors, write_base
from test_importance import calibration

from hubprune.core.architectures import architecture_of
from hubprune.core.errors import PlanError, RecipeError
from hubprune.core.recipe import Recipe, parse
from hubprune.core.specs import DropSpec
from hubprune.pruning.importance import Scoring
from hubprune.pruning.runs import plan_run, run_length, score_runs
from hubprune.pruning.selection import Shape

LAYERS = LLAMA["num_hidden_layers"]
SHAPE = Shape(num_hidden_layers=LAYERS, name="acme/base")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("llama") / "base"
    write_base(made, LLAMA, random_tensors(LLAMA, seed=3))
    return made


def scored(folder, length, reporter, **options):
    how = Scoring(architecture=architecture_of(LLAMA), metric="angular", **options)
    return score_runs(folder, calibration(), how, length=length, reporter=reporter)


def distances(folder, length):
    """Mean over the mix of the angle between the last token's states, from transformers' own hidden states."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()
    states = []
    for layer in model.model.layers:
        layer.register_forward_pre_hook(lambda _, args, kwargs: states.append(args[0][0, -1]), with_kwargs=True)
    model.model.norm.register_forward_pre_hook(lambda _, args: states.append(args[0][0, -1]))
    subsets = [], []
    for document in calibration().documents:
        states.clear()
        with torch.no_grad():
            model(torch.tensor([document.ids]), use_cache=False)
        pairs = zip(states, states[length:], strict=False)
        angles = (torch.cosine_similarity(x, y, dim=0).arccos() for x, y in pairs)
        subsets[document.source].append([float(angle) / math.pi for angle in angles])
    means = [torch.tensor(rows).mean(0) for rows in subsets]
    return (0.75 * means[0] + 0.25 * means[1]).tolist()


@pytest.mark.parametrize("length", [1, 2, 4])
def test_distances_are_those_of_the_whole_model(folder, length, reporter):
    found = scored(folder, length, reporter)
    assert len(found.mean.block) == LAYERS + 1 - length
    assert found.mean.block == pytest.approx(distances(folder, length), abs=1e-5)
    assert found.mean.kinds == ("block",)
    again = scored(folder, length, reporter, batch_size=1)
    assert again.mean.block == pytest.approx(found.mean.block, abs=1e-6)


def test_the_run_with_the_smallest_distance_goes_as_a_whole(folder, reporter):
    found = scored(folder, 2, reporter)
    plan = plan_run(DropSpec(block_drop=2), found, SHAPE)
    first = min(range(LAYERS - 1), key=found.mean.block.__getitem__)
    assert plan.removed_layers == (first, first + 1)
    assert {(row.rank, row.score, row.ranking) for row in plan.dropped} == {(1, found.mean.block[first], "block")}
    second = sorted(found.mean.block)[1] - found.mean.block[first]
    assert plan.margins[0].difference == pytest.approx(second)
    assert plan.metric == "angular"


def test_a_run_with_a_protected_layer_stays(folder, reporter):
    found = scored(folder, 2, reporter)
    first = plan_run(DropSpec(block_drop=2), found, SHAPE).removed_layers[0]
    plan = plan_run(DropSpec(block_drop=2, protect=(first,)), found, SHAPE)
    assert first not in plan.removed_layers
    assert plan.removed_layers[1] == plan.removed_layers[0] + 1
    with pytest.raises(PlanError, match="No run of 2 layers"):
        plan_run(DropSpec(block_drop=2, protect=(1, 3)), found, SHAPE)


def test_the_last_attention_of_a_kind_stays(folder, reporter):
    found = scored(folder, 2, reporter)
    first = plan_run(DropSpec(block_drop=2), found, SHAPE).removed_layers[0]
    kinds = ["full_attention"] * LAYERS
    kinds[first] = "sliding_attention"
    shape = Shape(num_hidden_layers=LAYERS, name="acme/base", attention_kinds=tuple(kinds))
    assert first not in plan_run(DropSpec(block_drop=2), found, shape).removed_layers


def test_a_share_of_the_layers_is_a_run_of_so_many():
    assert run_length(DropSpec(block_drop="40%"), 10) == 4


@pytest.mark.parametrize(
    "drop", [{"attn_drop": 2}, {"joint_drop": 2}, {"attn_layers": [1]}, {"block_drop": 2, "schedule": "iterative"}]
)
def test_other_rankings_are_refused_in_words(drop):
    schedule = {"schedule": drop["schedule"]} if "schedule" in drop else {}
    drop = {name: value for name, value in drop.items() if name != "schedule"}
    mix = {"name": "own", "subsets": [{"dataset": "texts.jsonl", "weight": 1.0}]}
    values = {"base": {"repo_id": "acme/base"}, "drop": drop, "metric": "angular", "calibration": mix, **schedule}
    with pytest.raises(RecipeError, match="--metric angular looks for one run of consecutive layers"):
        parse(Recipe, values)
