"""Exports run in llama.cpp: the same logits, texts and tokens as in transformers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from bases import MISTRAL, SHARED_DATA, write_base
from exported import DROPS, base, biased, export, nemotron_nas, pruned, with_widths

from hubprune.core.errors import VerificationError
from hubprune.exporting import hyperparameters, layers, parity, tensors, writing

pytest.importorskip("llama_cpp")
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return base(tmp_path_factory.mktemp("base") / "llama")


def assert_same(made):
    """The file computes what transformers does: every next token, and every logit within 1e-3."""
    found = made.parity.model
    assert made.parity.failures == ()
    assert found.agreed == found.positions > 100
    assert found.max_logit_difference < parity.F32_TOLERANCE
    assert found.equal_greedy_texts == found.greedy_texts == len(parity.PROMPTS)
    assert found.equal_tokenized_texts == found.tokenized_texts == len(parity.TEXTS)


@pytest.mark.parametrize("drops", DROPS)
def test_a_pruned_model_computes_in_llama_cpp_what_it_does_in_transformers(drops, llama, tmp_path):
    folder = pruned(llama, tmp_path / "checkpoint", **DROPS[drops])
    made = export(folder, tmp_path / "x.gguf", outtype="f32")
    assert_same(made)
    assert made.architecture == ("llama" if drops in ("full", "a block") else "deci")


def test_the_unpruned_base_is_exported_and_compared_as_a_control(llama, tmp_path):
    folder = pruned(llama, tmp_path / "checkpoint", attn=[0, 2], mlp=[4])
    made = export(folder, tmp_path / "x.gguf", outtype="f32", base=llama.folder)
    assert_same(made)
    assert made.parity.control.agreed == made.parity.control.positions == made.parity.model.positions
    assert made.parity.control.max_logit_difference < parity.F32_TOLERANCE
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["x.gguf"]


CASES = {
    "MLPs of several widths": lambda folder: with_widths(base(folder / "b"), folder / "x", [48, 16, 40, 48, 8]),
    "MLPs of several widths and one missing": lambda folder: with_widths(
        base(folder / "b"), folder / "x", [48, 16, 0, 48, 8]
    ),
    "MLPs of one smaller width": lambda folder: with_widths(base(folder / "b"), folder / "x", [24] * 5),
    "heads of another size": lambda folder: pruned(base(folder / "b", head_dim=12), folder / "x", attn=[0, 3]),
    "heads of another size, unpruned": lambda folder: Path(base(folder / "b", head_dim=12).folder),
    "tied embeddings": lambda folder: pruned(base(folder / "b", tie_word_embeddings=True), folder / "x", attn=[1]),
    "one head per key-value head": lambda folder: pruned(
        base(folder / "b", num_key_value_heads=4), folder / "x", mlp=[4]
    ),
    "llama3 RoPE": lambda folder: pruned(base(folder / "b", rope_scaling=LLAMA3_ROPE), folder / "x", attn=[0]),
    "llama3 RoPE, unpruned": lambda folder: Path(base(folder / "b", rope_scaling=LLAMA3_ROPE).folder),
    "linear RoPE": lambda folder: pruned(
        base(folder / "b", rope_scaling={"type": "linear", "factor": 4.0}), folder / "x", attn=[2]
    ),
    "another RoPE base": lambda folder: pruned(base(folder / "b", rope_theta=500000.0), folder / "x", attn=[2]),
    "RoPE in the spelling of transformers 5": lambda folder: pruned(
        base(folder / "b", rope_theta=None, rope_parameters={"rope_theta": 1e6, **LLAMA3_ROPE}), folder / "x", attn=[2]
    ),
    "biases": lambda folder: pruned(
        base(folder / "b", biased, attention_bias=True, mlp_bias=True), folder / "x", attn=[0, 2], mlp=[3]
    ),
    "sizes that are no multiples of 32": lambda folder: pruned(
        base(folder / "b", hidden_size=40, intermediate_size=50), folder / "x", attn=[0, 2], mlp=[3]
    ),
    "nemotron-nas": lambda folder: nemotron_nas(
        base(folder / "b", hidden_size=64, intermediate_size=256), folder / "x", attn=[2], mlp=[4]
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_every_shape_of_a_llama_computes_the_same(case, tmp_path):
    assert_same(export(CASES[case](tmp_path), tmp_path / "x.gguf", outtype="f32"))


def test_a_mistral_is_exported_with_the_context_of_its_window(tmp_path):
    folder = pruned(write_base(tmp_path / "b", {**MISTRAL, "sliding_window": 100}), tmp_path / "x", attn=[0, 3])
    made = export(folder, tmp_path / "x.gguf", outtype="f32")
    assert_same(made)
    assert made.context_length == 100
    assert made.notes[0] == "context length 100 instead of 512: llama.cpp ignores the sliding window of this model"


@pytest.mark.parametrize(("outtype", "hidden"), [("f16", 64), ("bf16", 64), ("q8_0", 64), ("q8_0", 40)])
def test_rounded_types_differ_no_more_than_the_control_does(outtype, hidden, tmp_path):
    whole = base(tmp_path / "b", hidden_size=hidden, intermediate_size=96)
    folder = pruned(whole, tmp_path / "x", attn=[0, 2], mlp=[3])
    made = export(folder, tmp_path / "x.gguf", outtype=outtype, base=whole.folder)
    assert made.parity.failures == ()
    assert made.parity.model.relative_difference < 2 * made.parity.control.relative_difference
    assert made.parity.model.equal_tokenized_texts == len(parity.TEXTS)


@pytest.mark.parametrize("name", ["stories260K", "stories260K-mistral"])
def test_a_trained_model_tells_the_same_story(name, tmp_path):
    folder = SHARED_DATA / "models" / name
    if not folder.is_dir():
        pytest.skip(f"the {name} model is not here")
    made = export(folder, tmp_path / "x.gguf", outtype="f32")
    found = made.parity.model
    assert (made.parity.failures, found.agreed) == ((), found.positions)
    assert found.max_logit_difference < parity.F32_TOLERANCE
    assert llama_cpp_story(tmp_path / "x.gguf") == transformers_story(folder)


STORY, STORY_TOKENS = "Once upon a time, there was a little", 60


def llama_cpp_story(path):
    from llama_cpp import Llama

    llama = Llama(str(path), n_ctx=256, type_k=0, type_v=0, verbose=False)
    done = llama.create_completion(STORY, max_tokens=STORY_TOKENS, temperature=0.0, repeat_penalty=1.0)
    return STORY + done["choices"][0]["text"]


def transformers_story(folder):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    ids = model.generate(**tokenizer(STORY, return_tensors="pt"), max_new_tokens=STORY_TOKENS, do_sample=False)
    return tokenizer.decode(ids[0], skip_special_tokens=True)


# ---- the gate ----------------------------------------------------------------------------------------------------


@pytest.fixture
def wrong_order(monkeypatch):
    """Leave the rows of q and k in the order that transformers has."""
    blocks = tensors._blocks
    monkeypatch.setattr(tensors, "_blocks", lambda tensor: blocks(replace(tensor, head_dim=None)))


def test_q_and_k_in_the_wrong_order_do_not_pass(llama, tmp_path, wrong_order):
    with pytest.raises(VerificationError, match=r"llama\.cpp does not compute what transformers does: a logit differs"):
        export(llama.folder, tmp_path / "x.gguf", outtype="f32")
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == []


def test_an_mlp_of_no_neurons_beside_attention_does_not_pass(llama, tmp_path, monkeypatch):
    folder = pruned(llama, tmp_path / "x", mlp=[2])
    monkeypatch.setattr(layers, "ZERO_MLP_WIDTH", 0)
    monkeypatch.setattr(tensors._Planner, "_zero_mlp", lambda planner, name, width: iter(()))
    with pytest.raises(VerificationError, match="another next token at"):
        export(folder, tmp_path / "x.gguf", outtype="f32")


def test_a_first_layer_without_attention_is_not_left_empty(llama, tmp_path, monkeypatch):
    folder = pruned(llama, tmp_path / "x", attn=[0])
    slot = layers._slot
    monkeypatch.setattr(layers, "_slot", lambda structure, layer, *, first: slot(structure, layer, first=False))
    with pytest.raises(VerificationError, match="could not be compared: "):
        export(folder, tmp_path / "x.gguf", outtype="f32")
    assert not (tmp_path / "x.gguf").exists()


def test_a_llama3_rope_that_is_left_out_does_not_pass(tmp_path, monkeypatch):
    folder = base(tmp_path / "b", rope_scaling=LLAMA3_ROPE).folder
    monkeypatch.setattr(hyperparameters, "_llama3_divisors", lambda *given: (1.0,) * 4)
    with pytest.raises(VerificationError, match="a logit differs"):
        export(folder, tmp_path / "x.gguf", outtype="f32")


@pytest.mark.parametrize("outtype", ["f16", "q8_0"])
def test_a_wrong_export_does_not_pass_as_a_rounded_one(outtype, llama, tmp_path, wrong_order):
    with pytest.raises(VerificationError, match="logits differ by"):
        export(llama.folder, tmp_path / "x.gguf", outtype=outtype)


def test_a_tokenizer_that_cuts_differently_does_not_pass(llama, tmp_path, monkeypatch):
    read = writing.read_byte_level
    monkeypatch.setattr(writing, "read_byte_level", lambda files: replace(read(files), add_bos=True))
    with pytest.raises(VerificationError, match="12 of 12 texts are cut into other tokens"):
        export(llama.folder, tmp_path / "x.gguf", outtype="f32")
