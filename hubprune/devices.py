"""Resolve `auto`: which device and which dtype a run computes in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hubprune.errors import RecipeError

DTYPES = ("float32", "bfloat16", "float16")


def resolve_device(device: str) -> str:
    """Return the device that a name stands for; `auto` is the first GPU, else the CPU.

    Raises:
        RecipeError: this machine has no such device.
    """
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    number = int(device.partition(":")[2] or 0)
    if device.startswith("cuda") and number >= torch.cuda.device_count():
        raise RecipeError(f"This machine has no device {device!r}.", hint="Leave --device out, or pass --device cpu.")
    if device == "mps" and not torch.backends.mps.is_available():
        raise RecipeError("This machine has no device 'mps'.", hint="Leave --device out, or pass --device cpu.")
    return device


def resolve_dtype(dtype: str, config: Mapping[str, Any]) -> str:
    """Return the dtype that a name stands for; `auto` is the one that config.json names, else float32."""
    if dtype != "auto":
        return dtype
    named = str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch.")
    return named if named in DTYPES else "float32"
