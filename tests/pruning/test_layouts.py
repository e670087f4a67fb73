"""How a plan is written: the rules that choose, and that every layout loads as the same model or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from bases import LLAMA, MISTRAL, plan, write_base

from hubprune.core.architectures import architecture_of
from hubprune.core.config import read_structure
from hubprune.core.errors import CheckpointError, PlanError, UnsupportedArchitectureError
from hubprune.pruning import verify
from hubprune.pruning.checkpoint import write_checkpoint
from hubprune.pruning.layouts import Runnable, check_choice, choose_layout

SERVED = {**LLAMA, "intermediate_size": 256, "hidden_size": 64}
LLAMA3 = {
    "factor": 8.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 64,
    "rope_type": "llama3",
}
LLAMA_3 = {**SERVED, "rope_theta": 500000.0, "rope_scaling": LLAMA3}
ATTN, WHOLE = plan(5, attn=[2, 3]), plan(5, attn=[3], mlp=[3])


# ---- the rules ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("drop", "config", "layout"),
    [
        (WHOLE, LLAMA, "stock"),
        (WHOLE, MISTRAL, "stock"),
        (ATTN, SERVED, "nemotron-nas"),
        (ATTN, LLAMA_3, "nemotron-nas"),
        (ATTN, {**SERVED, "model_type": "mistral", "sliding_window": None}, "nemotron-nas"),
        (plan(5, attn=[2, 3], mlp=[3]), SERVED, "nemotron-nas"),
        (ATTN, LLAMA, "pruned"),
        (ATTN, MISTRAL, "pruned"),
    ],
)
def test_auto_takes_the_layout_that_most_runtimes_know(drop, config, layout):
    assert choose_layout("auto", drop, config) == layout


REASONS = {
    "another family": (ATTN, {**SERVED, "model_type": "qwen2"}, "describes Llama's layers, not Qwen2's"),
    "head size": (ATTN, {**SERVED, "head_dim": 32}, "the heads' size is not hidden_size over heads"),
    "width": (ATTN, {**SERVED, "intermediate_size": 384}, "384 neurons, which is no multiple of 256"),
    "layer 0": (plan(5, attn=[0]), SERVED, "need the attention of layer 0"),
    "a first layer that moves up": (plan(5, attn=[0, 1], mlp=[0]), SERVED, "need the attention of layer 0"),
    "a lone MLP": (plan(5, attn=[2], mlp=[4]), SERVED, "converter goes wrong, without a word"),
    "biases": (ATTN, {**SERVED, "attention_bias": True}, "no place for biases"),
    "window": (ATTN, {**SERVED, "model_type": "mistral", "sliding_window": 8}, "no place for a sliding window"),
    "a window by default": (
        ATTN,
        {**SERVED, "model_type": "mistral", "max_position_embeddings": 8192},
        "sliding window",
    ),
    "activation": (ATTN, {**SERVED, "hidden_act": "gelu"}, "silu for its hidden_act, which is 'gelu'"),
    "rope base": (ATTN, {**LLAMA_3, "rope_theta": 10000.0}, "mlx-lm would take 500000 for its rope base"),
}


@pytest.mark.parametrize(("drop", "config", "reason"), REASONS.values(), ids=REASONS)
def test_what_the_served_layout_cannot_say_takes_our_own(drop, config, reason):
    assert choose_layout("auto", drop, config) == "pruned"
    with pytest.raises(PlanError, match=f"--layout nemotron-nas does not fit: .*{reason}") as caught:
        choose_layout("nemotron-nas", drop, config)
    assert caught.value.hint == "Pass --layout pruned."


def test_stock_is_refused_where_a_layer_would_have_a_hole():
    for drop, what in ((ATTN, "attention"), (plan(5, mlp=[1]), "MLP")):
        with pytest.raises(PlanError, match=f"--layout stock does not fit: layers that stay have no {what}"):
            choose_layout("stock", drop, LLAMA)


def test_a_layout_that_no_attention_drop_fits_is_refused_before_anything_is_loaded():
    check_choice("auto", MISTRAL)
    check_choice("nemotron-nas", SERVED)
    with pytest.raises(PlanError, match="nemotron-nas does not fit: it has no place for a sliding window"):
        check_choice("nemotron-nas", {**SERVED, "model_type": "mistral", "sliding_window": 8})
    with pytest.raises(PlanError, match="stock does not fit: layers that stay have no attention"):
        check_choice("stock", SERVED)


def test_any_layout_that_fits_can_be_asked_for():
    assert choose_layout("pruned", WHOLE, SERVED) == "pruned"
    assert choose_layout("nemotron-nas", WHOLE, SERVED) == "nemotron-nas"
    assert choose_layout("pruned", ATTN, SERVED) == "pruned"


# ---- what is written ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A random Llama 3 whose MLPs are as wide as the layout wants them."""
    return write_base(tmp_path_factory.mktemp("served") / "base", LLAMA_3)


def written(base, folder, layout, *, attn=(), mlp=()):
    """A checkpoint in a layout, with its plan."""
    drop = plan(5, attn=attn, mlp=mlp, layout=layout)
    folder.mkdir()
    write_checkpoint(base, drop, folder, advance=lambda _: None)
    return drop


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


DROPS = {"attention": ([2, 4], []), "MLP": ([], [0, 4]), "joint": ([1, 3], [2, 4]), "whole layers too": ([1, 2], [1])}


