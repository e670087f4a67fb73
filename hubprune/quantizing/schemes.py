"""What is quantized, and how config.json says so; whether it fits is known from names and shapes alone.

All matrices of all decoder layers get fewer bits.  Embedding and head keep their dtype: their values are looked up or
decide about single tokens, and few runtimes have kernels for them.  Projections that a runtime joins, as vLLM does with
those of queries, keys and values, have the same scheme that way.

    w4a16, w8a16   whole numbers, one scale for as many columns of a row as a group has; activations as they are
    fp8            E4M3 floats, one scale per row; activations are scaled token by token, as they come
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from hubprune.core.architectures import Architecture
from hubprune.core.artifacts import QuantizationRecord
from hubprune.core.errors import CheckpointError, RecipeError, UnsupportedFormatError
from hubprune.core.specs import DEFAULT_GROUP, USUAL_GROUPS, QuantizationSpec
from hubprune.core.weights import Weights

BITS = {"w4a16": 4, "w8a16": 8, "fp8": 8}
SCALE_BITS, WORD_BITS = 16, 32
"""Of a scale, and of the numbers that several weights are packed into."""
SOURCES = ("BF16", "F16", "F32")
"""dtypes of weights that can be quantized, as safetensors spells them."""
IGNORED = ("lm_head",)
SUFFIX = ".weight"
RECORD = "hubprune"
"""Key, in `quantization_config`, of what hubprune has to say of it."""
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Matrix:
    """A weight that gets fewer bits."""

    name: str
    """Of its tensor in the model."""
    rows: int
    columns: int

    @property
    def module(self) -> str:
        """Name of the module that it is the weight of."""
        return self.name.removesuffix(SUFFIX)

    @property
    def parameters(self) -> int:
        """Numbers in it."""
        return self.rows * self.columns


def find_matrices(shapes: Shapes, architecture: Architecture) -> dict[str, Matrix]:
    """Find what can be quantized: all weights inside decoder layers that have rows and columns, by their names."""
    return {
        name: Matrix(name, *shape)
        for name, shape in shapes.items()
        if name.startswith(architecture.layers_prefix) and name.endswith(SUFFIX) and len(shape) == 2
    }


def require_fit(matrices: Mapping[str, Matrix], spec: QuantizationSpec, *, name: str) -> None:
    """Refuse a group size that some matrix cannot be divided by.

    Raises:
        RecipeError: the message names the first such matrix, the hint the sizes that fit all of them.
    """
    if not matrices:
        raise UnsupportedFormatError(f"{name} has no matrices in decoder layers.", hint="Is it complete?")
    group, bits = spec.columns, BITS[spec.scheme]
    if group is None:
        return
    widths = sorted({matrix.columns for matrix in matrices.values()})

    def fits(size: int) -> bool:
        return all(width % size == 0 and size * bits % WORD_BITS == 0 for width in widths)

    if fits(group):
        return
    odd = next((m for m in matrices.values() if m.columns % group), None)
    fitting = [size for size in USUAL_GROUPS if fits(size)] or [n for n in range(min(widths), 0, -1) if fits(n)][:3]
    other = f"Pass --group-size {' or '.join(map(str, fitting))}, or" if fitting else "No group size fits all: pass"
    raise RecipeError(
        f"{odd.name} of {name} has {odd.columns:,} columns, which groups of {group} do not divide."
        if odd else f"Groups of {group} columns do not fill numbers of {WORD_BITS} bits with {spec.scheme}.",
        hint=f"{other} --scheme fp8, which has one scale per row.",
    )  # fmt: skip


def require_floats(weights: Weights, matrices: Mapping[str, Matrix], *, name: str) -> None:
    """Refuse weights that are no floats of 16 or 32 bits.

    Raises:
        UnsupportedFormatError: the message names the first of them.
    """
    for _, tensor in weights:
        if tensor.name in matrices and tensor.dtype not in SOURCES:
            raise UnsupportedFormatError(
                f"{tensor.name} of {name} has dtype {tensor.dtype}, and only {', '.join(SOURCES)} can be quantized.",
                hint="Take the checkpoint with 16-bit or 32-bit floats that it was made of.",
            )


def bits_per_weight(matrices: Mapping[str, Matrix], spec: QuantizationSpec) -> float:
    """Return the bits that a quantized number takes, its part of a scale of 16 bits included."""
    group, parameters = spec.columns, sum(matrix.parameters for matrix in matrices.values())
    scales = sum(matrix.rows * (matrix.columns // group if group else 1) for matrix in matrices.values())
    return BITS[spec.scheme] + SCALE_BITS * scales / parameters


def format_of(spec: QuantizationSpec) -> str:
    """Return what compressed-tensors calls the way that a scheme's tensors are kept."""
    return "float-quantized" if spec.scheme == "fp8" else "pack-quantized"


