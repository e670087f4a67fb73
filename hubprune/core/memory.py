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
from typing import Any, NamedTuple

from hubprune.core.architectures import FULL, SLIDING, architecture_of
from hubprune.core.console import Reporter, size
from hubprune.core.devices import (
    COMPUTE_BITS,
    local_world_size,
    resolve_device,
    resolve_dtype,
    stored_dtype,
    unused_gpu,
    why_cast,
)
from hubprune.core.errors import RecipeError

GROUPS, MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
LIMIT, FIRST = "HUBPRUNE_MAX_MEMORY", "HUBPRUNE_RUN"
"""Variables with the bytes that a run was told to keep to, and the number of its first process.  The processes that it
starts inherit both, so that what all of them hold counts."""
LEAST = 256 * 10**6
"""Bytes; what libraries take before the first weight."""
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
PRIVATE = re.compile(r"^Pss_Anon:\s+(\d+) kB$", re.MULTILINE)
UNLIMITED = 2**60
"""Bytes from which on version 1 means that there is no limit."""
FILE_PAGES = re.compile(r"^(?:in)?active_file (\d+)$", re.MULTILINE)
TOTAL_FILE_PAGES = re.compile(r"^total_(?:in)?active_file (\d+)$", re.MULTILINE)
"""Lines of memory.stat in version 2 and 1: page cache that the kernel drops before it ends a process."""


# ---- what a run was told -----------------------------------------------------------------------------------------


def parse_bytes(value: str | int, *, name: str = "--max-memory") -> int:
    """Read a size such as 8GB, 7.5GiB or 800M; a number is one of bytes.  An error calls it by its name.

    Raises:
        RecipeError: it is none, or too little for any run.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?i?)B?", str(value).strip(), re.IGNORECASE)
    unit = found[2].capitalize() if found else ""
    hint = f"Write it like {name}{'=' if name == LIMIT else ' '}8GB, or 7.5GiB."
    if not found or unit not in UNITS:
        raise RecipeError(f"{name} {str(value)!r:.40} is no size of memory.", hint=hint)
    if (given := int(float(found[1]) * UNITS[unit])) < LEAST:
        raise RecipeError(f"{name} {value} is too little: libraries alone take {LEAST // 10**6} MB.", hint=hint)
    return given


def budget_of(request: object) -> int | None:
    """Return the bytes that a request is to keep to, whatever is asked; None where it does not say.

    Raises:
        RecipeError: its `max_memory` is no size.
    """
    told: str | int | None = getattr(request, "max_memory", None)
    return None if told is None else parse_bytes(told)


@contextmanager
def at_most(limit: int | None) -> Iterator[None]:
    """Keep to so many bytes of the machine's memory, and of each GPU's, while the block runs; None for what is free.

    The processes that are started meanwhile share the limit with this one.
    """
    before = {name: os.environ.get(name) for name in (LIMIT, FIRST)}
    if limit is not None:
        os.environ[LIMIT] = str(limit)
    if os.environ.get(LIMIT):
        os.environ.setdefault(FIRST, str(os.getpid()))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def told_limit() -> int | None:
    """Return the bytes that this run was told to keep to; None where it may take what is free.

    Raises:
        RecipeError: the variable that says so holds no size.
    """
    told = os.environ.get(LIMIT)
    return parse_bytes(told, name=LIMIT) if told else None


# ---- what may be taken -------------------------------------------------------------------------------------------


def available_bytes() -> int:
    """Return the bytes of the machine's memory that this run may still take, droppable page cache included."""
    import psutil

    rooms = [psutil.virtual_memory().available, *(group.limit - group.held for group in limited_groups())]
    if (limit := told_limit()) is not None:
        rooms.append(limit - _held_by_run())
    return max(0, min(rooms))


def _held_by_run() -> int:
    """Return the bytes that the processes of this run hold; what several of them share, as files, counts once."""
    import psutil

    here = psutil.Process()
    try:
        first = psutil.Process(int(os.environ.get(FIRST) or here.pid))
        others = {first, *first.children(recursive=True)} - {here}
    except (psutil.Error, ValueError):
        others = set()
    held = _own_bytes(here) + int(getattr(here.memory_info(), "shared", 0))
    # Processes side by side, as torchrun starts them, hold about the same.
    return local_world_size() * held + sum(map(_own_bytes, others))


