"""Where a model goes: onto one device, or where it is larger, by accelerate's device map over all there are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hubprune.core.devices import resolve_device, resolve_dtype, with_dtype
from hubprune.core.memory import available_bytes
from hubprune.core.processes import local_rank, local_world_size, world_size
from hubprune.core.strict_json import parse_json

__all__ = ["free_bytes", "input_device", "own_device", "placed_on", "placement", "weight_bytes"]

GPU_SHARE, CPU_SHARE = 0.85, 0.6
"""Share of the free memory that weights may take; the rest is for what is computed."""


def own_device(device: str) -> str:
    """Return the device of this process; each of several on a machine takes a GPU of its own."""
    found = resolve_device(device)
    return f"cuda:{local_rank()}" if found == "cuda" and world_size() > 1 else found


def free_bytes(device: str) -> int:
    """Return the memory that a device has free; `auto` may be one.

    Raises:
        RecipeError: this machine has no such device.
    """
    place = own_device(device)
    return int(torch.cuda.mem_get_info(place)[0]) if place.startswith("cuda") else _own_memory()


def _own_memory() -> int:
    """Return the share of the machine's memory that this process may take."""
    return available_bytes() // local_world_size()


def placement(folder: Path, *, device: str, dtype: str, offload_folder: str) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` that say where a model goes.

    A device that was named is taken.  `auto` is the first one where the weights fit into its memory; else they go to
    all GPUs, then to memory, and what is left to `offload_folder`, which has to be there as long as the model.
    """
    whole = {"device_map": {"": own_device(device)}}
    share = GPU_SHARE if own_device(device).startswith("cuda") else CPU_SHARE
    if device != "auto" or weight_bytes(folder, dtype=dtype) <= share * free_bytes(device):
        return whole
    limits: dict[int | str, int] = {"cpu": int(CPU_SHARE * _own_memory())}
    if torch.cuda.is_available():
        gpus = [local_rank()] if world_size() > 1 else range(torch.cuda.device_count())
        limits |= {number: int(GPU_SHARE * torch.cuda.mem_get_info(number)[0]) for number in gpus}
    return {"device_map": "auto", "max_memory": limits, "offload_folder": offload_folder}


def weight_bytes(folder: Path, *, dtype: str) -> int:
    """Return the memory that the weights of a folder take once they are cast; `auto` casts nothing."""
    stored = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    config = folder / "config.json"
    own = resolve_dtype("auto", with_dtype(parse_json(config.read_bytes(), where=str(config)), folder))
    sizes: Mapping[str, int] = {name: getattr(torch, name).itemsize for name in {own, dtype} - {"auto"}}
    return stored * sizes.get(dtype, sizes[own]) // sizes[own]


def placed_on(model: Any) -> str:
    """Name the devices that a loaded model is on: `cuda:0`, or `cuda:0, cpu and disk`."""
    places = dict.fromkeys(map(_name, getattr(model, "hf_device_map", {}).values())) or {str(model.device): None}
    *others, last = places
    return f"{', '.join(others)} and {last}" if others else last


def _name(place: Any) -> str:
    return f"cuda:{place}" if isinstance(place, int) else str(place)


def input_device(model: Any) -> str:
    """Name the device that a model takes token ids on."""
    places = [name for place in getattr(model, "hf_device_map", {}).values() if (name := _name(place)) != "disk"]
    return places[0] if places else str(model.device) if model.device.type != "meta" else "cpu"
