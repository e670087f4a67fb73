"""Quantizing a folder: what is written and told, what a verification sees, and what cannot be quantized."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from bases import LLAMA, random_tensors, write_base, write_tokenizer
from safetensors.torch import load_file, save_file

from hubprune.core.console import Reporter
from hubprune.core.errors import (
    BaseNotFoundError,
    CalibrationError,
    EvaluationError,
    RecipeError,
    UnsupportedFormatError,
    UnverifiedError,
    VerificationError,
)
from hubprune.core.requests import CompareRequest, ExportRequest, PruneRequest, QuantizeRequest, VerifyRequest
from hubprune.core.weights import SINGLE_NAME
from hubprune.pruning import loading, verify
from hubprune.workflows import compare, export, prune, quantize
from hubprune.workflows.verify import check

CONFIG = {**LLAMA, "torch_dtype": "bfloat16", "num_hidden_layers": 3}
TEXTS = ["The river was high.", "To make bread you need flour.", "One day a fox came by.", "Paris, 1889."] * 6
SILENT = Reporter(quiet=True)


class Listening(Reporter):
    """Keeps what is noted."""

    def __init__(self):
        super().__init__(quiet=True)
        self.notes = []

    def note(self, text):
        self.notes.append(text)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A base, the same without an attention, and texts."""
    root = tmp_path_factory.mktemp("quantize")
    base = write_base(root / "base", CONFIG, random_tensors(CONFIG, dtype=torch.bfloat16))
    if not (Path(base.folder) / "tokenizer.json").is_file():
        write_tokenizer(Path(base.folder))
    (root / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return root


@pytest.fixture(autouse=True)
def in_process(monkeypatch, tmp_path):
    """Compare in this process, and keep nothing elsewhere."""
    monkeypatch.setenv("HUBPRUNE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(verify, "NEW_TOKENS", 2)
    monkeypatch.setattr(
        verify, "_in_fresh_process", lambda action, request, answer, **_: loading._ACTIONS[action][1](request)
    )


def quantized(folders, out, *, of="base", **options):
    asked = {"group_size": 16, "calibration": str(folders / "texts.jsonl"), "num_samples": 12, **options}
    return quantize.quantize(QuantizeRequest(str(folders / of), out=out, **asked), reporter=SILENT)


def tell(folder):
    return json.loads((folder / "config.json").read_text())


def test_one_key_more_in_config_json_and_the_record_of_what_was_done(folders, tmp_path):
    made = quantized(folders, tmp_path / "out")
    before, after = tell(folders / "base"), tell(tmp_path / "out")
    told = after.pop("quantization_config")
    assert {**before, "dtype": None} == {**after, "dtype": None}
    assert told["format"] == "pack-quantized"
    assert told["hubprune"] == made.record.model_dump(mode="json")
    assert (made.record.source, made.record.calibration.documents) == ("base", 12)
    assert made.record.divergence.documents == quantize.LEAST_HELD_OUT
    assert made.record.weight_bytes == made.written.weight_bytes
    assert all(check.passed for check in made.verification.checks)
    assert not list((tmp_path / "home" / "quantized").iterdir())
    tokenizer = (folders / "base" / "tokenizer.json").read_bytes()
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == tokenizer


def test_a_pruned_folder_is_verified_against_its_base_and_told_beside_it(folders, tmp_path):
    pruned = folders / "pruned"
    prune.prune(PruneRequest(str(folders / "base"), out=pruned, attn_layers=(1,)), reporter=SILENT)
    out = tmp_path / "out"
    quantized(folders, out, of="pruned", method="rtn")
    for base in (folders / "base", pruned):
        seen = check(VerifyRequest(str(out), base=str(base)), reporter=SILENT)
        assert [found.name for found in seen.checks if not found.passed] == []
        assert "next tokens are near those before" in [found.name for found in seen.checks]
    with pytest.raises(BaseNotFoundError) as error:
        check(VerifyRequest(str(out)), reporter=SILENT)
    assert error.value.hint == "It was made of pruned. Say where that is, or its base, with --base FOLDER."
    told = compare.compare(CompareRequest(str(pruned), str(out)))
    assert told.second.quantization.startswith("w4a16 by rtn, 5 bits per weight of ")
    assert (told.first.quantization, told.first.parameters) == (None, told.second.parameters)


@pytest.mark.parametrize(
    ("part", "failing"),
    [
        ("weight_packed", "matrices decode to what they were, about"),
        ("weight_scale", "scales follow from the weights"),
        ("input_layernorm.weight", "all other tensors as they were, byte for byte"),
    ],
)
def test_what_was_changed_afterwards_is_seen(folders, tmp_path, part, failing):
    out = tmp_path / "out"
    quantized(folders, out, scheme="w8a16", method="rtn", calibration="none")
    tensors = load_file(out / SINGLE_NAME)
    name = next(name for name in tensors if name.endswith(part))
    tensors[name] = tensors[name].flip(0) + 1
    save_file(tensors, out / SINGLE_NAME, metadata={"format": "pt"})
    seen = check(VerifyRequest(str(out), base=str(folders / "base")), reporter=SILENT)
    assert failing in [found.name for found in seen.checks if not found.passed]


def test_nothing_appears_that_does_not_compute_what_its_tensors_stand_for(folders, tmp_path, monkeypatch):
    from hubprune.quantizing import writing

    decode = writing.decode
    monkeypatch.setattr(writing, "decode", lambda *args, **options: decode(*args, **options) * 1.01)
    with pytest.raises(VerificationError, match="logits equal those of the decoded weights"):
        quantized(folders, tmp_path / "out", method="rtn", calibration="none")
    assert not (tmp_path / "out").exists()


def test_nothing_is_quantized_twice_pruned_afterwards_or_exported(folders, tmp_path):
    out = tmp_path / "out"
    quantized(folders, out, method="rtn", calibration="none")
    with pytest.raises(UnsupportedFormatError, match="is quantized already") as error:
        quantize.quantize(QuantizeRequest(str(out), out=tmp_path / "more"), reporter=SILENT)
    assert error.value.hint == "Quantize the checkpoint that it was made of, base."
    with pytest.raises(UnsupportedFormatError) as error:
        prune.prune(PruneRequest(str(out), out=tmp_path / "more", attn_layers=(1,)), reporter=SILENT)
    assert error.value.hint == "Prune the unquantized base; then `hubprune quantize` the result."
    with pytest.raises(UnsupportedFormatError) as error:
        export.export_gguf(ExportRequest(str(out), out=tmp_path / "more.gguf"), reporter=SILENT)
    assert error.value.hint == "Export the checkpoint that it was made of, base."
    assert not list(tmp_path.glob("more*"))


def test_what_does_not_fit_is_told_before_anything_is_read(folders, tmp_path):
    with pytest.raises(RecipeError, match="48 columns, which groups of 128 do not divide") as error:
        quantized(folders, tmp_path / "out", group_size=None)
    assert error.value.hint.startswith("Pass --group-size 16 or 8")
    with pytest.raises(RecipeError, match="GPTQ needs texts"):
        quantized(folders, tmp_path / "out", calibration="none")
    with pytest.raises(RecipeError, match="--group-size is for w4a16 and w8a16"):
        quantized(folders, tmp_path / "out", scheme="fp8")


@pytest.mark.parametrize(("text", "told"), [("", "texts.jsonl"), ('{"text": "a b"}\n', "has 1 documents")])
def test_too_few_texts_are_told_with_what_to_do(folders, tmp_path, text, told):
    few = tmp_path / "texts.jsonl"
    few.write_text(text)
    with pytest.raises(CalibrationError, match=told) as error:
        quantized(folders, tmp_path / "out", calibration=str(few))
    assert error.value.hint
    assert not (tmp_path / "out").exists()


def test_weights_that_are_no_floats_of_16_or_32_bits_are_refused(folders, tmp_path):
    shutil.copytree(folders / "base", tmp_path / "base")
    tensors = load_file(tmp_path / "base" / SINGLE_NAME)
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)
    save_file(tensors, tmp_path / "base" / SINGLE_NAME, metadata={"format": "pt"})
    with pytest.raises(UnsupportedFormatError, match=f"{name} of base has dtype F8_E4M3"):
        quantize.quantize(
            QuantizeRequest(
                str(tmp_path / "base"), out=tmp_path / "out", group_size=16, method="rtn", calibration="none"
            ),
            reporter=SILENT,
        )


def test_too_little_memory_is_told_before_a_layer_is_read_or_the_result_is_loaded(folders, tmp_path, monkeypatch):
    from hubprune.quantizing import layerwise
    from hubprune.workflows import quantized as beside

    with monkeypatch.context() as little:
        little.setattr(layerwise, "available_bytes", lambda: 1000)
        with pytest.raises(EvaluationError, match=r"and 1\.00 kB may be taken"):
            quantized(folders, tmp_path / "out")
    old = tmp_path / "home" / "quantized" / "of-a-run-long-ago"
    old.mkdir(parents=True)
    os.utime(old, (0, 0))
    with monkeypatch.context() as little:
        little.setattr(beside, "available_bytes", lambda: 1000)
        with pytest.raises(UnverifiedError, match="decodes it into"):
            quantized(folders, tmp_path / "out")
    notes = Listening()
    quantize.quantize(
        QuantizeRequest(
            str(folders / "base"), out=tmp_path / "out", group_size=16, calibration=str(folders / "texts.jsonl"),
            num_samples=12,
        ),
        reporter=notes,
    )  # fmt: skip
    assert "3 of 3 layers were quantized by an earlier run" in notes.notes
    assert not old.exists()
