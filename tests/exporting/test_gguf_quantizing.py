"""Types that llama.cpp's quantizer makes: what is refused, what they may lose, and what the files hold."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from bases import noise, random_tensors, shapes
from exported import base, export, pruned
from gguf import GGUFReader

from hubprune.core.artifacts import OUTTYPES, ParityFigures
from hubprune.core.errors import DiskSpaceError, MissingDependencyError, RecipeError, VerificationError
from hubprune.core.extras import install
from hubprune.exporting import bounds, quantizing, tensors, writing
from hubprune.exporting.layers import SAVED

FIGURES = ParityFigures(
    positions=200, agreed=180, undecided=0, max_logit_difference=0.5, relative_difference=0.2, kl_divergence=0.02,
    greedy_texts=4, equal_greedy_texts=1, tokenized_texts=12, equal_tokenized_texts=12,
)  # fmt: skip


@pytest.mark.parametrize("text", ["q9_k", "q4", "", "Q4_K_M.gguf"])
def test_an_unknown_type_is_an_error_that_lists_all(text):
    with pytest.raises(RecipeError, match=r"There is no --outtype") as caught:
        quantizing.check_outtype(text)
    assert caught.value.hint == f"There are {', '.join(OUTTYPES)}."


def test_types_that_take_an_importance_matrix_are_refused_with_the_reason():
    with pytest.raises(RecipeError) as caught:
        quantizing.check_outtype("IQ2_XXS")
    assert caught.value.hint.startswith("Types of fewer bits take an importance matrix")


def test_a_missing_llama_cpp_python_is_said_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(quantizing.importlib.util, "find_spec", lambda name: None)
    folder = base(tmp_path / "b").folder
    with pytest.raises(MissingDependencyError, match="q4_k_m is made by llama") as caught:
        export(folder, tmp_path / "x.gguf", outtype="q4_k_m")
    assert install("gguf") in caught.value.hint
    assert quantizing.check_outtype("Q8_0") == "q8_0"


@pytest.mark.parametrize(("dtype", "plain"), [(torch.float32, "f32"), (torch.float16, "f16"), (torch.bfloat16, "bf16")])
def test_the_quantizer_reads_every_value_as_the_checkpoint_holds_it(dtype, plain, tmp_path):
    made = base(tmp_path / "b", lambda config: random_tensors(config, dtype=dtype))
    content = writing.plan_content(tmp_path / "b", made.config, name="x", outtype="q4_k_m")
    assert (content.outtype, content.plain) == ("q4_k_m", plain)
    assert content.disk_bytes == content.data_bytes + quantizing.quantized_bytes(content.tensors, "q4_k_m")


def test_the_disk_has_to_hold_the_plain_file_too(tmp_path, monkeypatch):
    monkeypatch.setattr(quantizing.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(writing.shutil, "disk_usage", lambda path: type("Disk", (), {"free": 65 * 2**20}))
    folder = base(tmp_path / "b", vocab_size=20000, hidden_size=64).folder
    with pytest.raises(DiskSpaceError, match="The export takes"):
        export(folder, tmp_path / "x.gguf", outtype="q4_k_m", no_verify=True)
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


@pytest.mark.parametrize(
    ("changes", "control", "message"),
    [
        ({}, {}, None),
        ({"relative_difference": 0.9}, None, "logits differ by 90.00% of their spread, 80.00% are allowed"),
        ({"kl_divergence": 0.07}, {}, "diverge by 0.070 nats, 0.060 are allowed"),
        ({"agreed": 130}, {}, "65% of next tokens are the same, and 90% of the control's"),
        ({"equal_tokenized_texts": 11}, {}, "1 of 12 texts are cut into other tokens"),
    ],
)
def test_types_of_few_bits_are_held_to_what_the_unpruned_base_loses(changes, control, message):
    other = None if control is None else FIGURES.model_copy(update=control)
    found = bounds.failures("q4_k_m", FIGURES.model_copy(update=changes), other)
    assert found == () if message is None else message in found[0]


# ---- in llama.cpp ------------------------------------------------------------------------------------------------


def needs_llama_cpp():
    return pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is None, reason="llama-cpp-python is not here")


def wide(folder):
    """Make a Llama whose rows are multiples of 256."""
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8, "num_key_value_heads": 4}
    return base(folder, lambda config: noise(shapes(config), dtype=torch.bfloat16), **sizes)


@needs_llama_cpp()
def test_a_k_quant_is_smaller_and_compared_with_the_base_in_the_same_type(tmp_path):
    whole = wide(tmp_path / "b")
    folder = pruned(whole, tmp_path / "x", attn=[2], mlp=[4])
    made = export(folder, tmp_path / "x.gguf", outtype="q4_k_m", base=whole.folder)
    assert made.parity.failures == ()
    assert made.parity.model.kl_divergence < bounds.TIMES_DIVERGENCE * made.parity.control.kl_divergence
    assert "times its divergence" in made.parity.rule
    kinds = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(made.file).tensors}
    assert kinds["blk.0.attn_q.weight"] == "Q4_K"
    assert made.notes == (SAVED.format(1),)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "x", "x.gguf"]


@needs_llama_cpp()
def test_rows_that_do_not_fit_a_k_quant_are_counted_in_the_notes(tmp_path):
    made = export(base(tmp_path / "b").folder, tmp_path / "x.gguf", outtype="q6_k", no_verify=True)
    (note,) = made.notes
    assert note.startswith("37 of 37 matrices have rows that are no multiple of 256 values, as q6_k wants them; ")


@needs_llama_cpp()
def test_a_wrong_file_does_not_pass_as_a_quantized_one(tmp_path, monkeypatch):
    folder = wide(tmp_path / "b").folder
    read = tensors._blocks
    monkeypatch.setattr(tensors, "_blocks", lambda tensor: (block[::-1].copy() for block in read(tensor)))
    with pytest.raises(VerificationError, match="logits differ by"):
        export(folder, tmp_path / "x.gguf", outtype="q4_k_m")


@needs_llama_cpp()
def test_a_quantizer_that_fails_is_one_error_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "_add_metadata", lambda writer, content: None)
    with pytest.raises(VerificationError, match=r"llama\.cpp's quantizer made no q4_k_m: "):
        export(base(tmp_path / "b").folder, tmp_path / "x.gguf", outtype="q4_k_m", no_verify=True)
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
