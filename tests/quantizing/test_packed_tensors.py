"""The tensors in the files, against the package that readers have."""

from __future__ import annotations

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationScheme

from hubprune.core import extras
from hubprune.core.errors import MissingDependencyError, RecipeError, UnsupportedFormatError
from hubprune.core.specs import QuantizationSpec
from hubprune.core.weights import DTYPE_BITS
from hubprune.quantizing import gptq, packing
from hubprune.quantizing.schemes import Matrix, bits_per_weight, require_fit, weight_arguments

SPECS = [
    QuantizationSpec(scheme="w4a16", group_size=32), QuantizationSpec(scheme="w4a16", group_size=8),
    QuantizationSpec(scheme="w8a16", group_size=16), QuantizationSpec(scheme="fp8"),
]  # fmt: skip
NAMES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.int32: "I32", torch.int64: "I64"}


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.scheme}-{spec.columns}")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_is_written_is_what_the_package_reads_and_has_the_announced_shapes(spec, dtype, monkeypatch):
    monkeypatch.setattr(packing, "PIECE", 200)  # a few rows at a time
    weight = torch.randn(10, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    scale = gptq.scales_of(weight, spec)
    values = gptq.round_to_nearest(weight, scale, spec)
    tensors = packing.encode(values, scale, spec, module="m")
    exact = values.float() * scale.float().repeat_interleave(64 // scale.shape[1], 1)
    assert torch.equal(packing.decode(tensors, spec, module="m", dtype=torch.float32), exact)
    scheme = QuantizationScheme.model_validate({"targets": ["Linear"], "weights": weight_arguments(spec)})
    theirs = BaseCompressor.get_value_from_registry("float-quantized" if spec.scheme == "fp8" else "pack-quantized")
    state = {name.removeprefix("m."): tensor for name, tensor in tensors.items()}
    assert torch.equal(theirs.decompress(state, scheme)["weight"], exact.to(dtype))
    planned = packing.stored_shapes(Matrix("m.weight", 10, 64), spec, dtype=NAMES[dtype])
    kinds = {**NAMES, torch.float8_e4m3fn: "F8_E4M3"}
    assert {n: (kinds[t.dtype], tuple(t.shape)) for n, t in tensors.items()} == planned


@pytest.mark.parametrize(("group", "bits"), [(128, 4.125), (32, 4.5)])
def test_bits_per_weight_are_those_of_values_and_scales(group, bits):
    spec = QuantizationSpec(scheme="w4a16", group_size=group)
    matrices = {f"m{i}.weight": Matrix(f"m{i}.weight", 8 * i, 128 * i) for i in (1, 3)}
    assert bits_per_weight(matrices, spec) == bits
    sizes = 0
    for matrix in matrices.values():
        for name, (dtype, shape) in packing.stored_shapes(matrix, spec, dtype="BF16").items():
            sizes += 0 if name.endswith("shape") else torch.Size(shape).numel() * DTYPE_BITS[dtype]
    assert sizes / sum(m.parameters for m in matrices.values()) == bits


def test_a_group_size_that_does_not_divide_is_told_with_those_that_do():
    matrices = {"a.weight": Matrix("a.weight", 4, 256), "b.weight": Matrix("b.weight", 4, 96)}
    with pytest.raises(
        RecipeError, match=r"^b.weight of x has 96 columns, which groups of 128 do not divide. "
    ) as error:
        require_fit(matrices, QuantizationSpec(), name="x")
    assert error.value.hint == "Pass --group-size 32, or --scheme fp8, which has one scale per row."
    require_fit(matrices, QuantizationSpec(group_size=32), name="x")
    require_fit(matrices, QuantizationSpec(scheme="fp8"), name="x")
    with pytest.raises(RecipeError, match="Groups of 4 columns do not fill numbers of 32 bits with w4a16"):
        require_fit(matrices, QuantizationSpec(group_size=4), name="x")


def test_a_checkpoint_without_matrices_is_an_error():
    with pytest.raises(UnsupportedFormatError, match="x has no matrices"):
        require_fit({}, QuantizationSpec(), name="x")


def test_without_the_package_the_error_names_the_extra(monkeypatch):
    monkeypatch.setattr(extras, "is_installed", lambda name: False)
    with pytest.raises(MissingDependencyError) as error:
        packing.require_package()
    assert error.value.hint == extras.install("quantize")
