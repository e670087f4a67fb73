"""Whether a command runs in several processes, as `torchrun` and `accelerate launch` start them; what others left.

The first one runs the command.  The others follow it: they load the models that it loads and compute their share.
"""

from __future__ import annotations

import os
import re

__all__ = ["VARIABLES", "last_words", "local_rank", "local_world_size", "rank", "world_size"]

PROGRESS = re.compile(r"\d%\|")
"""What a line of tqdm has in it."""
NAMED_ERROR = re.compile(r"[A-Za-z_][\w.]*(Error|Exception|Exit|Interrupt)(:|$)")
"""How the last paragraph of a traceback begins; its message may have more lines."""

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


def last_words(stderr: str) -> str:
    """Return the line of a process's stderr that says why it ended: the error, or the last line that is no progress."""
    lines = [line.strip() for line in re.split(r"[\r\n]+", stderr) if line.strip() and not PROGRESS.search(line)]
    errors = [line for line in lines if NAMED_ERROR.match(line)]
    return (errors or lines or ["it ended without a word."])[-1]