def _own_bytes(process: Any) -> int:
    """Return the bytes of a process that are in no file; of those that a fork still shares with it, its part."""
    import psutil

    try:
        if found := PRIVATE.search(_text(Path(f"/proc/{process.pid}/smaps_rollup"))):
            return 1024 * int(found[1])
        memory = process.memory_info()
        return int(memory.rss) - int(getattr(memory, "shared", 0))
    except (psutil.Error, OSError):  # it has ended, or is somebody else's
        return 0


def device_bytes(device: str) -> int:
    """Return the bytes that this process may still take of a device's memory: `cpu`, `mps`, `cuda` or `cuda:N`."""
    import torch

    if not device.startswith("cuda"):
        return available_bytes()
    free, limit = int(torch.cuda.mem_get_info(device)[0]), told_limit()
    if limit is None:
        return free
    return max(0, min(free, limit - int(torch.cuda.memory_reserved(device))))


class Group(NamedTuple):
    """A control group with a limit, in bytes."""

    limit: int
    held: int
    """What its processes hold; page cache that can be dropped is none of it."""


def limited_groups(*, groups: Path = GROUPS, membership: Path = MEMBERSHIP) -> Iterator[Group]:
    """Yield the control group of this process and those around it, where they limit memory.

    Each line of `membership` is `number:controllers:path` (cgroups(7)).  Inside a container the path may be that of
    the host, which does not exist here; the group at the top is then the container's own.
    """
    lines = membership.read_text().splitlines() if membership.is_file() else []
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if controllers and "memory" not in controllers.split(","):
            continue
        # Version 2 names no controllers, and writes "max" for no limit.
        top, name = (groups / "memory", "memory.limit_in_bytes") if controllers else (groups, "memory.max")
        used, pages = ("memory.usage_in_bytes", TOTAL_FILE_PAGES) if controllers else ("memory.current", FILE_PAGES)
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):
            limit, usage, stat = (_text(folder / file) for file in (name, used, "memory.stat"))
            if limit.isdigit() and int(limit) < UNLIMITED:
                held = int(usage) if usage.isdigit() else 0
                yield Group(int(limit), max(0, held - sum(map(int, pages.findall(stat)))))


def _text(file: Path) -> str:
    return file.read_text().strip() if file.is_file() else ""


def say_where(config: Mapping[str, Any], *, device: str, dtype: str, reporter: Reporter) -> None:
    """Say which device computes, in which dtype, and how much memory it may take; warn where a GPU is left alone.

    Raises:
        RecipeError: this machine has no such device.
    """
    import torch

    place = resolve_device(device)
    computed = resolve_dtype(dtype, config, device=place)
    free, limit = size(device_bytes(place)), told_limit()
    room = f"{free} {'free' if place.startswith('cuda') else 'of memory'}"
    threads = torch.get_num_threads()
    # Of a base whose config.json names no dtype, the weights will tell.
    told = f" in {computed}" if dtype != "auto" or config.get("dtype") or config.get("torch_dtype") else ""
    where = f"the CPU{told}, {threads} thread{'s'[: threads - 1]}" if place == "cpu" else f"{place}{told}"
    kept = f", of --max-memory {size(limit)}" if limit else ""
    why = why_cast(config, computed=computed, device=place) if dtype == "auto" else None
    reporter.note(f"computing on {where}, {room}{kept}{f'; {why}' if why else ''}")
    if left := unused_gpu(place):
        reporter.warn(left)


# ---- caches ------------------------------------------------------------------------------------------------------


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
    return 2 * kv_heads * head_dim * COMPUTE_BITS[stored_dtype(config)] // 8


def held_bytes(cache: Any) -> int:
    """Sum the bytes of the keys and values that a cache object of transformers holds."""
    tensors = [t for layer in cache.layers for t in (layer.keys, layer.values) if t is not None]
    return sum(int(t.numel() * t.element_size()) for t in tensors)
