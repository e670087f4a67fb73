"""Say where a run takes place: versions, platform, processor.  Nothing here imports a heavy library."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from hubprune import __version__
from hubprune.core.artifacts import Environment

LIBRARIES = ("torch", "transformers", "huggingface_hub", "hf-xet", "datasets", "lm_eval", "safetensors", "tokenizers")


def describe_environment(*, device: str = "cpu") -> Environment:
    """Describe this machine and its libraries; for a GPU, `device` names which."""
    return Environment(
        hubprune=__version__,
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        machine=_gpu_name(device) if device.startswith("cuda") else _processor_name(),
        threads=_threads(),
        versions=library_versions(),
    )


def library_versions() -> dict[str, str]:
    """Return the versions of the libraries that a run goes through, of those that are installed."""
    return {name: found for name in LIBRARIES if (found := _version(name))}


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def _threads() -> int:
    """Processors that this process may use; torch takes as many unless OMP_NUM_THREADS says otherwise."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return min(allowed, int(wanted)) if wanted.isdigit() else allowed


def _processor_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _gpu_name(device: str) -> str:
    import torch

    return str(torch.cuda.get_device_name(device))
