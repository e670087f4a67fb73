"""Folders in fewer bits: how they are loaded to be measured, and what they take in memory then.

A reader's transformers keeps packed weights until the first pass and expands them there.  Asked to, it expands them as
they are loaded: to the same numbers, and into plain linear layers, which can be measured together with others.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hubprune.core.strict import parse_json
from hubprune.core.weights import open_weights

KEY, METHOD = "quantization_config", "compressed-tensors"
PACKED = ".weight_packed"
"""How the tensors end that hold several numbers in one."""
BITS = 8


def quantization(folder: Path) -> Mapping[str, Any] | None:
    """Read from config.json how a folder is quantized; None where it is not."""
    path = folder / "config.json"
    found = parse_json(path.read_bytes(), where=str(path)).get(KEY) if path.is_file() else None
    return found if isinstance(found, dict) else None


def loading(folder: Path) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` that load a folder to be measured.

    What computes in few bits as well, not only stores in them, is left to transformers.
    """
    told = quantization(folder)
    if told is None or told.get("quant_method") != METHOD or any(_activations(told)):
        return {}
    from transformers import CompressedTensorsConfig

    return {KEY: CompressedTensorsConfig(dequantize=True)}


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
