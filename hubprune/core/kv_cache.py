"""How many bytes a KV cache takes: by arithmetic from a config.json, and counted in a cache object."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from hubprune.core.architectures import FULL, SLIDING, architecture_of
from hubprune.core.devices import resolve_dtype

__all__ = ["held_bytes", "kv_bytes_per_layer", "kv_cache_bytes"]

COMPUTE_BITS = {"float32": 32, "bfloat16": 16, "float16": 16}


def kv_cache_bytes(
    config: Mapping[str, Any], *, gone: Collection[int], tokens: int, sequences: int = 1, dtype: str = "auto"
) -> int:
    """Return the bytes of a KV cache that holds some sequences of equal length.

    Args:
        config: a config.json, pruned or not.
        gone: layers without attention, in the numbers of that config; those of a plan are `plan.gone("attn")`.
        tokens: per sequence.
        sequences: batch size.
        dtype: of keys and values; `auto` for the one that config.json names.
    """
    # A sliding cache forgets what the next token will not look at.
    held = {FULL: tokens, SLIDING: min(tokens, (config.get("sliding_window") or tokens + 1) - 1)}
    kinds = architecture_of(config).attention_kinds(config)
    slots = sum(held[kind] for layer, kind in enumerate(kinds) if layer not in gone)
    return sequences * slots * kv_bytes_per_layer({**config, "dtype": resolve_dtype(dtype, config)})


def kv_bytes_per_layer(config: Mapping[str, Any]) -> int:
    """Return the bytes that one attention's keys and values take per token: 2 x KV heads x head size x dtype bytes."""
    heads = int(config["num_attention_heads"])
    kv_heads = int(config.get("num_key_value_heads") or heads)
    head_dim = int(config.get("head_dim") or config["hidden_size"] // heads)
    return 2 * kv_heads * head_dim * COMPUTE_BITS[resolve_dtype("auto", config)] // 8


def held_bytes(cache: Any) -> int:
    """Sum the bytes of the keys and values that a cache object of transformers holds."""
    tensors = [t for layer in cache.layers for t in (layer.keys, layer.values) if t is not None]
    return sum(int(t.numel() * t.element_size()) for t in tensors)
