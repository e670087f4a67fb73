"""How wide the MLPs become is plain arithmetic on config.json, and refused in one line where it cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest
from bases import LLAMA, plan
from hypothesis import given
from hypothesis import strategies as st

from hubprune.core.architectures import ARCHITECTURES
from hubprune.core.artifacts import WidthPlan
from hubprune.core.config import pruned_config, read_structure
from hubprune.core.errors import CheckpointError, PlanError, RecipeError
from hubprune.core.recipe import Recipe, parse
from hubprune.core.specs import WidthSpec
from hubprune.core.weights import Shard, TensorEntry, Weights
from hubprune.pruning.checkpoint import count_parameters, shard_plans
from hubprune.pruning.layouts import check_choice, choose_layout
from hubprune.pruning.selection import plan_widths

THREE_B = {
    "head_dim": 128, "hidden_size": 3072, "intermediate_size": 8192, "max_position_embeddings": 131072,
    "model_type": "llama", "num_attention_heads": 24, "num_hidden_layers": 28, "num_key_value_heads": 8,
    "rope_theta": 500000.0, "tie_word_embeddings": True, "vocab_size": 128256,
}  # fmt: skip
"""Llama 3.2 3B."""
MIXED = {
    **LLAMA, "model_type": "pruned_llama", "dropped_attn_layers": [], "dropped_mlp_layers": [2],
    "mlp_intermediate_sizes": [48, 40, 0, 32, 20],
}  # fmt: skip
"""A base whose MLPs were narrowed before."""


def planned(config=LLAMA, *, gone=(), **request):
    return plan_widths(WidthSpec(**request), read_structure(config), config, name="tiny", gone=gone)


# ---- arithmetic --------------------------------------------------------------------------------------------------


def test_sixty_percent_of_8192_leaves_3277():
    assert planned(THREE_B, neuron_drop="60%", multiple=1).kept == (3277,) * 28
    assert planned(THREE_B, neuron_drop="60%").kept == (3264,) * 28


def test_an_expansion_ratio_is_the_width_over_the_hidden_size():
    assert planned(THREE_B, expansion_ratio=1.0).kept == (3072,) * 28
    assert planned(THREE_B, expansion_ratio=1.4, multiple=1).kept == (4301,) * 28


def test_a_width_that_is_given_as_a_number_is_not_rounded():
    assert planned(width=17).kept == (17,) * 5
    assert planned(width=(48, 1, 17, 9, 30)).kept == (48, 1, 17, 9, 30)
    assert planned(width=17).multiple == 1


def test_a_base_that_was_narrowed_before_counts_from_its_own_widths():
    found = planned(MIXED, neuron_drop="50%", multiple=4)
    assert (found.before, found.kept) == ((48, 40, 0, 32, 20), (24, 20, 0, 16, 12))


def test_an_mlp_that_goes_may_have_any_width():
    assert planned(width=(48, 60, 17, 9, 30), gone={1}).kept == (48, 48, 17, 9, 30)
    assert planned(MIXED, width=(20, 20, 99, 20, 20)).kept == (20, 20, 0, 20, 20)


shares = st.integers(1, 99) | st.floats(0.1, 99.9).map(lambda share: round(share, 3))


@given(shares, st.integers(2, 300), st.integers(1, 80))
def test_a_rounded_width_is_near_what_was_asked_for_and_never_nothing(share, width, multiple):
    config = {**LLAMA, "intermediate_size": width}
    try:
        kept = planned(config, neuron_drop=f"{share}%", multiple=multiple).kept[0]
    except PlanError as error:
        assert "No neuron would go" in str(error)  # noqa: PT017
        return
    assert 0 < kept < width
    wanted = width - int(share * width / 100)
    assert abs(kept - wanted) <= max(multiple / 2, multiple - wanted) + 1
    assert kept % multiple == 0


@pytest.mark.parametrize(
    ("config", "request_", "said", "hint"),
    [
        (LLAMA, {"width": 49}, "Cannot keep 49 neurons: the MLP of layer 0 of tiny has 48.", "--mlp-width 48 or less"),
        (MIXED, {"width": 33}, "Cannot keep 33 neurons: the MLP of layer 3 of tiny has 32.", "--mlp-width 20 or less"),
        (LLAMA, {"expansion_ratio": 1.6}, "Cannot keep 51.2 neurons: the MLP of layer 0", "--expansion-ratio 1.5 or"),
        (LLAMA, {"width": (48, 40)}, "--mlp-width lists 2 widths: tiny has 5 layers.", "or 5 of them"),
        (LLAMA, {"neuron_drop": "100%"}, "--neuron-drop 100% leaves no neuron in tiny.", "--mlp-drop"),
        (LLAMA, {"width": 48}, "No neuron would go: the MLPs of tiny have 48.", "Ask for fewer"),
        (LLAMA, {"neuron_drop": "60%"}, "rounded to a multiple of 64", "--width-multiple 1"),
        (MIXED, {"neuron_drop": "1%", "multiple": 1}, "the MLPs of tiny have 20 to 48", "fewer"),
    ],
)
def test_a_request_that_cannot_be_met_is_refused_in_one_line(config, request_, said, hint):
    with pytest.raises(PlanError) as caught:
        planned(config, **request_)
    assert said in str(caught.value)
    assert hint in str(caught.value.hint)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("width", [0, -3, [20, 0, 3], [], True, 2.5, "many"])
def test_a_width_that_is_none_is_refused_by_the_name_of_its_option(width):
    values = {"base": {"repo_id": "tiny"}, "calibration": {"name": "x", "subsets": [{"dataset": "y", "weight": 1}]}}
    with pytest.raises(RecipeError, match=r"^--mlp-width: .* is no width: pass a number of 1 or more, or one for"):
        parse(Recipe, {**values, "width": {"width": width}})


# ---- layouts -----------------------------------------------------------------------------------------------------

SERVED = {**LLAMA, "hidden_size": 64, "intermediate_size": 512}


def laid_out(config, kept, requested="auto", **drops):
    widths = WidthPlan(before=(config["intermediate_size"],) * 5, kept=tuple(kept))
    drop = plan(5, **drops).model_copy(update={"widths": widths})
    return drop.model_copy(update={"layout": choose_layout(requested, drop, config)})


def config_of(config, drop):
    from hubprune.core.artifacts import BaseCheckpoint

    base = BaseCheckpoint(name="tiny", commit=None, folder="", config=config, files=())
    return pruned_config(base, drop)


def test_equally_narrow_mlps_alone_are_a_stock_model():
    drop = laid_out(SERVED, [200] * 5)
    config = config_of(SERVED, drop)
    assert drop.layout == "stock"
    assert {**config, "hubprune": None} == {**SERVED, "intermediate_size": 200, "hubprune": None}


def test_with_an_attention_drop_the_width_decides_who_can_load_it():
    assert laid_out(SERVED, [256] * 5, attn=[3]).layout == "nemotron-nas"
    narrow = laid_out(SERVED, [200] * 5, attn=[3])
    assert narrow.layout == "pruned"
    assert config_of(SERVED, narrow)["mlp_intermediate_sizes"] == [200] * 5


def test_widths_per_layer_are_written_per_layer():
    drop = laid_out(LLAMA, [48, 40, 30, 20, 10])
    config = config_of(LLAMA, drop)
    assert drop.layout == "pruned"
    assert (config["intermediate_size"], config["mlp_intermediate_sizes"]) == (None, [48, 40, 30, 20, 10])
    assert laid_out(SERVED, [512, 256, 512, 256, 512]).layout == "nemotron-nas"


def test_a_layout_that_a_width_rules_out_is_refused_before_anything_is_scored():
    widths = WidthPlan(before=(512,) * 5, kept=(200,) * 5)
    check_choice("stock", SERVED, methods=("mlp-width",), widths=widths)
    with pytest.raises(PlanError, match="no multiple of 256"):
        check_choice("nemotron-nas", SERVED, methods=("attn-drop", "mlp-width"), widths=widths)
    with pytest.raises(PlanError, match="have no attention"):
        check_choice("stock", SERVED, methods=("attn-drop", "mlp-width"), widths=widths)


# ---- a real size -------------------------------------------------------------------------------------------------


def headers(config):
    """The headers of a Llama's checkpoint, without its data."""
    size, wide, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    query, kv = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    shapes = {"model.embed_tokens.weight": (config["vocab_size"], size), "model.norm.weight": (size,)}
    for layer in range(config["num_hidden_layers"]):
        parts = {
            "input_layernorm": (size,), "post_attention_layernorm": (size,), "mlp.down_proj": (size, wide),
            "mlp.gate_proj": (wide, size), "mlp.up_proj": (wide, size), "self_attn.k_proj": (kv, size),
            "self_attn.o_proj": (size, query), "self_attn.q_proj": (query, size), "self_attn.v_proj": (kv, size),
        }  # fmt: skip
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in parts.items()}
    entries, begin = [], 8
    for name, shape in shapes.items():
        entry = TensorEntry(name, "BF16", shape, begin, begin)
        entries.append(TensorEntry(name, "BF16", shape, begin, begin + 2 * entry.parameters))
        begin = entries[-1].end
    return Weights(Path("3b"), (Shard(Path("model.safetensors"), None, tuple(entries)),), None)


def left(weights, drop):
    """Parameters of what a plan leaves of a tied Llama."""
    return sum(t.parameters for shard in shard_plans(weights, drop, ARCHITECTURES["llama"]) for t in shard.kept)


def test_the_arithmetic_of_llama_3_2_3b():
    weights = headers(THREE_B)
    total = count_parameters(weights, THREE_B, ARCHITECTURES["llama"])
    assert total == 3_212_749_824
    assert total - left(weights, plan(28, attn=[18, 21, 22])) == 75_506_688
    widths = planned(THREE_B, neuron_drop="60%", multiple=1)
    narrow = left(weights, plan(28).model_copy(update={"widths": widths}))
    assert narrow == total - 28 * 3 * 3072 * (8192 - 3277) == 1_944_443_904
    both = left(weights, plan(28, attn=[18, 21, 22]).model_copy(update={"widths": widths}))
    assert both == narrow - 75_506_688


def test_a_checkpoint_that_is_not_as_wide_as_its_config_says_is_refused():
    drop = plan(28).model_copy(update={"widths": WidthPlan(before=(8000,) * 28, kept=(4000,) * 28)})
    with pytest.raises(CheckpointError, match="does not fit the 8000 neurons"):
        left(headers(THREE_B), drop)
