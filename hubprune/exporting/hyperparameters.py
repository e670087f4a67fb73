"""The numbers of a config.json that a GGUF file needs, each checked before it is used: configs come from strangers.

Rotary embeddings are of the kinds that llama.cpp computes as transformers does; others are refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hubprune.core.architectures import FULL, SLIDING, Architecture
from hubprune.core.errors import CheckpointError, UnsupportedArchitectureError
from hubprune.exporting.families import GgufFamily

LARGEST = 2**31 - 1
LARGEST_REAL = 1e15
DEFAULT_THETA = 10000.0
MAX_LAYERS = 512
"""`LLAMA_MAX_LAYERS` of llama.cpp."""


@dataclass(frozen=True, kw_only=True)
class Rope:
    """The rotary embedding of a model."""

    theta: float
    dimensions: int
    """Values of a head that are rotated."""
    kind: str = "default"
    linear_factor: float | None = None
    """By what frequencies are divided, all of them or, with YaRN, the lower ones."""
    original_context: int | None = None
    """Tokens that the model was trained with before it was extended."""
    attention_factor: float | None = None
    """What llama.cpp multiplies q and k with, beside what it computes itself."""
    factors: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Tensor -> one divisor of the frequency per pair of values in a head."""
    local_theta: float | None = None
    """Base of the sliding attentions, where it is their own."""


@dataclass(frozen=True, kw_only=True)
class Hyperparameters:
    """Sizes and constants of a model."""

    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    context_length: int
    """Tokens, at most the sliding window where llama.cpp ignores it."""
    rope: Rope
    tied: bool
    """Whether the head is the embedding."""
    biased: tuple[str, ...] = ()
    """Modules of a layer whose projections all have biases."""
    numbers: Mapping[str, float] = field(default_factory=dict)
    """Metadata of this family alone."""
    window: int | None = None
    """Tokens that a sliding attention sees, where llama.cpp computes it."""
    slides: tuple[bool, ...] = ()
    """By layer of the checkpoint."""
    query_scalar: float | None = None
    """Where queries are scaled by 1/sqrt of this instead of the head's size."""
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


