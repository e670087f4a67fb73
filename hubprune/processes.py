"""Whether a command runs in several processes, as `torchrun` and `accelerate launch` start them.

The first one runs the command.  The others follow it: they load the models that it loads and compute their share.
"""

from __future__ import annotations

import os

__all__ = ["local_rank", "rank", "world_size"]


def rank() -> int:
    """Return the number of this process among those of the run; the first is 0."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """Return its number among those on this machine, which is that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def world_size() -> int:
    """Return the number of processes of the run."""
    return int(os.environ.get("WORLD_SIZE", "1"))
