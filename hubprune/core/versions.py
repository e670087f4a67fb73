"""What differs between the versions of the libraries that hubprune runs with; `make floors` tries the oldest ones."""

from __future__ import annotations

from types import ModuleType


def client_library() -> ModuleType:
    """Return what huggingface_hub talks with, and installs: httpx2 since its version 2, httpx before."""
    from importlib import import_module

    import huggingface_hub

    return import_module("httpx2" if int(huggingface_hub.__version__.partition(".")[0]) >= 2 else "httpx")
