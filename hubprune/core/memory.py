"""How much memory a run may take: what the machine has free, or less where a control group says so.

psutil sees the whole machine.  In a container or under a batch scheduler the process is ended at the limit of its
group, long before the machine is full.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil

GROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def available_bytes() -> int:
    """Return the bytes that this process may still take, page cache that can be dropped included."""
    used = psutil.Process().memory_info().rss
    return max(0, min([psutil.virtual_memory().available, *(limit - used for limit in group_limits())]))


def group_limits(*, groups: Path = GROUPS, membership: Path = MEMBERSHIP) -> Iterator[int]:
    """Yield the memory limits, in bytes, of this process's control group and of those around it.

    Each line of `membership` is `number:controllers:path` (cgroups(7)).  Inside a container the path may be that of
    the host, which does not exist here; the group at the top is then the container's own.
    """
    lines = membership.read_text().splitlines() if membership.is_file() else []
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if not controllers:  # version 2
            yield from _limits_upwards(groups, path, "memory.max")
        elif "memory" in controllers.split(","):  # version 1
            yield from _limits_upwards(groups / "memory", path, "memory.limit_in_bytes")


def _limits_upwards(top: Path, path: str, name: str) -> Iterator[int]:
    group = top / path.lstrip("/")
    for folder in (group, *group.parents):
        file = folder / name
        if file.is_file() and (limit := file.read_text().strip()).isdigit():  # version 2 writes "max" for no limit
            yield int(limit)
