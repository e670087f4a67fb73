"""The memory that a run may take: what is free, or less where it was told so.

psutil sees the whole machine.  In a container or under a batch scheduler the process is ended at the limit of its
control group, long before the machine is full.  Every stage asks here before it starts, and takes the way that fits.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hubprune.core.architectures import FULL, SLIDING, architecture_of
from hubprune.core.devices import COMPUTE_BITS, resolve_dtype

GROUPS, MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
LIMIT = "HUBPRUNE_MAX_MEMORY"
"""Variable with the bytes that a run was told to keep to; the processes that it starts inherit it."""
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def parse_bytes(text: str) -> int:
    """Read a size such as 8GB, 7.5GiB or 800M.

    Raises:
        ValueError: it is none.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?i?)B?", text.strip())
    if not found or found[2] not in UNITS or not float(found[1]):
        raise ValueError(f"{text!r} is no size of memory, as 8GB is")
    return int(float(found[1]) * UNITS[found[2]])


@contextmanager
def at_most(limit: int | None) -> Iterator[None]:
    """Keep to so many bytes of the machine's memory, and of each GPU's, while the block runs; None for what is free."""
    before = os.environ.get(LIMIT)
    if limit is not None:
        os.environ[LIMIT] = str(limit)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(LIMIT, None)
        else:
            os.environ[LIMIT] = before


def available_bytes() -> int:
    """Return the bytes of the machine's memory that this process may still take, droppable page cache included."""
    import psutil

    used = psutil.Process().memory_info().rss
    limits = [*group_limits(), *([int(os.environ[LIMIT])] if os.environ.get(LIMIT) else [])]
    return max(0, min([psutil.virtual_memory().available, *(limit - used for limit in limits)]))


def device_bytes(device: str) -> int:
    """Return the bytes that this process may still take of a device's memory: `cpu`, `mps`, `cuda` or `cuda:N`."""
    import torch

    if not device.startswith("cuda"):
        return available_bytes()
    free = int(torch.cuda.mem_get_info(device)[0])
    if not os.environ.get(LIMIT):
        return free
    return max(0, min(free, int(os.environ[LIMIT]) - int(torch.cuda.memory_reserved(device))))


def group_limits(*, groups: Path = GROUPS, membership: Path = MEMBERSHIP) -> Iterator[int]:
    """Yield the memory limits, in bytes, of this process's control group and of those around it.

    Each line of `membership` is `number:controllers:path` (cgroups(7)).  Inside a container the path may be that of
    the host, which does not exist here; the group at the top is then the container's own.
    """
    lines = membership.read_text().splitlines() if membership.is_file() else []
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if controllers and "memory" not in controllers.split(","):
            continue
        # Version 2 names no controllers, and writes "max" for no limit.
        top, name = (groups / "memory", "memory.limit_in_bytes") if controllers else (groups, "memory.max")
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):
            file = folder / name
            if file.is_file() and (limit := file.read_text().strip()).isdigit():
                yield int(limit)


def kv_cache_bytes(
    config: Mapping[str, Any], *, gone: Collection[int], tokens: int, sequences: int = 1, dtype: str = "auto"
) -> int:
    """Return the bytes of a KV cache that holds some sequences of equal length.

    Args:
        config: a config.json, pruned or not.
        gone: layers without attention, in the numbers of that config; those of a plan are `plan.gone("attn")`.
        tokens: per sequence.
        sequences: batch size.
        dtype: of keys and values; `auto` for the one that config.json names.
    """
    # A sliding cache forgets what the next token will not look at.
    held = {FULL: tokens, SLIDING: min(tokens, (config.get("sliding_window") or tokens + 1) - 1)}
    kinds = architecture_of(config).attention_kinds(config)
    slots = sum(held[kind] for layer, kind in enumerate(kinds) if layer not in gone)
    return sequences * slots * kv_bytes_per_layer({**config, "dtype": resolve_dtype(dtype, config)})


def kv_bytes_per_layer(config: Mapping[str, Any]) -> int:
    """Return the bytes that one attention's keys and values take per token: 2 x KV heads x head size x dtype bytes."""
    heads = int(config["num_attention_heads"])
    kv_heads = int(config.get("num_key_value_heads") or heads)
    head_dim = int(config.get("head_dim") or config["hidden_size"] // heads)
    return 2 * kv_heads * head_dim * COMPUTE_BITS[resolve_dtype("auto", config)] // 8


def held_bytes(cache: Any) -> int:
    """Sum the bytes of the keys and values that a cache object of transformers holds."""
    tensors = [t for layer in cache.layers for t in (layer.keys, layer.values) if t is not None]
    return sum(int(t.numel() * t.element_size()) for t in tensors)
