"""The published config.json: the base's own JSON with a few keys changed.

It never goes through a transformers config: version 5 writes only `rope_parameters`, and a 4.x that reads it back runs
silently with the default rope base.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hubprune import __version__
from hubprune.architectures import Architecture
from hubprune.artifacts import BaseCheckpoint, DropPlan, Layout
from hubprune.errors import CheckpointError, UnsupportedFormatError
from hubprune.pruning.structure import NEMOTRON_NAS, NEMOTRON_NAS_CLASS, block_configs
from hubprune.strict_json import parse_json

CONFIG_NAME = "config.json"


def needs_modeling_file(plan: DropPlan) -> bool:
    """Tell whether transformers needs code of ours to load what a plan leaves."""
    return plan.layout != "stock"


def read_config(folder: Path) -> dict[str, Any]:
    """Read a folder's config.json.

    Raises:
        CheckpointError: it is missing, no JSON object, or has no usable number of layers.
    """
    path = folder / CONFIG_NAME
    try:
        config = parse_json(path.read_bytes(), where=str(path))
    except OSError as error:
        raise CheckpointError(f"Cannot read {path}: {error.strerror}.") from error
    check_config(config, where=str(path))
    return config


def check_config(config: Mapping[str, Any], *, where: str) -> None:
    """Check the numbers that everything else relies on.

    Raises:
        CheckpointError: one is missing or no positive number.
        UnsupportedFormatError: the weights are quantized.
    """
    for key in ("num_hidden_layers", "hidden_size", "num_attention_heads"):
        value = config.get(key)
        if type(value) is not int or value < 1:
            raise CheckpointError(f"{where} has {key}={value!r}, which is no positive number.")
    if isinstance(quantized := config.get("quantization_config"), Mapping):
        raise UnsupportedFormatError(
            f"{where} says that the weights are quantized ({quantized.get('quant_method', 'unknown method')}).",
            hint="Prune the unquantized base; quantize the result afterwards.",
        )


def write_config(base: BaseCheckpoint, plan: DropPlan, architecture: Architecture, folder: Path) -> None:
    """Write config.json; the tokenizer files must be in the folder already."""
    config = pruned_config(base, plan, architecture, tokenizer_class=_tokenizer_class(folder))
    (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def pruned_config(
    base: BaseCheckpoint, plan: DropPlan, architecture: Architecture, *, tokenizer_class: str | None = None
) -> dict[str, Any]:
    """Return the published config.json of a plan.

    Args:
        base: the base with its parsed config.json.
        plan: what goes.
        architecture: the base's family.
        tokenizer_class: class named by the tokenizer's own config; older `pipeline()`s look for it here.
    """
    config = {k: v for k, v in base.config.items() if k != "_name_or_path"}
    config.update(_both_spellings(config))
    config.update(_fewer_layers(config, plan, architecture))
    if tokenizer_class:
        config.setdefault("tokenizer_class", tokenizer_class)
    if needs_modeling_file(plan):
        config.update(pruned_classes(architecture, plan.layout))
        config.update(_SUBLAYER_KEYS[plan.layout](plan, config))
    config["hubprune"] = _provenance(base, plan)
    return config


def _both_spellings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Add the keys that transformers 4.x reads where the base has only those of 5.x."""
    added: dict[str, Any] = {}
    rope = config.get("rope_parameters")
    if isinstance(rope, dict) and "rope_theta" in rope:
        added["rope_theta"] = rope["rope_theta"]
        scaling = {k: v for k, v in rope.items() if k != "rope_theta"}
        added["rope_scaling"] = None if scaling.get("rope_type", "default") == "default" else scaling
    if "dtype" in config:
        added["torch_dtype"] = config["dtype"]
    return {key: value for key, value in added.items() if key not in config}


def _fewer_layers(config: Mapping[str, Any], plan: DropPlan, architecture: Architecture) -> dict[str, Any]:
    kept = sorted(plan.published_numbers)
    if len(kept) == plan.num_hidden_layers:
        return {}
    lists = {
        key: [values[i] for i in kept]
        for key in architecture.per_layer_config_lists
        if isinstance(values := config.get(key), list) and len(values) == plan.num_hidden_layers
    }
    return {"num_hidden_layers": len(kept), **lists}


def _own_keys(plan: DropPlan, config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "dropped_attn_layers": list(plan.published_layers("attn")),
        "dropped_mlp_layers": list(plan.published_layers("mlp")),
    }


def _block_configs(plan: DropPlan, config: Mapping[str, Any]) -> dict[str, Any]:
    no_mlp = plan.published_layers("mlp")
    widths = [0 if i in no_mlp else config["intermediate_size"] for i in range(config["num_hidden_layers"])]
    return {"block_configs": block_configs(widths, frozenset(plan.published_layers("attn")), config)}


_SUBLAYER_KEYS: Mapping[Layout, Callable[[DropPlan, Mapping[str, Any]], dict[str, Any]]] = {
    "pruned": _own_keys,
    "nemotron-nas": _block_configs,
}
"""What says, in each layout, which sublayers are gone."""


def pruned_classes(architecture: Architecture, layout: Layout) -> dict[str, Any]:
    """Return the keys of config.json that name the classes of the modeling file."""
    module, prefix = Path(architecture.modeling_file(layout)).stem, f"Pruned{architecture.class_prefix}"
    served = layout == "nemotron-nas"
    return {
        "model_type": NEMOTRON_NAS if served else architecture.pruned_model_type,
        "architectures": [NEMOTRON_NAS_CLASS if served else architecture.pruned_class],
        "auto_map": {
            "AutoConfig": f"{module}.{prefix}Config",
            "AutoModel": f"{module}.{prefix}Model",
            "AutoModelForCausalLM": f"{module}.{prefix}ForCausalLM",
        },
    }


def _provenance(base: BaseCheckpoint, plan: DropPlan) -> dict[str, Any]:
    return {
        "version": __version__,
        "base_model": base.name,
        "base_commit": base.commit,
        "base_num_hidden_layers": plan.num_hidden_layers,
        "dropped_attn_layers_of_base": list(plan.layers("attn")),
        "dropped_mlp_layers_of_base": list(plan.layers("mlp")),
    }


def _tokenizer_class(folder: Path) -> str | None:
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return None
    found = parse_json(path.read_bytes(), where=str(path)).get("tokenizer_class")
    return found if isinstance(found, str) else None
