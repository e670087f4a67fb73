"""What a GGUF file holds, read back with the package's own reader; llama.cpp is not needed."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from bases import LLAMA, MISTRAL, random_tensors, write_base, write_tensors
from exported import base, biased, export, pruned, with_widths
from gguf import GGMLQuantizationType, GGUFReader, dequantize
from safetensors.torch import load_file

from hubprune.core.errors import (
    CheckpointError,
    DiskSpaceError,
    RecipeError,
    UnsupportedArchitectureError,
    UnsupportedFormatError,
)
from hubprune.exporting import tensors, writing

NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


@pytest.fixture
def llama(tmp_path):
    return base(tmp_path / "llama")


def write(folder, tmp_path, *, outtype="f32"):
    """Export without a comparison, and read the file."""
    made = export(folder, tmp_path / "x.gguf", outtype=outtype, no_verify=True)
    return made, GGUFReader(made.file)


def fields(reader):
    return {name: field.contents() for name, field in reader.fields.items()}


def values(reader):
    """Every tensor as float32, rows first."""
    return {t.name: dequantize(t.data, t.tensor_type).reshape(t.shape[::-1]) for t in reader.tensors}


def hf_order(block, heads):
    """Bring rows in GGML's order for RoPE back into that of transformers."""
    rows, *rest = block.shape
    return block.reshape(heads, rows // heads // 2, 2, *rest).swapaxes(1, 2).reshape(block.shape)


def assert_holds(reader, folder, *, layers, config=LLAMA):
    """All tensors of the layers of a checkpoint are there, with their values."""
    stored, found = load_file(Path(folder) / "model.safetensors"), values(reader)
    for number, layer in enumerate(layers):
        for name, source in NAMES.items():
            for part in ("weight", "bias"):
                if (tensor := stored.get(f"model.layers.{layer}.{source}.{part}")) is not None:
                    got = found.pop(f"blk.{number}.{name}.{part}")
                    if name in ("attn_q", "attn_k"):
                        heads = "num_attention_heads" if name == "attn_q" else "num_key_value_heads"
                        got = hf_order(got, config[heads])
                    np.testing.assert_array_equal(got, tensor.float().numpy())
    np.testing.assert_array_equal(found.pop("token_embd.weight"), stored["model.embed_tokens.weight"].float().numpy())
    np.testing.assert_array_equal(found.pop("output_norm.weight"), stored["model.norm.weight"].float().numpy())
    np.testing.assert_array_equal(found.pop("output.weight"), stored["lm_head.weight"].float().numpy())
    return found


def test_an_unpruned_llama_has_every_tensor_once_and_numbers_for_all_layers(llama, tmp_path):
    made, reader = write(llama.folder, tmp_path)
    assert assert_holds(reader, llama.folder, layers=range(5)) == {}
    found = fields(reader)
    assert made.architecture == found["general.architecture"] == "llama"
    sizes = {key.removeprefix("llama."): value for key, value in found.items() if key.startswith("llama.")}
    assert sizes.pop("attention.layer_norm_rms_epsilon") == pytest.approx(1e-5)
    assert sizes == {
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.key_length": 8,
        "attention.value_length": 8,
        "block_count": 5,
        "context_length": 512,
        "embedding_length": 32,
        "feed_forward_length": 48,
        "rope.dimension_count": 8,
        "rope.freq_base": 10000.0,
        "vocab_size": 256,
    }


def test_layers_without_attention_have_no_heads_and_their_other_tensors(llama, tmp_path):
    folder = pruned(llama, tmp_path / "x", attn=[2, 4])
    made, reader = write(folder, tmp_path)
    found = fields(reader)
    assert assert_holds(reader, folder, layers=range(5)) == {}
    assert found["deci.attention.head_count"] == [4, 4, 0, 4, 0]
    assert found["deci.attention.head_count_kv"] == [2, 2, 0, 2, 0]
    assert found["deci.feed_forward_length"] == [48] * 5
    assert found["deci.rope.dimension_count"] == 8
    assert (made.architecture, made.layers_without_attention, made.layers_without_mlp) == ("deci", (2, 4), ())


def test_a_first_layer_without_attention_gets_a_zero_matrix(llama, tmp_path):
    folder = pruned(llama, tmp_path / "x", attn=[0, 1])
    _, reader = write(folder, tmp_path)
    left = assert_holds(reader, folder, layers=range(5))
    assert set(left) == {"blk.0.attn_norm.weight", "blk.0.attn_output.weight"}
    assert not left["blk.0.attn_output.weight"].any()
    assert fields(reader)["deci.attention.head_count"] == [4, 0, 4, 4, 4]
    assert fields(reader)["deci.attention.head_count_kv"] == [0, 0, 2, 2, 2]


def test_a_missing_mlp_beside_attention_becomes_256_zero_neurons(llama, tmp_path):
    folder = pruned(llama, tmp_path / "x", mlp=[0, 4])
    made, reader = write(folder, tmp_path)
    left = assert_holds(reader, folder, layers=range(5))
    assert left["blk.0.ffn_gate.weight"].shape == (256, 32)
    assert not any(left[f"blk.{i}.ffn_{part}.weight"].any() for i in (0, 4) for part in ("gate", "up", "down"))
    assert fields(reader)["deci.feed_forward_length"] == [256, 48, 48, 48, 256]
    assert made.layers_without_mlp == (0, 4)


def test_a_layer_without_either_goes_and_the_rest_is_renumbered(llama, tmp_path):
    whole = with_widths(llama, tmp_path / "w", [48, 48, 0, 48, 48])
    config = json.loads((whole / "config.json").read_text())
    (whole / "config.json").write_text(json.dumps({**config, "dropped_attn_layers": [2]}))
    kept = {n: t for n, t in load_file(whole / "model.safetensors").items() if ".layers.2." not in n}
    write_tensors(whole, kept)
    made, reader = write(whole, tmp_path)
    assert assert_holds(reader, whole, layers=[0, 1, 3, 4]) == {}
    assert (made.architecture, made.layers) == ("llama", 4)


def test_layers_of_several_widths_say_so_one_by_one(llama, tmp_path):
    folder = with_widths(llama, tmp_path / "x", [48, 16, 40, 48, 8])
    _, reader = write(folder, tmp_path)
    assert assert_holds(reader, folder, layers=range(5)) == {}
    assert fields(reader)["deci.feed_forward_length"] == [48, 16, 40, 48, 8]


def test_tied_embeddings_are_written_once(tmp_path):
    folder = base(tmp_path / "b", tie_word_embeddings=True).folder
    _, reader = write(folder, tmp_path)
    assert {"token_embd.weight"} == {t.name for t in reader.tensors if t.shape.tolist() == [32, 256]}


@pytest.mark.parametrize("named", ["attention_bias", "mlp_bias"])
def test_biases_that_transformers_would_pass_over_are_refused(tmp_path, named):
    folder = base(tmp_path / "b", biased, **{named: True}).folder
    with pytest.raises(
        UnsupportedArchitectureError, match=r"tensors that its config\.json does not lead one to expect, .*bias"
    ):
        export(folder, tmp_path / "x.gguf", no_verify=True)


def test_biases_that_are_not_there_are_missed(tmp_path):
    folder = base(tmp_path / "b", attention_bias=True).folder
    with pytest.raises(CheckpointError, match=r"no tensor .*q_proj\.bias"):
        export(folder, tmp_path / "x.gguf", no_verify=True)


def test_biases_are_written_in_f32_and_those_of_q_and_k_in_the_order_of_their_rows(tmp_path):
    folder = base(tmp_path / "b", biased, attention_bias=True, mlp_bias=True).folder
    _, reader = write(folder, tmp_path, outtype="f16")
    kinds = {t.name: t.tensor_type for t in reader.tensors}
    assert kinds["blk.0.attn_q.bias"] == kinds["blk.0.attn_norm.weight"] == GGMLQuantizationType.F32
    stored = load_file(Path(folder) / "model.safetensors")["model.layers.0.self_attn.q_proj.bias"].numpy()
    np.testing.assert_array_equal(hf_order(values(reader)["blk.0.attn_q.bias"], 4), stored)


@pytest.mark.parametrize("source", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("outtype", "step"), [("f32", 0.0), ("f16", 2**-11), ("bf16", 2**-8), ("q8_0", 1.13 / 254)])
def test_values_are_rounded_no_more_than_the_type_asks_for(source, outtype, step, tmp_path):
    config = {**LLAMA, "hidden_size": 64, "intermediate_size": 96}
    write_base(tmp_path / "b", config, random_tensors(config, dtype=source))
    _, reader = write(tmp_path / "b", tmp_path, outtype=outtype)
    stored = load_file(tmp_path / "b" / "model.safetensors")["model.layers.1.mlp.down_proj.weight"].float().numpy()
    found = values(reader)["blk.1.ffn_down.weight"]
    largest = np.abs(stored.reshape(-1, 32)).max(axis=1).repeat(32).reshape(stored.shape)
    assert (np.abs(found - stored) <= step * 1.01 * (largest if outtype == "q8_0" else np.abs(stored)) + 1e-7).all()


def test_rows_that_are_no_multiple_of_32_stay_f16_in_q8_0(tmp_path):
    folder = base(tmp_path / "b", hidden_size=64, intermediate_size=50).folder
    _, reader = write(folder, tmp_path, outtype="q8_0")
    kinds = {t.name: t.tensor_type.name for t in reader.tensors}
    assert kinds["blk.0.ffn_down.weight"] == "F16"
    assert kinds["blk.0.ffn_up.weight"] == kinds["token_embd.weight"] == "Q8_0"
    assert kinds["output_norm.weight"] == "F32"


def test_blocks_of_rows_add_up_to_the_tensor(llama, tmp_path, monkeypatch):
    write(llama.folder, tmp_path)
    monkeypatch.setattr(tensors, "BLOCK_VALUES", 100)
    made = export(llama.folder, tmp_path / "y.gguf", outtype="f32", no_verify=True)
    assert Path(made.file).read_bytes() == (tmp_path / "x.gguf").read_bytes()


def test_shards_make_the_same_file(llama, tmp_path):
    write_base(tmp_path / "sharded" / "llama", LLAMA, shards=3)
    one, other = (
        export(folder, tmp_path / f"{i}.gguf", outtype="f16", no_verify=True)
        for i, folder in enumerate((llama.folder, tmp_path / "sharded" / "llama"))
    )
    assert one.sha256 == other.sha256


def test_llama3_rope_becomes_one_divisor_per_frequency(tmp_path):
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling["original_max_position_embeddings"] = 64
    folder = base(tmp_path / "b", rope_scaling=scaling).folder
    _, reader = write(folder, tmp_path)
    from transformers import AutoConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](AutoConfig.from_pretrained(folder), "cpu")
    plain = 10000.0 ** (-np.arange(0, 8, 2) / 8)
    found = values(reader)["rope_freqs.weight"]
    np.testing.assert_allclose(plain / found, scaled.numpy(), rtol=1e-6)
    assert (found[0], found[-1]) == (1, 8)


