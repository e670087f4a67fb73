"""Rotary embeddings: which kinds llama.cpp computes as transformers does, and what a file has to say of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hubprune.core.errors import CheckpointError, UnsupportedArchitectureError
from hubprune.exporting.checked import positive

DEFAULT_THETA = 10000.0


@dataclass(frozen=True, kw_only=True)
class Rope:
    """The rotary embedding of a model."""

    theta: float
    linear_factor: float | None = None
    """Positions are divided by it."""
    frequency_divisors: tuple[float, ...] | None = None
    """One per pair of values in a head; llama.cpp divides each frequency by it (`rope_freqs.weight`)."""


def read_rope(config: Mapping[str, Any], *, head_dim: int, where: str) -> Rope:
    """Read the rotary embedding from either spelling: `rope_parameters`, or `rope_theta` with `rope_scaling`.

    Raises:
        CheckpointError: a value is missing or no number.
        UnsupportedArchitectureError: a kind that is computed in another way by llama.cpp.
    """
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}  # transformers prefers the old one
    if not isinstance(scaling, dict):
        raise CheckpointError(f"{where} has a rope_scaling or rope_parameters that is no object.")
    values = {"rope_theta": config.get("rope_theta", DEFAULT_THETA), **scaling}
    theta = positive(values, "rope_theta", where=where)
    if (partial := values.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))) != 1:
        raise UnsupportedArchitectureError(f"{where} has partial_rotary_factor={partial!r}; GGUF export needs 1.")
    match kind := values.get("rope_type", values.get("type", "default")):
        case "default":
            return Rope(theta=theta)
        case "linear":
            return Rope(theta=theta, linear_factor=positive(values, "factor", where=where))
        case "llama3":
            return Rope(theta=theta, frequency_divisors=_llama3_divisors(values, theta, head_dim, where))
    raise UnsupportedArchitectureError(
        f"{where} has RoPE scaling of kind {kind!r}, which GGUF export does not write.",
        hint="It writes the kinds default, linear and llama3.",
    )


def _llama3_divisors(values: Mapping[str, Any], theta: float, head_dim: int, where: str) -> tuple[float, ...]:
    """Return by what each frequency is divided: 1 for short waves, `factor` for long ones, smooth in between.

    The formula is `_compute_llama3_parameters` of transformers' `modeling_rope_utils.py`.
    """
    keys = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    factor, low, high, original = (positive(values, key, where=where) for key in keys)
    if low >= high:
        raise CheckpointError(f"{where} has low_freq_factor={low}, which is not below high_freq_factor={high}.")

    def divisor(pair: int) -> float:
        """Return by what the frequency of one pair of values is divided."""
        wavelength: float = 2 * math.pi * theta ** (2 * pair / head_dim)
        if wavelength < original / high:
            return 1.0
        if wavelength > original / low:
            return factor
        smooth = (original / wavelength - low) / (high - low)
        return 1 / ((1 - smooth) / factor + smooth)

    return tuple(divisor(pair) for pair in range(head_dim // 2))
