"""Say what a checkpoint folder holds: files with their hashes, parameters, bytes, and how fast its KV cache grows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hubprune.core.architectures import Architecture
from hubprune.core.artifacts import DropPlan, WrittenCheckpoint
from hubprune.core.files import list_files
from hubprune.core.kv_cache import kv_bytes_per_layer
from hubprune.core.weights import DTYPE_BITS, Weights, open_weights


def take_inventory(
    base: Weights,
    folder: Path,
    *,
    plan: DropPlan,
    config: Mapping[str, Any],
    architecture: Architecture,
    advance: Callable[[int], None],
) -> WrittenCheckpoint:
    """Describe a written checkpoint beside its base.

    Args:
        base: the base's weights, as its model uses them.
        folder: the written checkpoint.
        plan: what was dropped.
        config: the base's config.json.
        architecture: the base's family.
        advance: told the number of bytes after each piece that was hashed.
    """
    pruned = open_weights(folder)
    per_layer = kv_bytes_per_layer(config)
    layers = plan.num_hidden_layers
    return WrittenCheckpoint(
        files=list_files(folder, advance=advance),
        parameters=count_parameters(pruned, config, architecture),
        base_parameters=count_parameters(base, config, architecture),
        weight_bytes=pruned.size(),
        base_weight_bytes=base.size(),
        dtypes=tuple(sorted({tensor.dtype for _, tensor in pruned}, key=lambda d: (-DTYPE_BITS[d], d))),
        kv_bytes_per_token=per_layer * (layers - len(plan.gone("attn"))),
        base_kv_bytes_per_token=per_layer * (layers - len(plan.absent_layers["attn"])),
    )


def count_parameters(weights: Weights, config: Mapping[str, Any], architecture: Architecture) -> int:
    """Count a model's parameters as transformers does: a tied head that the files hold as well counts once."""
    stored = {tensor.name: tensor.parameters for _, tensor in weights if architecture.is_parameter(tensor.name)}
    if config.get("tie_word_embeddings") and architecture.embedding in stored:
        stored.pop(architecture.head, None)
    return sum(stored.values())
