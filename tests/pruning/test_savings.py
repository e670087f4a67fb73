"""What sublayers save is what files and caches are smaller by; the search finds what trying every plan finds."""

from __future__ import annotations

import itertools
import json

import pytest
from bases import FAMILIES, LLAMA, MISTRAL, family_tensors, plan, write_base, written
from hypothesis import given
from hypothesis import strategies as st
from test_selection import scores

from hubprune.core.amounts import read_targets
from hubprune.core.artifacts import WidthPlan
from hubprune.core.config import read_structure
from hubprune.core.errors import RecipeError
from hubprune.core.memory import kv_cache_bytes
from hubprune.core.recipe import Recipe, parse
from hubprune.core.specs import DropSpec
from hubprune.core.weights import open_weights
from hubprune.pruning.checkpoint import count_parameters
from hubprune.pruning.frontier import Choice, frontier, most_saved, search, thinned
from hubprune.pruning.saving import costs_of, tensors_of
from hubprune.pruning.selection import Shape, ranked

KINDS = {"llama": LLAMA, "mistral": MISTRAL, **FAMILIES}


@pytest.mark.parametrize("family", KINDS)
def test_what_a_sublayer_saves_is_what_the_files_and_the_cache_are_smaller_by(family, tmp_path):
    config = KINDS[family]
    made = write_base(tmp_path / "base", config, family_tensors(config))
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    structure = read_structure(config)
    architecture, last = structure.architecture, structure.num_hidden_layers - 1
    base = open_weights(tmp_path / "base")
    found = costs_of(tensors_of(base), config, structure, at="9x3")
    assert found.before("bytes") == base.size()
    assert found.before("params") == count_parameters(base, config, architecture)
    assert found.before("kv") == kv_cache_bytes(config, gone=(), tokens=9, sequences=3)
    kept = [*structure.mlp_widths]
    kept[last] -= 8
    narrower = WidthPlan(before=structure.mlp_widths, kept=tuple(kept))
    plans = {"attn": plan(last + 1, attn=(last,)), "mlp": plan(last + 1, mlp=(last,))}
    plans["width"] = plan(last + 1).model_copy(update={"widths": narrower, "layout": "pruned"})
    for kind, drop in plans.items():
        after = open_weights(written(made, drop, tmp_path / kind))
        saved = {
            goal: found.narrower(goal, last, kept[last]) if kind == "width" else found.saved(goal, kind, last)
            for goal in ("bytes", "params", "kv", "memory")
        }
        assert saved["bytes"] == base.size() - after.size() > 0
        assert saved["params"] == found.before("params") - count_parameters(after, config, architecture)
        gone = [last] if kind == "attn" else []
        assert saved["kv"] == found.before("kv") - kv_cache_bytes(config, gone=gone, tokens=9, sequences=3)
        assert saved["memory"] == saved["bytes"] + saved["kv"]


