"""Exports run in llama.cpp: the same logits, texts and tokens as in transformers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from exported import DROPS, base, export, pruned

from hubprune.exporting import parity

pytest.importorskip("llama_cpp")
SHARED = Path(os.environ.get("HUBPRUNE_SHARED_DATA") or Path(__file__).parents[3] / "shared" / "data")
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