def read_hyperparameters(
    config: Mapping[str, Any], architecture: Architecture, family: GgufFamily, *, where: str
) -> Hyperparameters:
    """Read what the file's metadata and the check of the tensors need; error messages call config.json `where`.

    Raises:
        CheckpointError: a value is missing, of the wrong type or out of range.
        UnsupportedArchitectureError: it asks for something that llama.cpp does not do in this family.
    """
    given = {"rms_norm_eps": 1e-6, **family.defaults, **_without_none(config)}
    _check_demands(config, given, family, where)
    heads = natural(given, "num_attention_heads", where=where)
    hidden_size = natural(given, "hidden_size", where=where)
    head_dim = natural({"head_dim": hidden_size // heads, **given}, "head_dim", where=where)
    if head_dim % 2:
        raise CheckpointError(f"{where} has heads of {head_dim} values, an odd number, which RoPE cannot rotate.")
    if family.square and heads * head_dim != hidden_size:
        message = f"{where}: {heads} heads of {head_dim} values are not as wide as the hidden states, {hidden_size}."
        raise UnsupportedArchitectureError(message, hint=f"llama.cpp's {family.architecture} wants that.")
    if config.get("num_key_value_heads", 0) is None:
        given["num_key_value_heads"] = heads
    kv_heads = natural({"num_key_value_heads": heads, **given}, "num_key_value_heads", where=where)
    if heads % kv_heads:
        raise CheckpointError(f"{where}: {heads} attention heads are no multiple of {kv_heads} key-value heads.")
    rope = read_rope(given, family, head_dim=head_dim, where=where)
    slides = tuple(kind == SLIDING for kind in architecture.attention_kinds(config))
    context, window, notes = _context_length(given, family, rope, where, slides=any(slides))
    query_scalar = positive(given, "query_pre_attn_scalar", where=where) if family.query_scalar else None
    return Hyperparameters(
        hidden_size=hidden_size, num_heads=heads, num_kv_heads=kv_heads, head_dim=head_dim,
        rms_norm_eps=positive(given, "rms_norm_eps", where=where), context_length=context, rope=rope,
        tied=flag(given, "tie_word_embeddings", where=where),
        biased=tuple(part for part, key in family.bias_keys.items() if flag(given, key, where=where)),
        numbers={name: positive(given, key, where=where) for key, name in family.numbers.items() if key in given},
        window=window, slides=slides, query_scalar=query_scalar, notes=notes,
    )  # fmt: skip


def _check_demands(config: Mapping[str, Any], given: Mapping[str, Any], family: GgufFamily, where: str) -> None:
    """Raise UnsupportedArchitectureError where config.json asks for what this architecture of llama.cpp has not."""
    key, known = family.activation
    if (activation := given.get(key, known[0])) not in known:
        message = f"{where} has {key}={activation!r}; llama.cpp's {family.architecture} has {known[0]}."
        raise UnsupportedArchitectureError(message)
    for key in family.refused:
        if given.get(key):
            message = f"{where} has {key}={given[key]!r:.40}, which llama.cpp's {family.architecture} has not."
            raise UnsupportedArchitectureError(message)
    for key in family.numbers:
        if key in family.defaults and config.get(key, 0) is None:
            message = f"{where} has {key}=null; llama.cpp's {family.architecture} always applies it."
            raise UnsupportedArchitectureError(message)
    if family.head == "tied" and not flag(given, "tie_word_embeddings", where=where):
        message = f"{where} has a head of its own; llama.cpp's {family.architecture} takes the embedding for it."
        raise UnsupportedArchitectureError(message)


def _without_none(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if value is not None}


def _context_length(
    given: Mapping[str, Any], family: GgufFamily, rope: Rope, where: str, *, slides: bool
) -> tuple[int, int | None, tuple[str, ...]]:
    """Return the context length, the window that the file names, and notes.

    Where llama.cpp computes no sliding attention, the context is capped to the window: up to there all is the same.
    """
    context = natural(given, "max_position_embeddings", where=where)
    notes = []
    if "rope_factors_long" in rope.factors:
        notes.append(
            f"llama.cpp takes the long RoPE factors for all texts when its context is above {rope.original_context:,} "
            "tokens; transformers takes them for longer texts only"
        )
    if not slides:
        return context, None, tuple(notes)
    window = natural(given, "sliding_window", where=where)
    if family.slides:
        return context, window, tuple(notes)
    if window >= context:
        return context, None, tuple(notes)
    capped = f"context length {window:,} instead of {context:,}: llama.cpp ignores the sliding window of this model"
    return window, None, (capped, *notes)


def read_rope(config: Mapping[str, Any], family: GgufFamily, *, head_dim: int, where: str) -> Rope:
    """Read the rotary embedding from either spelling: `rope_parameters`, or `rope_theta` with `rope_scaling`.

    Raises:
        CheckpointError: a value is missing or no number.
        UnsupportedArchitectureError: a kind that is computed in another way by llama.cpp, or not in this family.
    """
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}  # transformers prefers the old one
    if not isinstance(scaling, dict):
        raise CheckpointError(f"{where} has a rope_scaling or rope_parameters that is no object.")
    by_kind = scaling if isinstance(scaling.get(FULL), dict) else {}
    scaling = by_kind.get(FULL, scaling)
    values = {
        "rope_theta": config.get("rope_theta", DEFAULT_THETA),
        "partial_rotary_factor": config.get("partial_rotary_factor", 1.0),
        **scaling,
    }
    theta = positive(values, "rope_theta", where=where)
    kind = values.get("rope_type", values.get("type", "default"))
    dimensions = int(head_dim * positive(values, "partial_rotary_factor", where=where))
    if dimensions != head_dim and (not family.partial_rotation or dimensions % 2 or dimensions > head_dim):
        message = f"{where} has partial_rotary_factor={values['partial_rotary_factor']!r}"
        raise UnsupportedArchitectureError(f"{message}; llama.cpp's {family.architecture} rotates whole heads.")
    local = None
    if family.local_theta:
        key, default = family.local_theta
        sliding = by_kind.get(SLIDING)
        sliding = sliding if isinstance(sliding, dict) else {}
        local = positive({"rope_theta": config.get(key, default), **sliding}, "rope_theta", where=where)
        if sliding.get("rope_type", "default") != "default":
            raise UnsupportedArchitectureError(f"{where} scales the RoPE of sliding attentions, too.")
    made = {"theta": theta, "dimensions": dimensions, "kind": kind, "local_theta": local}
    match kind:
        case "default":
            return Rope(**made)
        case "linear":
            return Rope(**made, linear_factor=positive(values, "factor", where=where))
        case "llama3" if family.frequency_factors:
            return Rope(**made, factors={"rope_freqs": _llama3_divisors(values, theta, head_dim, where)})
        case "yarn" if local is None and not family.long_factors:
            return _yarn(values, config, made, where)
        case "longrope" | "su" | "yarn" if family.long_factors:  # for Phi-3, transformers takes all three for one
            return _longrope(values, config, {**made, "kind": "longrope"}, where)
    message = f"{where} has RoPE scaling of kind {kind!r:.40}, which GGUF export does not write for this family."
    hint = "It writes the kinds that llama.cpp computes as transformers does."
    raise UnsupportedArchitectureError(message, hint=hint)


def _original_context(values: Mapping[str, Any], config: Mapping[str, Any], where: str) -> int:
    key = "original_max_position_embeddings"
    given = {key: config.get(key, config.get("max_position_embeddings")), **_without_none(values)}
    return natural(given, key, where=where)


def _yarn(values: Mapping[str, Any], config: Mapping[str, Any], made: Mapping[str, Any], where: str) -> Rope:
    """Read YaRN's numbers; llama.cpp multiplies q and k with `1 + 0.1 ln(factor)` by itself."""
    values = _without_none(values)
    for key, known in (("truncate", True), ("beta_fast", 32), ("beta_slow", 1)):
        if (value := values.get(key, known)) != known:
            message = f"{where} has a YaRN with {key}={value!r:.40}; llama.cpp takes {known!r} in this family."
            raise UnsupportedArchitectureError(message)
    factor = positive(values, "factor", where=where)
    if (wanted := values.get("attention_factor")) is None:
        scales = [positive(values, key, where=where) for key in ("mscale", "mscale_all_dim") if values.get(key)]
        wanted = _mscale(factor, scales[0]) / _mscale(factor, scales[1]) if len(scales) == 2 else _mscale(factor, 1.0)
    return Rope(
        **made, linear_factor=factor, original_context=_original_context(values, config, where),
        attention_factor=positive({"attention_factor": wanted}, "attention_factor", where=where) / _mscale(factor, 1.0),
    )  # fmt: skip


def _mscale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _longrope(values: Mapping[str, Any], config: Mapping[str, Any], made: Mapping[str, Any], where: str) -> Rope:
    """Read Phi-3's two lists of divisors; the formula of the attention factor is transformers'."""
    values = _without_none(values)
    original = _original_context(values, config, where)
    context = natural(config, "max_position_embeddings", where=where)
    factor = positive(values, "factor", where=where) if "factor" in values else context / original
    if (wanted := values.get("attention_factor")) is None:
        wanted = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    factors = {}
    for length in ("long", "short"):
        listed = values.get(f"{length}_factor")
        if not isinstance(listed, list) or len(listed) != made["dimensions"] // 2:
            raise CheckpointError(f"{where} has no {length}_factor of {made['dimensions'] // 2} numbers.")
        divisors = (positive({length: value}, length, where=where) for value in listed)
        factors[f"rope_factors_{length}"] = tuple(divisors)
    return Rope(
        **made, original_context=original, factors=factors,
        attention_factor=positive({"attention_factor": wanted}, "attention_factor", where=where),
    )  # fmt: skip


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
