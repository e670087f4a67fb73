"""Folders in fewer bits: how they are loaded to be measured, and what they take in memory then.

A reader's transformers keeps packed weights until the first pass and expands them there.  That pass is made here, and
what only told of packing is taken away: what is left computes with a reader's numbers, and its plain linear layers can
be measured together with others.  Asked to expand while it loads, transformers 5.24 rounds to the dtype of the scales.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hubprune.core.console import quiet
from hubprune.core.strict import parse_json
from hubprune.core.weights import open_weights

KEY, METHOD = "quantization_config", "compressed-tensors"
PACKED = ".weight_packed"
"""How the tensors end that hold several numbers in one."""
LEFT = ("weight_packed", "weight_scale", "weight_shape")
"""Parameters of an expanded layer that nothing is computed with any more."""
BITS = 8


def quantization(folder: Path) -> Mapping[str, Any] | None:
    """Read from config.json how a folder is quantized; None where it is not."""
    path = folder / "config.json"
    found = parse_json(path.read_bytes(), where=str(path)).get(KEY) if path.is_file() else None
    return found if isinstance(found, dict) else None


def expand(model: Any, folder: Path) -> None:
    """Expand the weights of a model that was loaded from a folder.

    One that computes in few bits as well, not only stores in them, stays as it is, as does one that is not quantized.
    """
    told = quantization(folder)
    if told is None or told.get("quant_method") != METHOD or any(_activations(told)):
        return
    import torch

    with torch.inference_mode(), quiet():
        model(torch.zeros(1, 1, dtype=torch.int64, device=model.device), use_cache=False)
    for module in model.modules():
        for name in LEFT:
            module._parameters.pop(name, None)
        for name in ("quantization_scheme", "quantization_status"):
            vars(module).pop(name, None)
    for holder in (model.config, model):
        for name in (KEY, "hf_quantizer"):
            vars(holder).pop(name, None)


def expanded(folder: Path, *, itemsize: int) -> int:
    """Return the bytes of a folder's weights once each is a number of `itemsize` bytes of its own."""
    told = quantization(folder)
    if told is None:
        return sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    bits = next((int(g["weights"]["num_bits"]) for g in _groups(told) if g.get("weights")), BITS)
    total = 0
    for _, tensor in open_weights(folder):
        few = tensor.name.endswith(PACKED) or tensor.dtype.startswith(("F8", "I8"))
        total += tensor.size * BITS // bits * itemsize if few else tensor.size
    return total


def _groups(told: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    groups = told.get("config_groups")
    return [group for group in groups.values() if isinstance(group, dict)] if isinstance(groups, dict) else []


def _activations(told: Mapping[str, Any]) -> list[object]:
    return [group.get("input_activations") for group in _groups(told)]