@pytest.mark.parametrize(("attn", "mlp"), DROPS.values(), ids=DROPS)
def test_the_served_layout_is_the_planned_model(in_process, served, tmp_path, attn, mlp):
    drop = written(served, tmp_path / "out", "nemotron-nas", attn=attn, mlp=mlp)
    base = Runnable(Path(served.folder))
    seen = verify.verify(base, tmp_path / "out", plan=drop, config=LLAMA_3, architecture=architecture_of(LLAMA_3))
    assert [check.name for check in seen.checks if not check.passed] == []
    found = read_structure(config_of(tmp_path / "out"))
    left = read_structure(LLAMA_3).without(drop)
    assert found == left
    assert verify.ships_only_our_code(tmp_path / "out", config_of(tmp_path / "out"), found)


def test_the_served_config_says_what_nvidia_s_schema_says(served, tmp_path):
    written(served, tmp_path / "out", "nemotron-nas", attn=[2], mlp=[4])
    config = config_of(tmp_path / "out")
    assert (config["model_type"], config["architectures"]) == ("nemotron-nas", ["DeciLMForCausalLM"])
    assert config["auto_map"]["AutoModelForCausalLM"] == "modeling_pruned_llama_nas.PrunedLlamaForCausalLM"
    blocks = config["block_configs"]
    assert [block["attention"]["no_op"] for block in blocks] == [False, False, True, False, False]
    assert [block["attention"]["n_heads_in_group"] for block in blocks] == [2, 2, None, 2, 2]
    assert [block["ffn"]["no_op"] for block in blocks] == [False] * 4 + [True]
    assert [block["ffn"]["ffn_mult"] for block in blocks] == [6.0] * 4 + [None]
    assert not {"dropped_attn_layers", "dropped_mlp_layers", "mlp_intermediate_sizes"} & config.keys()


@pytest.mark.parametrize("layout", ["nemotron-nas", "pruned"])
def test_saving_it_again_keeps_layout_and_logits(served, tmp_path, layout):
    from transformers import AutoModelForCausalLM

    written(served, tmp_path / "once", layout, attn=[2], mlp=[4])
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "once", trust_remote_code=True)
    model.save_pretrained(tmp_path / "twice")
    first, second = config_of(tmp_path / "once"), config_of(tmp_path / "twice")
    for key in ("model_type", "architectures", "rope_scaling", "block_configs", "dropped_attn_layers"):
        if layout == "nemotron-nas" or key not in ("rope_scaling", "block_configs"):
            assert second.get(key) == first.get(key), key
    assert read_structure(second) == read_structure(first)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "twice", trust_remote_code=True)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)


@pytest.mark.parametrize("layout", ["nemotron-nas", "pruned"])
def test_the_tokenizer_loads_where_no_code_may_run(served, tmp_path, layout):
    from transformers import AutoTokenizer

    written(served, tmp_path / "out", layout, attn=[2])
    assert AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=False)("ab").input_ids


# ---- loud failure ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resaved", [False, True])
@pytest.mark.parametrize("layout", ["nemotron-nas", "pruned"])
def test_no_auto_class_and_no_stock_class_loads_it_without_its_code(served, tmp_path, layout, resaved):
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, LlamaForCausalLM, LlamaModel

    folder = tmp_path / "out"
    written(served, folder, layout, attn=[2])
    if resaved:
        folder = tmp_path / "again"
        AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True).save_pretrained(folder)
    for auto in (AutoConfig, AutoModel, AutoModelForCausalLM):
        with pytest.raises(ValueError, match="trust_remote_code"):
            auto.from_pretrained(folder, trust_remote_code=False)
    for stock in (LlamaModel, LlamaForCausalLM):
        with pytest.raises(Exception, match="intermediate_size"):
            stock.from_pretrained(folder)


# ---- reading them back -------------------------------------------------------------------------------------------


def foreign(**changes):
    """The config of a nemotron-nas repo in which a part of layer 1 is changed."""
    drop = plan(5, attn=[2], layout="nemotron-nas")
    from hubprune.core.config import layout_keys

    made = {**SERVED, **layout_keys("nemotron-nas", SERVED, read_structure(SERVED).without(drop))}
    for part, values in changes.items():
        made["block_configs"][1][part].update(values)
    return made


@pytest.mark.parametrize(
    "changes",
    [
        {"attention": {"replace_with_linear": True}},
        {"attention": {"n_heads_in_group": 4}},
        {"attention": {"window_length": 512}},
        {"ffn": {"replace_with_linear": True}},
        {"ffn": {"sparsify": [1]}},
        {"ffn": {"ffn_mult": "wide"}},
        {"ffn": {"ffn_mult": 1e308}},
    ],
)
def test_layers_that_hubprune_never_writes_are_refused(changes):
    assert read_structure(foreign()).no_attn == {2}
    with pytest.raises(UnsupportedArchitectureError, match="neither Llama's nor absent"):
        read_structure(foreign(**changes))


def test_a_nemotron_repo_of_somebody_else_is_no_base():
    config = {**foreign(), "auto_map": {"AutoConfig": "configuration_decilm.DeciLMConfig"}}
    with pytest.raises(UnsupportedArchitectureError, match="'nemotron-nas', which hubprune does not support"):
        read_structure(config)


OURS = {
    **SERVED, "model_type": "pruned_llama", "dropped_attn_layers": [2], "dropped_mlp_layers": [],
    "intermediate_size": None, "mlp_intermediate_sizes": [256] * 5,
}  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {"dropped_attn_layers": None},
        {"dropped_mlp_layers": {}},
        {"dropped_attn_layers": [5]},
        {"mlp_intermediate_sizes": 256},
        {"mlp_intermediate_sizes": [256] * 4},
        {"mlp_intermediate_sizes": None},
        {"model_type": "llama"},
    ],
)
def test_keys_that_do_not_say_what_there_is_are_refused(changes):
    assert read_structure(OURS).no_attn == {2}
    with pytest.raises(CheckpointError):
        read_structure({**OURS, **changes})