def test_linear_rope_is_a_factor(tmp_path):
    folder = base(tmp_path / "b", rope_scaling={"type": "linear", "factor": 4.0}).folder
    found = fields(write(folder, tmp_path)[1])
    assert (found["llama.rope.scaling.type"], found["llama.rope.scaling.factor"]) == ("linear", 4.0)


def test_the_context_of_a_mistral_is_its_window(tmp_path):
    write_base(tmp_path / "b", {**MISTRAL, "sliding_window": 100})
    made, reader = write(tmp_path / "b", tmp_path)
    assert fields(reader)["llama.context_length"] == made.context_length == 100
    assert made.notes == ("context length 100 instead of 512: llama.cpp ignores the sliding window of this model",)


# ---- what is refused ---------------------------------------------------------------------------------------------


def change(folder, **changes):
    path = Path(folder) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "bert"}, "model_type 'bert'"),
        ({"model_type": ["llama"]}, "model_type"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "truncate": False}}, "truncate=False"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 16}}, "beta_fast=16"),
        ({"rope_scaling": {"rope_type": "longrope", "long_factor": [1.0] * 4}}, "kind 'longrope'"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}, "kind 'dynamic'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
    ],
)
def test_what_llama_cpp_would_not_compute_is_refused(changes, message, llama, tmp_path):
    change(llama.folder, **changes)
    with pytest.raises(UnsupportedArchitectureError, match=message) as caught:
        write(llama.folder, tmp_path)
    if "model_type" in changes:
        assert caught.value.hint.startswith("GGUF export writes llama, mistral, qwen2, qwen3, gemma2, ")
    assert not (tmp_path / "x.gguf").exists()


