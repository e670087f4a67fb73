"""What is installed only where it is asked for: the extras, what they are for, and how to get them from where this copy
came from.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote, urlsplit

from hubprune.core import __version__
from hubprune.core.errors import MissingDependencyError

NAME = "hubprune"


@dataclass(frozen=True)
class Extra:
    """What `pip install 'hubprune[NAME]'` brings."""

    use: str
    modules: tuple[str, ...]
    """As they are imported; the first tells whether it is there."""


EXTRAS: Mapping[str, Extra] = {
    "torch": Extra(
        "whatever loads a model", ("torch", "transformers", "datasets", "lm_eval", "scipy", "safetensors", "accelerate")
    ),
    "plots": Extra("pictures", ("matplotlib",)),
    "localhub": Extra("hub, demo and card --preview", ("starlette", "uvicorn", "nh3", "lz4", "pygments")),
    "heal": Extra("heal", ("peft",)),
    "quantize": Extra("quantize", ("compressed_tensors",)),
    "gguf": Extra("export gguf", ("llama_cpp", "gguf")),
    "mlx": Extra("comparing a checkpoint in mlx-lm", ("mlx_lm",)),
}
"""Name -> what it is for and what it consists of."""


def is_installed(module: str) -> bool:
    """Tell whether a library is there; costs no import."""
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):  # one that is half there, or that a test took away
        return False


def install(*extras: str) -> str:
    """Return the command that adds extras to this copy, wherever it came from."""
    return f"pip install {_source(extras)}"


def requirement(*extras: str) -> str:
    """Return what pip on another machine is told to install so that it has this copy, as far as that can be reached."""
    origin = _origin()
    if "vcs_info" in origin:
        return f"{_named(extras)} @ {_address(origin)}"
    return f"{_named(extras)}=={__version__}"


def require(extra: str | None, *, doing: str) -> None:
    """Refuse to do something for which an extra is missing.

    Raises:
        MissingDependencyError: it is, with how to get it.
    """
    if extra and not is_installed(module := EXTRAS[extra].modules[0]):
        raise MissingDependencyError(f"{doing} takes {module}, which is not installed.", hint=install(extra))


def missing(error: ModuleNotFoundError) -> MissingDependencyError | None:
    """Say which extra would bring a module that was not found; None for one that none brings."""
    module = (error.name or "").partition(".")[0]
    for name, extra in EXTRAS.items():
        if module in extra.modules and not is_installed(module):
            return MissingDependencyError(f"This takes {module}, which is not installed.", hint=install(name))
    return None


def _named(extras: tuple[str, ...]) -> str:
    return f"{NAME}[{','.join(extras)}]" if extras else NAME


def _source(extras: tuple[str, ...]) -> str:
    """Return what to install, quoted for a shell: a name where an index has it, else the place that it came from."""
    origin = _origin()
    if not (url := origin.get("url")):
        return shlex.quote(_named(extras))
    if "dir_info" in origin:
        folder = Path(unquote(urlsplit(str(url)).path))
        place = shlex.quote(f"{folder}[{','.join(extras)}]" if extras else str(folder))
        return f"-e {place}" if origin["dir_info"].get("editable") else place
    return shlex.quote(f"{_named(extras)} @ {_address(origin)}")


def _address(origin: Mapping[str, Any]) -> str:
    vcs = origin.get("vcs_info")
    return f"{vcs['vcs']}+{origin['url']}@{vcs['commit_id']}" if vcs else str(origin["url"])


def _origin() -> Mapping[str, Any]:
    """Read where pip got this copy from (PEP 610); nothing of one from an index."""
    try:
        told = json.loads(distribution(NAME).read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


def client_library() -> ModuleType:
    """Return what huggingface_hub talks with, and installs: httpx2 since its version 2, httpx before."""
    from importlib import import_module

    import huggingface_hub

    return import_module("httpx2" if int(huggingface_hub.__version__.partition(".")[0]) >= 2 else "httpx")
