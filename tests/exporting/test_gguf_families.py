"""GGUF files of every family: what is written for each, and the same logits in llama.cpp with sublayers missing."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest
from bases import FAMILIES, family_tensors, write_base
from exported import export, pruned
from gguf import GGUFReader, dequantize
from safetensors.torch import load_file

from hubprune.core.errors import UnsupportedArchitectureError, VerificationError
from hubprune.exporting import layers, parity
from hubprune.exporting.bounds import ROUNDED
from hubprune.exporting.families import FAMILIES as WRITTEN

NO_WINDOW = {"sliding_window": None, "use_sliding_window": False}
OWN = {
    "qwen2": NO_WINDOW,
    "qwen3": NO_WINDOW,
    "smollm3": {**NO_WINDOW, "no_rope_layer_interval": 4},
    "granite": {},
    "phi3": {"sliding_window": None},
    "olmo2": {},
    "gemma2": {"sliding_window": 16},
    "gemma3_text": {"sliding_window": 16},
}
"""What of the shared configs is changed: windows that llama.cpp ignores, and those that say nothing on short texts."""
UNEVEN = ("qwen2", "granite", "phi3")
"""Families that `deci` computes where sublayers are missing."""


@pytest.fixture(scope="module")
def made_base(tmp_path_factory):
    """Return a function that makes the random base of a family, once."""
    made = {}

    def make(family, **changes):
        key = (family, repr(changes))
        if key not in made:
            config = {**FAMILIES[family], "num_hidden_layers": 6, **OWN[family], **changes}
            made[key] = write_base(tmp_path_factory.mktemp(family) / "base", config, family_tensors(config))
        return made[key]

    return make


def written(folder, tmp_path):
    """Export without a comparison; return what was said, the metadata and the tensors with rows first."""
    made = export(folder, tmp_path / "x.gguf", outtype="f32", no_verify=True)
    reader = GGUFReader(made.file)
    fields = {name.split(".", 1)[-1]: field.contents() for name, field in reader.fields.items()}
    tensors = {t.name: dequantize(t.data, t.tensor_type).reshape(t.shape[::-1]) for t in reader.tensors}
    return made, fields, tensors


def stored(folder):
    return {name: tensor.float().numpy() for name, tensor in load_file(f"{folder}/model.safetensors").items()}


@pytest.mark.parametrize("family", OWN)
def test_a_missing_attention_is_left_out_where_llama_cpp_can_and_is_zero_elsewhere(family, made_base, tmp_path):
    made, fields, tensors = written(pruned(made_base(family), tmp_path / "x", attn=[2], mlp=[4]), tmp_path)
    assert (made.layers_without_attention, made.layers_without_mlp) == ((2,), (4,))
    assert not tensors["blk.4.ffn_down.weight"].any()
    if family in UNEVEN:
        assert made.architecture == "deci"
        assert fields["attention.head_count_kv"] == [2, 2, 0, 2, 2, 2]
        assert "blk.2.attn_output.weight" not in tensors
        assert layers.SAVED.format(1) in made.notes
        assert not any("zeros" in note for note in made.notes)
    else:
        assert made.architecture == WRITTEN[family].architecture
        assert not tensors["blk.2.attn_output.weight"].any()
        assert tensors["blk.2.attn_q.weight"].shape == tensors["blk.0.attn_q.weight"].shape
        assert any(note.startswith("1 attentions of zeros stand in") for note in made.notes)
        assert any(note.startswith("1 MLPs of zeros stand in") for note in made.notes)


@pytest.mark.parametrize("family", OWN)
def test_whole_layers_that_went_leave_an_architecture_of_the_family_itself(family, made_base, tmp_path):
    made, fields, tensors = written(pruned(made_base(family), tmp_path / "x", attn=[4, 5], mlp=[4, 5]), tmp_path)
    assert made.architecture == WRITTEN[family].architecture
    assert (made.layers, fields["block_count"]) == (4, 4)
    assert made.layers_without_attention == made.layers_without_mlp == ()
    assert {name.split(".")[1] for name in tensors if name.startswith("blk.")} == {"0", "1", "2", "3"}


def test_gemmas_norms_are_stored_plus_one_and_queries_scaled_as_config_json_says(made_base, tmp_path):
    base = made_base("gemma2", query_pre_attn_scalar=64)
    _, fields, tensors = written(base.folder, tmp_path)
    theirs = stored(base.folder)
    norm = theirs["model.layers.1.post_feedforward_layernorm.weight"]
    np.testing.assert_allclose(tensors["blk.1.post_ffw_norm.weight"], norm + 1, rtol=1e-6)
    query = theirs["model.layers.1.self_attn.q_proj.weight"]
    np.testing.assert_allclose(tensors["blk.1.attn_q.weight"], query * math.sqrt(16 / 64), rtol=1e-6)
    assert fields["attention.sliding_window_pattern"] == [True, False] * 3
    assert (fields["attn_logit_softcapping"], fields["final_logit_softcapping"]) == (5.0, 3.0)


def test_the_kinds_of_gemmas_attentions_follow_the_layers_that_are_left(made_base, tmp_path):
    folder = pruned(made_base("gemma3_text"), tmp_path / "x", attn=[1], mlp=[1])
    _, fields, _ = written(folder, tmp_path)
    assert fields["attention.sliding_window_pattern"] == [True, False, True, True, False]
    assert (fields["attention.sliding_window"], fields["rope.freq_base_swa"]) == (16, 100.0)


def test_a_gemma_2_without_sliding_attentions_gets_a_window_as_long_as_the_context(made_base, tmp_path):
    folder = pruned(made_base("gemma2"), tmp_path / "x", attn=[0, 2, 4], mlp=[0, 2, 4])
    _, fields, _ = written(folder, tmp_path)
    assert fields["attention.sliding_window_pattern"] == [True] * 3
    assert fields["attention.sliding_window"] == fields["context_length"] == 512


def test_phi3s_fused_matrices_are_taken_apart_for_deci(made_base, tmp_path):
    folder = pruned(made_base("phi3"), tmp_path / "x", attn=[2])
    _, fields, tensors = written(folder, tmp_path)
    theirs = stored(folder)
    both = theirs["model.layers.3.mlp.gate_up_proj.weight"]
    np.testing.assert_array_equal(tensors["blk.3.ffn_gate.weight"], both[:48])
    np.testing.assert_array_equal(tensors["blk.3.ffn_up.weight"], both[48:])
    heads = theirs["model.layers.3.self_attn.qkv_proj.weight"]
    np.testing.assert_array_equal(tensors["blk.3.attn_v.weight"], heads[48:])
    assert tensors["rope_factors_short.weight"].tolist() == [1.0, 1.5, 2.0, 3.0]
    assert fields["rope.scaling.type"] == "longrope"


def test_granites_multipliers_go_into_the_matrices_of_deci_and_into_metadata_elsewhere(made_base, tmp_path):
    base = made_base("granite")
    _, fields, _ = written(base.folder, tmp_path)
    assert [fields[name] for name in ("logit_scale", "embedding_scale")] == [8.0, 12.0]
    (tmp_path / "x.gguf").unlink()
    folder = pruned(base, tmp_path / "x", attn=[2])
    _, fields, tensors = written(folder, tmp_path)
    down = stored(folder)["model.layers.1.mlp.down_proj.weight"]
    np.testing.assert_allclose(tensors["blk.1.ffn_down.weight"], down * 0.22 / 12, rtol=1e-6)
    assert fields["attention.layer_norm_rms_epsilon"] == pytest.approx(1e-5 / 144)
    assert "logit_scale" not in fields


def test_layers_of_zeros_keep_smollm3s_layers_where_llama_cpp_applies_rope_to_them(made_base, tmp_path):
    folder = pruned(made_base("smollm3"), tmp_path / "x", attn=[1], mlp=[1])
    made, _, tensors = written(folder, tmp_path)
    assert made.layers == 6  # layers 0, 2, one of zeros, 3, 4, 5: the fourth has no RoPE
    assert not tensors["blk.2.attn_output.weight"].any()
    assert not tensors["blk.2.ffn_down.weight"].any()
    query = stored(folder)["model.layers.2.self_attn.q_proj.weight"]
    assert np.abs(tensors["blk.3.attn_q.weight"]).sum() == pytest.approx(np.abs(query).sum(), rel=1e-5)
    assert made.layers_without_attention == ()
    assert any(note.startswith("1 layers of zeros stand between") for note in made.notes)


def test_a_window_that_llama_cpp_ignores_caps_the_context(made_base, tmp_path):
    made, _, _ = written(made_base("qwen2", sliding_window=100, use_sliding_window=True).folder, tmp_path)
    assert made.context_length == 100


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("gemma2", {"attention_bias": True}, "attention_bias=True"),
        ("gemma2", {"tie_word_embeddings": False}, "a head of its own"),
        ("gemma2", {"final_logit_softcapping": None}, "always applies it"),
        ("gemma3_text", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "kind 'yarn'"),
        ("qwen2", {"head_dim": 16}, "not as wide as the hidden states"),
        ("qwen3", {"rope_scaling": {"rope_type": "llama3", "factor": 4.0}}, "kind 'llama3'"),
        ("olmo2", {"attention_bias": True}, "attention_bias=True"),
    ],
)
def test_what_a_familys_architecture_has_not_is_refused_by_name(family, changes, message, made_base, tmp_path):
    folder = shutil.copytree(made_base(family).folder, tmp_path / "changed")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(UnsupportedArchitectureError, match=message):
        export(folder, tmp_path / "x.gguf", no_verify=True)
    assert not (tmp_path / "x.gguf").exists()


# ---- in llama.cpp ------------------------------------------------------------------------------------------------


def assert_same(made):
    """The file computes what transformers does, as exactly as its activation is computed."""
    found = made.parity.model
    assert made.parity.failures == ()
    assert found.positions > 100
    if WRITTEN_ROUGH[made.architecture]:
        assert found.relative_difference < ROUNDED["f16"] / 2
        assert found.agreed >= found.positions - 3
    else:
        assert found.agreed + found.undecided == found.positions
        assert found.max_logit_difference < parity.F32_TOLERANCE


WRITTEN_ROUGH = {**{family.architecture: family.rough_activation for family in WRITTEN.values()}, "deci": False}


@pytest.mark.parametrize("family", OWN)
def test_every_family_with_sublayers_missing_computes_in_llama_cpp_what_it_does_in_transformers(
    family, made_base, tmp_path
):
    pytest.importorskip("llama_cpp")
    folder = pruned(made_base(family), tmp_path / "x", attn=[0, 1, 3], mlp=[1, 4])
    assert_same(export(folder, tmp_path / "x.gguf", outtype="f32"))


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("qwen2", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}}),
        ("gemma3_text", {"query_pre_attn_scalar": 64}),
        ("phi3", {"partial_rotary_factor": 0.5, "rope_scaling": None}),
        ("olmo2", {"tie_word_embeddings": True}),
    ],
)
def test_what_config_json_asks_for_besides_is_computed_too(family, changes, made_base, tmp_path):
    pytest.importorskip("llama_cpp")
    folder = pruned(made_base(family, **changes), tmp_path / "x", attn=[2])
    made = export(folder, tmp_path / "x.gguf", outtype="f32")
    assert_same(made)
    assert made.architecture == ("deci" if family == "qwen2" else WRITTEN[family].architecture)


def test_a_layer_without_rope_in_the_wrong_place_does_not_pass(made_base, tmp_path, monkeypatch):
    pytest.importorskip("llama_cpp")
    monkeypatch.setattr(layers, "_aligned", lambda slots, rope, *, every: iter(slots))
    folder = pruned(made_base("smollm3"), tmp_path / "x", attn=[1], mlp=[1])
    with pytest.raises(VerificationError, match="a logit differs"):
        export(folder, tmp_path / "x.gguf", outtype="f32")