def test_operations_are_those_of_the_matrices_and_of_what_the_attention_looks_back_at():
    config = {**MISTRAL, "sliding_window": 4}
    structure = read_structure(config)
    tensors = {
        "model.embed_tokens.weight": (10, 8), "model.layers.0.self_attn.q_proj.weight": (8, 8),
        "model.layers.0.input_layernorm.weight": (8,), "model.layers.0.mlp.up_proj.weight": (16, 8),
    }  # fmt: skip
    from hubprune.pruning.saving import Stored

    found = costs_of({n: Stored(s, 32) for n, s in tensors.items()}, config, structure, at="6")
    seen = 1 + 2 + 3 + 4 + 4 + 4  # by the six tokens of a text
    heads = config["num_attention_heads"]
    width = heads * (config.get("head_dim") or config["hidden_size"] // heads)
    assert seen == 18
    assert found.saved("flops", "attn", 0) == 2 * 64 + 4 * width * seen // 6
    assert found.saved("flops", "mlp", 0) == 2 * 128


LAYERS = 4
SHAPE = Shape(num_hidden_layers=LAYERS, name="it", attention_kinds=("full", "sliding") * 2)
losses = st.integers(-3, 20).map(lambda n: n / 8)
row = st.tuples(losses, losses, losses, losses, st.integers(0, 5), st.integers(0, 5))


def made(rows):
    """Every layer keeps all, or loses attention, MLP, both at a loss of their own, or neurons; two targets."""
    found = []
    for layer, (attn, mlp, both, less, one, two) in enumerate(rows):
        found.append([
            Choice(layer, saved=(0, 0)), Choice(layer, "attn", loss=attn, saved=(one, 1)),
            Choice(layer, "mlp", loss=mlp, saved=(two, 0)), Choice(layer, "block", loss=both, saved=(one + two, 1)),
            Choice(layer, "width", 8, loss=less, saved=(two // 2, 0)),
        ])  # fmt: skip
    return found


def every_plan(choices):
    """Return the cost and the savings of all plans that keep an attention of every kind and an MLP."""
    for picked in itertools.product(*choices):
        left = {SHAPE.needed(k, c.layer) for c in picked for k in ("attn", "mlp") if k not in c.gone}
        if left == {"full", "sliding", "mlp"}:
            saved = tuple(map(sum, zip(*(c.saved for c in picked), strict=True)))
            yield (sum(max(0, c.loss) for c in picked), saved, sum(c.loss for c in picked)), saved


@given(st.lists(row, min_size=LAYERS, max_size=LAYERS), st.integers(0, 30), st.integers(0, 3))
def test_the_search_finds_what_trying_every_plan_finds(rows, first, second):
    choices = made(rows)
    tried = list(every_plan(choices))
    fitting = [cost for cost, saved in tried if saved[0] >= first and saved[1] >= second]
    found = search(choices, SHAPE, (first, second))
    assert (found.cost if found else None) == min(fitting, default=None)
    if found:
        assert (found.cost, found.saved) in tried
        assert found.loss == sum(choice.loss for choice in found.choices)
    alone = [[Choice(c.layer, c.part, c.width, loss=c.loss, saved=c.saved[:1]) for c in row] for row in choices]
    assert most_saved(alone, SHAPE) == max(saved[0] for _, saved in tried)
    points = frontier(alone, SHAPE)
    for point in points:
        best = min((rise, saved[:1], loss) for (rise, saved, loss), _ in tried if saved[0] >= point.saved[0])
        assert point.cost == best
    assert points[-1].saved[0] == max(saved[0] for _, saved in tried)
    assert [p.saved for p in points] == sorted({p.saved for p in points})
    assert {*thinned(points, most=3)} <= {*points}


def test_no_more_goes_than_is_asked_for_where_the_base_is_better_off_without():
    rows = [(-1.0, 0.5, 0.5, 0.5, 2, 2)] * LAYERS
    (one,) = search(made(rows), SHAPE, (2, 0)).choices
    assert (one.part, one.loss) == ("attn", -1.0)
    assert search(made(rows), SHAPE, (0, 0)).choices == ()


def test_scores_are_ranked_by_what_they_are_for():
    one = scores((0.4, 0.1, -0.2, 0.3))
    found = one.model_copy(update={"mean": one.mean.model_copy(update={"mlp": (0.2, 0.6, 0.9, 0.05)})})
    saved = {("attn", n): 2.0 for n in range(4)} | {("mlp", n): 8.0 for n in range(4)}
    shape = Shape(num_hidden_layers=4, name="it", saved=saved)
    order = [(c.kinds[0], c.layer) for c in ranked("joint", shape, found)]
    assert order[:4] == [("attn", 2), ("mlp", 3), ("mlp", 0), ("attn", 1)]
    nothing = Shape(num_hidden_layers=4, name="it", saved={**saved, **{("mlp", n): 0.0 for n in range(4)}})
    assert {c.kinds[0] for c in ranked("joint", nothing, found)[4:]} == {"mlp"}


@pytest.mark.parametrize(
    ("drop", "said"),
    [
        ({"target": "params=+10%"}, "more than there is"),
        ({"target": "params=10%"}, "has no sign"),
        ({"target": "kv=-30%,kv=-10%"}, "kv has two targets"),
        ({"target": "parms=-30%"}, "did you mean params?"),
        ({"target": "kv=-100%"}, "would leave nothing"),
        ({"target": "kv=8GB"}, "looks like kv=-10%"),
        ({"target": "kv=-30%", "attn_drop": 2}, "--target finds what goes, and --attn-drop names it"),
        ({"target": "kv=-30%", "target_over": "mlp,width"}, "an MLP has no part of the KV cache"),
        ({"target": "kv=-30%", "target_over": "atn"}, "did you mean attn?"),
        ({"target": "kv=-30%", "target_over": 5}, "5 is no list"),
        ({"target": "latency=-30%", "target_over": "width"}, "is in no table"),
        ({"target_over": "attn"}, "pass --target"),
        ({"target": "kv=-30%", "at": "0x1"}, "is no context"),
        ({"mlp_drop": 2, "per": "kv"}, "an MLP has no part of the KV cache"),
        ({"per": "bytes"}, "--per ranks what is dropped by number"),
    ],
)
def test_a_target_that_cannot_be_meant_is_refused_in_a_sentence(drop, said):
    with pytest.raises(RecipeError) as raised:
        parse(DropSpec, drop)
    assert said.lower() in raised.value.message.lower()


def test_a_target_ranks_by_the_loss_and_says_so_in_recipe_and_name():
    mix = {"name": "c", "subsets": [{"dataset": "d", "weight": 1}]}
    values = {"base": {"repo_id": "meta/Llama-3.2-3B"}, "calibration": mix}
    made = parse(Recipe, {**values, "drop": {"target": {"kv": "-30 %", "memory": "8 GB"}}})
    assert (made.metric, made.needs_scores) == ("loss", True)
    assert made.default_name == "Llama-3.2-3B-kv-30pct-memory-8GB"
    assert made.drop.target == read_targets("kv=-30%,memory=8GB")
    with pytest.raises(RecipeError, match="adds up what the model loses"):
        parse(Recipe, {**values, "drop": {"target": "kv=-30%"}, "metric": "cosine"})
    with pytest.raises(RecipeError, match="--target-over block"):
        parse(Recipe, {**values, "drop": {"target": "kv=-30%"}, "layout": "stock"})
