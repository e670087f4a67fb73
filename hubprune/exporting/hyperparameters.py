"""The numbers of a config.json that a GGUF file needs, each checked before it is used: configs come from strangers.

Rotary embeddings are of the kinds that llama.cpp computes as transformers does; others are refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hubprune.core.architectures import Architecture
from hubprune.core.errors import CheckpointError, UnsupportedArchitectureError

LARGEST = 2**31 - 1
LARGEST_REAL = 1e15
DEFAULT_THETA = 10000.0
MAX_LAYERS = 512
"""`LLAMA_MAX_LAYERS` of llama.cpp."""
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "llama": {"max_position_embeddings": 2048, "num_key_value_heads": None, "sliding_window": None},
    "mistral": {"max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096},
}
"""What transformers takes where a config.json says nothing, as far as the families differ."""


@dataclass(frozen=True, kw_only=True)
class Rope:
    """The rotary embedding of a model."""

    theta: float
    linear_factor: float | None = None
    frequency_divisors: tuple[float, ...] | None = None
    """One per pair of values in a head; llama.cpp divides each frequency by it (`rope_freqs.weight`)."""


@dataclass(frozen=True, kw_only=True)
class Hyperparameters:
    """Sizes and constants of a Llama-shaped model."""

    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    context_length: int
    """Tokens, at most the sliding window where there is one."""
    rope: Rope
    tied: bool
    """Whether the head is the embedding."""
    biased: tuple[str, ...] = ()
    """Modules of a layer whose projections all have biases."""
    notes: tuple[str, ...] = ()


def check_layers(config: Mapping[str, Any], *, where: str) -> None:
    """Check the numbers that reading the structure relies on.

    Raises:
        CheckpointError: one is missing, no number, or far too large.
    """
    layers = natural(config, "num_hidden_layers", where=where)
    if layers > MAX_LAYERS:
        raise CheckpointError(f"{where} has num_hidden_layers={layers}; llama.cpp takes at most {MAX_LAYERS}.")
    heads = natural(config, "num_attention_heads", where=where)
    natural({"num_key_value_heads": heads, **_without_none(config)}, "num_key_value_heads", where=where)
    natural(config, "hidden_size", where=where)
    if not config.get("block_configs") and not config.get("mlp_intermediate_sizes"):
        natural(config, "intermediate_size", where=where)


def read_hyperparameters(config: Mapping[str, Any], architecture: Architecture, *, where: str) -> Hyperparameters:
    """Read what the file's metadata and the check of the tensors need; error messages call config.json `where`.

    Raises:
        CheckpointError: a value is missing, of the wrong type or out of range.
        UnsupportedArchitectureError: it asks for something that llama.cpp's Llama does not do.
    """
    given = {**DEFAULTS[architecture.model_type], **_without_none(config)}
    if (activation := given.get("hidden_act", "silu")) not in ("silu", "swish"):
        raise UnsupportedArchitectureError(f"{where} has hidden_act={activation!r}; llama.cpp's Llama has silu.")
    heads = natural(given, "num_attention_heads", where=where)
    hidden_size = natural(given, "hidden_size", where=where)
    context, notes = _context_length(config, given, where)
    head_dim = natural({"head_dim": hidden_size // heads, **given}, "head_dim", where=where)
    if head_dim % 2:
        raise CheckpointError(f"{where} has heads of {head_dim} values, an odd number, which RoPE cannot rotate.")
    kv_heads = heads if given["num_key_value_heads"] is None else natural(given, "num_key_value_heads", where=where)
    if heads % kv_heads:
        raise CheckpointError(f"{where}: {heads} attention heads are no multiple of {kv_heads} key-value heads.")
    biases = {architecture.attn_module: "attention_bias", architecture.mlp_module: "mlp_bias"}
    has_biases = architecture.model_type == "llama"  # Mistral has none
    return Hyperparameters(
        hidden_size=hidden_size, num_heads=heads, num_kv_heads=kv_heads, head_dim=head_dim,
        rms_norm_eps=positive({"rms_norm_eps": 1e-6, **given}, "rms_norm_eps", where=where),
        context_length=context, rope=read_rope(given, head_dim=head_dim, where=where),
        tied=flag(given, "tie_word_embeddings", where=where),
        biased=tuple(part for part, key in biases.items() if has_biases and flag(given, key, where=where)),
        notes=notes,
    )  # fmt: skip


def _without_none(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if value is not None}


def _context_length(config: Mapping[str, Any], given: Mapping[str, Any], where: str) -> tuple[int, tuple[str, ...]]:
    """Return the context length, capped to the sliding window, which llama.cpp's Llama does not have."""
    context = natural(given, "max_position_embeddings", where=where)
    says_none = "sliding_window" in config and config["sliding_window"] is None
    if says_none or given["sliding_window"] is None:
        return context, ()
    window = natural(given, "sliding_window", where=where)
    if window >= context:
        return context, ()
    note = f"context length {window:,} instead of {context:,}: llama.cpp ignores the sliding window of this model"
    return window, (note,)


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
    message = f"{where} has RoPE scaling of kind {kind!r}, which GGUF export does not write."
    raise UnsupportedArchitectureError(message, hint="It writes the kinds default, linear and llama3.")


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


def natural(config: Mapping[str, Any], key: str, *, where: str) -> int:
    """Return a positive whole number of a config.

    Raises:
        CheckpointError: it is none, or does not fit 32 bits.
    """
    value = config.get(key)
    if type(value) is not int or not 0 < value <= LARGEST:
        raise CheckpointError(f"{where} has {key}={value!r:.60}, which is no positive number of 32 bits.")
    return value


def positive(config: Mapping[str, Any], key: str, *, where: str) -> float:
    """Return a positive finite number of a config.

    Raises:
        CheckpointError: it is none.
    """
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= LARGEST_REAL:
        raise CheckpointError(f"{where} has {key}={value!r:.60}, which is no positive number.")
    return float(value)


def flag(config: Mapping[str, Any], key: str, *, where: str) -> bool:
    """Return a truth value of a config, False where it has none.

    Raises:
        CheckpointError: it is something else.
    """
    value = config.get(key, False)
    if not isinstance(value, bool):
        raise CheckpointError(f"{where} has {key}={value!r:.60}, which is neither true nor false.")
    return value