@pytest.mark.parametrize("key", ["num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads",
    "intermediate_size", "max_position_embeddings", "rms_norm_eps", "rope_theta", "head_dim", "tie_word_embeddings",
    "rope_scaling"])  # fmt: skip
@pytest.mark.parametrize("value", [-1, 10**12, 10**30, 2.5, "5", True, [5], {"a": 1}], ids=repr)
def test_a_hostile_config_is_an_error_in_one_sentence(key, value, llama, tmp_path):
    if (key, value) in (("rms_norm_eps", 2.5), ("rope_theta", 2.5), ("rope_theta", 10**12), ("rope_scaling", {"a": 1})):
        pytest.skip("strange, and yet a number that can be used")
    if key in ("rms_norm_eps", "tie_word_embeddings") and value in (10**12, True):
        pytest.skip("strange, and yet a value that can be used")
    change(llama.folder, **{key: value})
    with pytest.raises((CheckpointError, UnsupportedArchitectureError)) as caught:
        write(llama.folder, tmp_path)
    assert len(caught.value.message) < 400
    assert not (tmp_path / "x.gguf").exists()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_no_numbers_are_refused_and_nothing_is_left(value, llama, tmp_path):
    tensors = random_tensors(LLAMA)
    tensors["model.layers.3.mlp.up_proj.weight"][1, 2] = value
    write_tensors(Path(llama.folder), tensors)
    with pytest.raises(CheckpointError, match=r"model\.layers\.3\.mlp\.up_proj\.weight' holds NaN or infinity"):
        write(llama.folder, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["llama"]


def test_values_that_f16_does_not_hold_are_refused(llama, tmp_path):
    tensors = random_tensors(LLAMA)
    tensors["lm_head.weight"][0, 0] = 1e5
    write_tensors(Path(llama.folder), tensors)
    with pytest.raises(UnsupportedFormatError, match=r"output\.weight has values above 65504") as caught:
        write(llama.folder, tmp_path, outtype="f16")
    assert caught.value.hint == "Export with --outtype bf16."
    write(llama.folder, tmp_path, outtype="bf16")


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.q_norm.weight", "model.layers.9.mlp.up_proj.weight"])
def test_a_tensor_that_the_file_would_not_have_is_an_error(name, llama, tmp_path):
    write_tensors(Path(llama.folder), {**random_tensors(LLAMA), name: torch.ones(8)})
    with pytest.raises(UnsupportedArchitectureError, match=f"the first is '{name}'"):
        write(llama.folder, tmp_path)


def test_a_tensor_that_is_missing_is_an_error(llama, tmp_path):
    tensors = random_tensors(LLAMA)
    del tensors["model.layers.4.mlp.up_proj.weight"]
    write_tensors(Path(llama.folder), tensors)
    with pytest.raises(CheckpointError, match=r"has no tensor 'model\.layers\.4\.mlp\.up_proj\.weight'"):
        write(llama.folder, tmp_path)


def test_tensors_of_other_kinds_are_refused(llama, tmp_path):
    tensors = random_tensors(LLAMA)
    write_tensors(Path(llama.folder), {**tensors, "lm_head.weight": tensors["lm_head.weight"].to(torch.int8)})
    with pytest.raises(UnsupportedFormatError, match=r"lm_head\.weight is stored as I8"):
        write(llama.folder, tmp_path)


# ---- the file ----------------------------------------------------------------------------------------------------


def test_a_file_that_exists_is_never_replaced(llama, tmp_path):
    (tmp_path / "x.gguf").write_text("mine")
    with pytest.raises(RecipeError, match="exists already"):
        write(llama.folder, tmp_path)
    assert (tmp_path / "x.gguf").read_text() == "mine"


@pytest.mark.parametrize("end", [KeyboardInterrupt, RuntimeError])
def test_an_export_that_is_stopped_leaves_nothing(end, llama, tmp_path, monkeypatch):
    def stop(tensor):
        yield b"some bytes"
        raise end

    monkeypatch.setattr(writing, "encoded_blocks", stop)
    with pytest.raises(end):
        write(llama.folder, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["llama"]


def test_a_disk_that_is_too_small_is_seen_before_anything_is_written(llama, tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "OVERHEAD_BYTES", 2**60)
    with pytest.raises(DiskSpaceError, match="The export takes"):
        write(llama.folder, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["llama"]


def test_exports_are_the_same_byte_for_byte(llama, tmp_path):
    one, other = (export(llama.folder, tmp_path / f"{i}.gguf", outtype="q8_0", no_verify=True) for i in (1, 2))
    assert one.sha256 == other.sha256