def weight_arguments(spec: QuantizationSpec) -> dict[str, Any]:
    """Return what compressed-tensors has to know of the weights of a scheme."""
    whole: dict[str, Any] = {
        "block_structure": None, "dynamic": False, "observer": "minmax", "observer_kwargs": {}, "symmetric": True,
    }  # fmt: skip
    if spec.scheme == "fp8":
        return {
            **whole, "actorder": None, "group_size": None, "num_bits": 8, "strategy": "channel", "type": "float",
        }  # fmt: skip
    return {
        # Columns are quantized in the order of their importance, and their groups are where they were.
        **whole, "actorder": "static" if spec.method == "gptq" else None, "group_size": spec.columns,
        "num_bits": BITS[spec.scheme], "strategy": "group", "type": "int",
    }  # fmt: skip


def activation_arguments(spec: QuantizationSpec) -> dict[str, Any] | None:
    """Return what compressed-tensors has to know of what the weights are multiplied with; None for as it comes."""
    if spec.scheme != "fp8":
        return None
    return {
        "actorder": None, "block_structure": None, "dynamic": True, "group_size": None, "num_bits": 8, "observer": None,
        "observer_kwargs": {}, "strategy": "token", "symmetric": True, "type": "float",
    }  # fmt: skip


def quantization_config(spec: QuantizationSpec, record: QuantizationRecord | None = None) -> dict[str, Any]:
    """Return the key of config.json by which transformers and vLLM know a quantized checkpoint."""
    group = {
        "format": format_of(spec), "input_activations": activation_arguments(spec), "output_activations": None,
        "targets": ["Linear"], "weights": weight_arguments(spec),
    }  # fmt: skip
    return {
        "config_groups": {"group_0": group}, "format": format_of(spec), "global_compression_ratio": None,
        "ignore": list(IGNORED), "kv_cache_scheme": None, "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        **({RECORD: record.model_dump(mode="json")} if record else {}),
    }  # fmt: skip


def decoded_config(spec: QuantizationSpec) -> dict[str, Any]:
    """Return what config.json says of a checkpoint with decoded weights that computes as a quantized one does.

    Nothing, unless what enters the matrices is rounded too.
    """
    if not (activations := activation_arguments(spec)):
        return {}
    group = {"input_activations": activations, "output_activations": None, "targets": ["Linear"], "weights": None}
    told = {"config_groups": {"group_0": group}, "format": "dense", "ignore": list(IGNORED)}
    return {"quantization_config": {**told, "quant_method": "compressed-tensors", "quantization_status": "frozen"}}


def record_of(config: Mapping[str, Any]) -> QuantizationRecord | None:
    """Return what a config.json says of how hubprune quantized the weights; None where it does not.

    Raises:
        CheckpointError: what it says is no record of this version.
    """
    told = config.get("quantization_config")
    found = told.get(RECORD) if isinstance(told, Mapping) else None
    if found is None:
        return None
    try:
        return QuantizationRecord.model_validate(found)
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"]))
        raise CheckpointError(
            f"config.json holds a record of quantizing that cannot be read: {place}: {error.errors()[0]['msg']}.",
            hint="Another version of hubprune may have written it.",
        ) from error


def spec_of(record: QuantizationRecord) -> QuantizationSpec:
    """Return what was asked for when a checkpoint was quantized."""
    size = None if record.scheme == "fp8" else record.group_size or DEFAULT_GROUP
    return QuantizationSpec(scheme=record.scheme, group_size=size, method=record.method)
