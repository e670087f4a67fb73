"""Whether a command runs in several processes, as `torchrun` and `accelerate launch` start them.

The first one runs the command.  The others follow it: they load the models that it loads and compute their share.
"""

from __future__ import annotations

import os

__all__ = ["VARIABLES", "local_rank", "local_world_size", "rank", "world_size"]

VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What tells a process that it is one of several; a program that it starts by itself is none of them."""


def rank() -> int:
    """Return the number of this process among those of the run; the first is 0."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """Return its number among those on this machine, which is that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def world_size() -> int:
    """Return the number of processes of the run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_world_size() -> int:
    """Return the number of processes on this machine, which share its memory."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
