"""The published config.json is the base's own JSON with a few keys changed, readable by old and new transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from bases import LLAMA, MISTRAL, plan

from hubprune import __version__
from hubprune.core.artifacts import BaseCheckpoint
from hubprune.core.config import check_config, pruned_config, write_config
from hubprune.core.errors import CheckpointError

LLAMA3 = {
    "factor": 8.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 64,
    "rope_type": "llama3",
}
NO_ROPE = {k: v for k, v in LLAMA.items() if k not in ("rope_theta", "torch_dtype")}


def published(config, drop=None, **options):
    """The published config.json of a base."""
    base = BaseCheckpoint(name="acme/base", commit="a" * 40, config=config, files=())
    return pruned_config(base, drop or plan(5, attn=[1, 3]), **options)


WHOLE = plan(5, attn=[4], mlp=[4])


def provenance(**changes):
    return {
        "version": __version__,
        "base_model": "acme/base",
        "base_commit": "a" * 40,
        "base_num_hidden_layers": 5,
        "dropped_attn_layers_of_base": [1, 3],
        "dropped_mlp_layers_of_base": [],
        **changes,
    }


PRUNED_LLAMA = {
    "model_type": "pruned_llama",
    "architectures": ["PrunedLlamaForCausalLM"],
    "auto_map": {
        "AutoConfig": "modeling_pruned_llama.PrunedLlamaConfig",
        "AutoModel": "modeling_pruned_llama.PrunedLlamaModel",
        "AutoModelForCausalLM": "modeling_pruned_llama.PrunedLlamaForCausalLM",
        "AutoModelForSequenceClassification": "modeling_pruned_llama.PrunedLlamaForSequenceClassification",
        "AutoModelForTokenClassification": "modeling_pruned_llama.PrunedLlamaForTokenClassification",
    },
    "dropped_attn_layers": [1, 3],
    "dropped_mlp_layers": [],
    "mlp_intermediate_sizes": [48] * 5,
    "intermediate_size": None,
    "hubprune": provenance(),
}


def test_attention_drop_changes_the_class_and_names_the_layers():
    assert published(LLAMA) == {**LLAMA, **PRUNED_LLAMA}


def test_nothing_else_of_the_base_is_rewritten():
    odd = {**LLAMA, "pretraining_tp": 1, "a_key_of_the_future": {"b": [1, None]}, "transformers_version": "4.31.0"}
    assert published({**odd, "_name_or_path": "/home/me/secret"}) == {**odd, **PRUNED_LLAMA}


def test_keys_of_transformers_5_are_written_for_transformers_4_as_well():
    new = {**NO_ROPE, "dtype": "bfloat16", "rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"}}
    old = {"torch_dtype": "bfloat16", "rope_theta": 500000.0, "rope_scaling": None}
    assert published(new) == {**new, **old, **PRUNED_LLAMA}


def test_llama3_scaling_of_transformers_5_is_written_for_transformers_4_as_well():
    new = {**NO_ROPE, "dtype": "float32", "rope_parameters": {"rope_theta": 500000.0, **LLAMA3}}
    old = {"torch_dtype": "float32", "rope_scaling": {**LLAMA3, "rope_theta": 500000.0}}
    assert published(new) == {**new, **old, **PRUNED_LLAMA}
    stock = published(new, WHOLE)
    assert (stock["rope_theta"], stock["rope_scaling"]) == (500000.0, LLAMA3)


def test_scaling_is_written_even_where_the_base_has_the_old_key_of_the_rope_base():
    both = {**LLAMA, "rope_theta": 500000.0, "rope_parameters": {"rope_theta": 500000.0, **LLAMA3}}
    for theta in (500000.0, 10000.0):  # transformers 5 goes by the one inside
        found = published({**both, "rope_theta": theta})
        assert "rope_theta" not in found
        assert found["rope_scaling"] == {**LLAMA3, "rope_theta": 500000.0}


def test_keys_of_transformers_4_stay_as_they_are_but_for_the_pair_that_autotokenizer_fails_on():
    linear = {**LLAMA, "rope_theta": 500000.0, "rope_scaling": {"type": "linear", "factor": 2.0}}
    assert published(linear) == {**linear, **PRUNED_LLAMA}
    rest = {key: value for key, value in LLAMA.items() if key != "rope_theta"}
    old = {**rest, "rope_theta": 500000.0, "rope_scaling": LLAMA3, "torch_dtype": "bfloat16"}
    moved = {**rest, "rope_scaling": {**LLAMA3, "rope_theta": 500000.0}, "torch_dtype": "bfloat16"}
    assert published(old) == {**moved, **PRUNED_LLAMA}
    assert published(old, WHOLE)["rope_scaling"] == LLAMA3


@pytest.mark.parametrize("name", ["rope_type", "type"])
def test_scaling_of_transformers_5_is_written_for_others_even_without_a_rope_base(name):
    scaling = {name: "linear", "factor": 2.0}
    assert published({**NO_ROPE, "rope_parameters": scaling})["rope_scaling"] == scaling


def test_no_key_that_the_base_has_is_overwritten_by_its_other_spelling():
    rope = {"rope_theta": 500000.0, **LLAMA3}
    odd = {**LLAMA, "dtype": "bfloat16", "rope_scaling": None, "rope_parameters": rope}
    assert published(odd) == {**odd, **PRUNED_LLAMA}


def test_the_served_layout_names_the_rope_base_that_transformers_takes_by_default():
    unnamed = {**NO_ROPE, "rope_scaling": {"type": "linear", "factor": 2.0}}
    found = published(unnamed, plan(5, attn=[1], layout="nemotron-nas"))
    assert found["rope_theta"] == 10000.0
    assert found["rope_scaling"] == {"type": "linear", "rope_type": "linear", "factor": 2.0}


@pytest.mark.parametrize("key", ["model_file", "attn_implementation", "_attn_implementation"])
def test_keys_by_which_other_loaders_run_code_are_not_carried(key):
    assert key not in published({**LLAMA, key: "owner/code"})


WRONG = {
    "num_hidden_layers": [0, True, "5", 10**9], "hidden_size": [None, 1.5], "intermediate_size": [-1, "48", 48.0],
    "num_key_value_heads": [0, "2"], "head_dim": ["8"], "max_position_embeddings": [[512]], "sliding_window": ["8"],
    "max_window_layers": ["a"], "sliding_window_pattern": [0], "no_rope_layer_interval": [0],
    "layer_types": ["full", [1], [{}]], "rope_scaling": ["linear"], "rope_parameters": [[1]],
}  # fmt: skip


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in WRONG.items() for value in values])
def test_values_of_a_wrong_type_are_refused_before_anything_is_computed_with_them(key, value):
    with pytest.raises(CheckpointError, match=f"config.json has {key}="):
        check_config({**LLAMA, key: value}, where="config.json")


def test_per_layer_lists_are_cut_with_the_layers():
    config = {**LLAMA, "layer_types": ["a", "b", "c", "d", "e"], "unrelated": [1, 2, 3, 4, 5]}
    drop = plan(5, attn=[0, 1, 3], mlp=[1, 2, 3])
    origin = provenance(dropped_attn_layers_of_base=[0, 1, 3], dropped_mlp_layers_of_base=[1, 2, 3])
    # Of layers 0 1 2 3 4 stay 0 2 4, which become 0 1 2: the first without attention, the second without MLP.
    changed = {
        "num_hidden_layers": 3,
        "layer_types": ["a", "c", "e"],
        "dropped_attn_layers": [0],
        "dropped_mlp_layers": [1],
        "mlp_intermediate_sizes": [48, 0, 48],
        "hubprune": origin,
    }
    assert published(config, drop) == {**config, **PRUNED_LLAMA, **changed}


def test_whole_layers_alone_keep_the_stock_class():
    drop = plan(5, attn=[4], mlp=[4])
    origin = provenance(dropped_attn_layers_of_base=[4], dropped_mlp_layers_of_base=[4])
    assert published(LLAMA, drop) == {**LLAMA, "num_hidden_layers": 4, "hubprune": origin}


def test_mistral_gets_its_own_class():
    found = published(MISTRAL)
    assert (found["model_type"], found["architectures"]) == ("pruned_mistral", ["PrunedMistralForCausalLM"])
    assert found["auto_map"]["AutoModel"] == "modeling_pruned_mistral.PrunedMistralModel"
    assert found["sliding_window"] == 8


def test_the_tokenizer_class_is_copied_for_older_pipelines_unless_the_base_names_one(tmp_path):
    base = BaseCheckpoint(name="acme/base", commit=None, config=LLAMA, files=())
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    write_config(base, plan(5, attn=[1]), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["tokenizer_class"] == "LlamaTokenizer"
    named = published({**LLAMA, "tokenizer_class": "Own"}, tokenizer_class="LlamaTokenizer")
    assert named["tokenizer_class"] == "Own"


ROPES = {
    "transformers 4": {"rope_theta": 50000.0},
    "transformers 4, llama3": {"rope_theta": 50000.0, "rope_scaling": LLAMA3},
    "transformers 5": {"rope_parameters": {"rope_theta": 50000.0, "rope_type": "default"}},
    "transformers 5, llama3": {"rope_parameters": {"rope_theta": 50000.0, **LLAMA3}},
}


@pytest.mark.parametrize("rope", ROPES.values(), ids=ROPES)
def test_the_written_config_gives_the_rope_of_the_base(tmp_path, rope):
    from transformers import AutoConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    def frequencies(config, folder):
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        return LlamaRotaryEmbedding(AutoConfig.from_pretrained(folder)).inv_freq

    base = {**NO_ROPE, **rope}
    # The stock class stands in: what is compared is how transformers reads the keys.
    stock = {"model_type": "llama", "intermediate_size": 48}
    written = {k: v for k, v in published(base).items() if k != "auto_map"} | stock
    plain = frequencies(NO_ROPE, tmp_path / "plain")
    assert torch.equal(frequencies(base, tmp_path / "base"), frequencies(written, tmp_path / "written"))
    assert not torch.equal(frequencies(base, Path(tmp_path / "again")), plain)
