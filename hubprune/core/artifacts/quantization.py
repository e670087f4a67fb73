"""Artifacts of a quantized checkpoint: what was written, how, and how far it is from what it was made of."""

from __future__ import annotations

from typing import Literal

from hubprune.core.artifacts.base import Artifact, CalibrationRecord
from hubprune.core.artifacts.pruning import Verification, WrittenCheckpoint

QuantizationScheme = Literal["w4a16", "w8a16", "fp8"]
"""Bits of weights and of what they are multiplied with; fp8 has 8-bit floats for both, scaled per row and per token."""
QuantizationMethod = Literal["gptq", "rtn"]
"""GPTQ (arXiv 2210.17323), or each weight rounded to the nearest value."""


class Divergence(Artifact):
    """How far the next-token distributions of a quantized model are from those of the model it was made of."""

    kl: float
    """Mean of KL(before || quantized) over positions, in nats per token."""
    kl_error: float
    """Standard error of that mean, by document."""
    top1: float
    """Share of positions at which both name the same most likely token."""
    perplexity: float
    quantized_perplexity: float
    documents: int
    tokens: int
    """Positions."""


class QuantizationRecord(Artifact):
    """How a checkpoint was quantized, and what came of it.

    It stands in the quantized config.json itself, as `hubprune` in its `quantization_config`: transformers and vLLM
    pass over keys that they do not know there, and it travels wherever that file goes.
    """

    source: str
    """Repo id of the checkpoint before, or the name of its folder."""
    source_commit: str | None
    """Commit of that repo; None for a folder."""
    scheme: QuantizationScheme
    group_size: int | None
    """Columns that share a scale; None for whole rows."""
    method: QuantizationMethod
    ignored: tuple[str, ...]
    """Modules that keep their dtype."""
    matrices: int
    """Matrices that were quantized."""
    quantized_parameters: int
    """Numbers in them."""
    bits_per_weight: float
    """Bits of these, scales included."""
    source_bytes: int
    """Weight bytes of the checkpoint before."""
    weight_bytes: int
    calibration: CalibrationRecord | None
    """What the second moments of the inputs were taken over; None for rtn."""
    divergence: Divergence | None
    """On documents of the same mix that were not calibrated on; None where it was not measured."""
    compressed_tensors: str
    """Version of the package that fixes the format."""


class QuantizedCheckpoint(Artifact):
    """A quantized checkpoint, written and verified."""

    written: WrittenCheckpoint
    record: QuantizationRecord
    verification: Verification
