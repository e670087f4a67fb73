"""Folders in fewer bits are expanded as they are loaded, to the numbers that a reader computes with."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from little import write_base
from safetensors.torch import load_file, save_file

from hubprune.core.console import Reporter
from hubprune.core.neutral import load_causal_lm
from hubprune.core.specs import QuantizationSpec
from hubprune.evaluation.layer_tree import Variant, why_not
from hubprune.evaluation.models import load_model, weight_bytes
from hubprune.evaluation.pair import ModelFolder, Pair
from hubprune.quantizing import gptq
from hubprune.quantizing.packing import encode
from hubprune.quantizing.schemes import quantization_config

pytest.importorskip("compressed_tensors")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A base, and the same rounded to four bits and to eight-bit floats."""
    root = tmp_path_factory.mktemp("quantized")
    base = write_base(root / "base")
    for scheme, group in (("w4a16", 16), ("fp8", None)):
        spec = QuantizationSpec(scheme=scheme, group_size=group, method="rtn")
        folder = shutil.copytree(base, root / scheme)
        tensors = {}
        for name, weight in load_file(base / "model.safetensors").items():
            if "layers." not in name or weight.dim() < 2:
                tensors[name] = weight
                continue
            scale = gptq.scales_of(weight, spec)
            module, values = name.removesuffix(".weight"), gptq.round_to_nearest(weight, scale, spec)
            tensors |= encode(values, scale, spec, module=module)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "quantization_config": quantization_config(spec)}))
    return root


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_measured_computes_exactly_what_a_reader_does(folders, dtype):
    ids = torch.arange(2, 60)[None]
    loaded = load_model(folders / "w4a16", device="cpu", dtype=dtype, trust_remote_code=False)
    reader, base = (
        load_causal_lm(folders / name, dtype=getattr(torch, dtype), own_code=False) for name in ("w4a16", "base")
    )
    with torch.inference_mode():
        found, expected, before = (model(ids).logits for model in (loaded.model, reader, base))
    assert torch.equal(found, expected)
    assert not torch.equal(found, before)
    assert why_not(Variant.of("x", loaded.model)) is None
    names = {name for name, _ in base.named_parameters()}
    assert {name for name, _ in loaded.model.named_parameters()} == names


def test_memory_is_counted_for_what_is_expanded(folders):
    assert weight_bytes(folders / "w4a16", dtype="float32") == pytest.approx(
        weight_bytes(folders / "base", dtype="float32"), rel=0.1
    )
    stored = sum(path.stat().st_size for path in (folders / "w4a16").glob("*.safetensors"))
    assert weight_bytes(folders / "w4a16", dtype="auto") > 1.5 * stored


def test_a_pair_with_a_quantized_model_shares_nothing_and_says_nothing_of_it(folders, capsys):
    base, other = (ModelFolder(folders / name) for name in ("base", "w4a16"))
    with Pair(base, other, device="cpu", dtype="float32", reporter=Reporter()) as pair:
        assert pair.fits
        assert pair.needed == sum(weight_bytes(f.path, dtype="float32") for f in (base, other))
        models = [pair.load(name).model for name in ("base", "pruned")]
    assert "shares nothing" not in capsys.readouterr().err
    assert models[0].lm_head.weight.data_ptr() != models[1].lm_head.weight.data_ptr()


def test_what_computes_in_few_bits_is_left_to_transformers(folders):
    loaded = load_model(folders / "fp8", device="cpu", dtype="auto", trust_remote_code=False)
    assert why_not(Variant.of("x", loaded.model)) == "it is quantized"
