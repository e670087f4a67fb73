"""Resolve `auto`: which device and which dtype a run computes in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hubprune.core.errors import RecipeError
from hubprune.core.strict_json import parse_json

DTYPES = ("float32", "bfloat16", "float16")
NAMED_OTHERWISE = {"float": "float32", "half": "float16"}
"""What torch calls two of them as well, and a config.json may."""
STORED = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
"""dtypes of safetensors that a model can be built in."""


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
    """Return the dtype that a name stands for; `auto` is the one that config.json names, else float32.

    Where config.json names none, transformers takes that of the weights: see `with_dtype`.
    """
    if dtype != "auto":
        return dtype
    named = str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch.")
    named = NAMED_OTHERWISE.get(named, named)
    return named if named in DTYPES else "float32"


def with_dtype(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return a config.json that names a dtype: where it names none, the one that `auto` gives its readers.

    Args:
        config: the parsed config.json.
        folder: with the weights.
    """
    if config.get("dtype") or config.get("torch_dtype"):
        return dict(config)
    return {**config, "dtype": stored_dtype(folder)}


def stored_dtype(folder: Path) -> str:
    """Return the dtype that transformers takes from weights: of the first file's first floating tensor by name."""
    from safetensors import safe_open

    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    files = [single] if single.is_file() else sorted(folder.glob("model-*-of-*.safetensors"))
    if not single.is_file() and index.is_file():
        named = (parse_json(index.read_bytes(), where=str(index)).get("metadata") or {}).get("dtype")
        if isinstance(named, str):
            return named
    with safe_open(files[0], framework="np") as weights:
        kinds = [weights.get_slice(name).get_dtype() for name in sorted(weights.keys())]
    return next((STORED[kind] for kind in kinds if kind in STORED), "float32")
