"""The tensors of a quantized matrix, as the compressed-tensors package writes and reads them.

w4a16, w8a16   weight_packed   int32 [rows, columns * bits / 32], the first value in the lowest bits
               weight_scale    [rows, groups], in the dtype that the weight had; bfloat16 where that was float32
               weight_shape    int64 [2]
fp8            weight          float8 E4M3 [rows, columns]
               weight_scale    [rows, 1]
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubprune.core.extras import require
from hubprune.core.specs import QuantizationSpec
from hubprune.quantizing.schemes import BITS, SUFFIX, WORD_BITS, Matrix, format_of, weight_arguments

if TYPE_CHECKING:
    import torch

PIECE = 2**22
"""Numbers that are packed at a time: on the way, each takes a dozen bytes."""
PACKED, SCALE, SHAPE = "weight_packed", "weight_scale", "weight_shape"


def require_package() -> str:
    """Return the version of the package that fixes the format.

    Raises:
        MissingDependencyError: it is not installed.
    """
    from importlib.metadata import version

    require("quantize", doing="A quantized checkpoint")
    return version("compressed-tensors")


def stored_shapes(matrix: Matrix, spec: QuantizationSpec, *, dtype: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return the tensors that stand for a matrix: name -> dtype, as safetensors spells it, and shape, in their order.

    `dtype` is that of the matrix before.
    """
    dtype = "BF16" if dtype == "F32" else dtype
    groups = matrix.columns // spec.columns if spec.columns else 1
    scale = {f"{matrix.module}.{SCALE}": (dtype, (matrix.rows, groups))}
    if spec.scheme == "fp8":
        return {matrix.name: ("F8_E4M3", (matrix.rows, matrix.columns)), **scale}
    words = matrix.columns * BITS[spec.scheme] // WORD_BITS
    packed = {f"{matrix.module}.{PACKED}": ("I32", (matrix.rows, words))}
    return {**packed, **scale, f"{matrix.module}.{SHAPE}": ("I64", (2,))}


def is_part(name: str, dtype: str) -> bool:
    """Tell whether a tensor is one of those that stand for a quantized matrix, by its name and dtype."""
    return name.endswith((f".{PACKED}", f".{SCALE}", f".{SHAPE}")) or dtype == "F8_E4M3"


def read_parts(matrix: Matrix, spec: QuantizationSpec, where: Mapping[str, Path]) -> dict[str, torch.Tensor]:
    """Read the tensors that stand for a matrix; `where` says in which file each tensor is."""
    from safetensors import safe_open

    parts = {}
    for name in stored_shapes(matrix, spec, dtype="F32"):
        with safe_open(where[name], "pt") as stored:
            parts[name] = stored.get_tensor(name)
    return parts


def extra_parameters(matrices: Iterable[Matrix], spec: QuantizationSpec) -> int:
    """Return how many numbers transformers counts as parameters beside the matrices': scales and shapes."""
    shapes = (stored_shapes(matrix, spec, dtype="F32") for matrix in matrices)
    names = (f".{SCALE}", f".{SHAPE}")
    return sum(math.prod(shape) for found in shapes for name, (_, shape) in found.items() if name.endswith(names))


def encode(
    values: torch.Tensor, scale: torch.Tensor, spec: QuantizationSpec, *, module: str
) -> dict[str, torch.Tensor]:
    """Return the tensors that stand for the values and scales of a matrix, by their names."""
    import torch

    if spec.scheme == "fp8":
        return {f"{module}{SUFFIX}": values, f"{module}.{SCALE}": scale}
    packer, scheme = _package(spec)
    packed = []
    for some, steps in zip(_split(values), _split(scale, of=values), strict=True):
        # The package rounds what it packs; of values times scales in float32 it finds the values again.
        exact = _times(some, steps.float())
        packed.append(packer.compress({"weight": exact, SCALE: steps.float()}, scheme)[PACKED])
    shape = torch.tensor(values.shape)
    return {f"{module}.{PACKED}": torch.cat(packed), f"{module}.{SCALE}": scale, f"{module}.{SHAPE}": shape}


def decode(
    tensors: Mapping[str, torch.Tensor], spec: QuantizationSpec, *, module: str, dtype: torch.dtype
) -> torch.Tensor:
    """Return the matrix that some tensors stand for, in a float dtype, as the package reads them."""
    import torch

    packer, scheme = _package(spec)
    scale = tensors[f"{module}.{SCALE}"]
    if spec.scheme == "fp8":
        return _times(tensors[f"{module}{SUFFIX}"].float(), scale.float()).to(dtype)
    packed, shape = tensors[f"{module}.{PACKED}"], tensors[f"{module}.{SHAPE}"]
    found = []
    for some, steps in zip(_split(packed), _split(scale, of=packed), strict=True):
        size = torch.tensor([len(some), int(shape[1])])
        state = {PACKED: some, SCALE: steps.float(), SHAPE: size}
        found.append(packer.decompress(state, scheme)["weight"].to(dtype))
    return torch.cat(found)


def _package(spec: QuantizationSpec) -> tuple[Any, Any]:
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme

    scheme = QuantizationScheme.model_validate({"targets": ["Linear"], "weights": weight_arguments(spec)})
    return BaseCompressor.get_value_from_registry(format_of(spec)), scheme


def _split(tensor: torch.Tensor, *, of: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
    """Divide a matrix by rows, as many at a time as are `PIECE` numbers of another one, or of itself."""
    parts: tuple[torch.Tensor, ...] = tensor.split(max(1, PIECE // (tensor if of is None else of).shape[1]))
    return parts


def _times(values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    groups = values.float().reshape(*scale.shape, -1)
    return (groups * scale[..., None]).reshape(values.shape)
