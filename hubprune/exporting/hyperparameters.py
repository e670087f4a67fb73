"""The numbers of a config.json that a GGUF file needs, each checked: configs come from strangers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hubprune.core.architectures import Architecture
from hubprune.core.errors import CheckpointError, UnsupportedArchitectureError
from hubprune.exporting.checked import flag, natural, positive
from hubprune.exporting.rope import Rope, read_rope

MAX_LAYERS = 512
"""`LLAMA_MAX_LAYERS` of llama.cpp."""
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "llama": {"max_position_embeddings": 2048, "num_key_value_heads": None, "sliding_window": None},
    "mistral": {"max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096},
}
"""What transformers takes where a config.json says nothing, as far as the families differ."""


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
    """Read what the file's metadata and the check of the tensors need.

    Args:
        config: the parsed config.json.
        architecture: its family.
        where: how error messages call the file.

    Raises:
        CheckpointError: a value is missing, of the wrong type or out of range.
        UnsupportedArchitectureError: it asks for something that llama.cpp's Llama does not do.
    """
    given = {**DEFAULTS[architecture.model_type], **_without_none(config)}
    _check_activation(given, where)
    heads = natural(given, "num_attention_heads", where=where)
    hidden_size = natural(given, "hidden_size", where=where)
    context, notes = _context_length(config, given, where)
    head_dim = _head_dim(given, hidden_size, heads, where)
    return Hyperparameters(
        hidden_size=hidden_size,
        num_heads=heads,
        num_kv_heads=_kv_heads(given, heads, where),
        head_dim=head_dim,
        rms_norm_eps=positive({"rms_norm_eps": 1e-6, **given}, "rms_norm_eps", where=where),
        context_length=context,
        rope=read_rope(given, head_dim=head_dim, where=where),
        tied=flag(given, "tie_word_embeddings", where=where),
        biased=tuple(part for part, key in _bias_keys(architecture) if flag(given, key, where=where)),
        notes=notes,
    )


def _bias_keys(architecture: Architecture) -> tuple[tuple[str, str], ...]:
    """Return the modules of a layer that may have biases, each with the key that says so; Mistral has none."""
    llama = ((architecture.attn_module, "attention_bias"), (architecture.mlp_module, "mlp_bias"))
    return llama if architecture.model_type == "llama" else ()


def _without_none(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if value is not None}


def _check_activation(config: Mapping[str, Any], where: str) -> None:
    if (activation := config.get("hidden_act", "silu")) not in ("silu", "swish"):
        raise UnsupportedArchitectureError(f"{where} has hidden_act={activation!r}; llama.cpp's Llama has silu.")


def _head_dim(config: Mapping[str, Any], hidden_size: int, heads: int, where: str) -> int:
    head_dim = natural({"head_dim": hidden_size // heads, **config}, "head_dim", where=where)
    if head_dim % 2:
        raise CheckpointError(f"{where} has heads of {head_dim} values, an odd number, which RoPE cannot rotate.")
    return head_dim


def _kv_heads(config: Mapping[str, Any], heads: int, where: str) -> int:
    kv_heads = config["num_key_value_heads"]
    kv_heads = heads if kv_heads is None else natural(config, "num_key_value_heads", where=where)
    if heads % kv_heads:
        raise CheckpointError(f"{where}: {heads} attention heads are no multiple of {kv_heads} key-value heads.")
    return kv_heads


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
