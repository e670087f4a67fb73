"""The processes that a command consists of: those that it starts, those that it was started as, and how they are ended.

`torchrun` and `accelerate launch` start several.  The first one runs the command.  The others follow it: they load the
models that it loads and compute their share.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

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


# ---- interruptions ---------------------------------------------------------------------------------------------------

_interruptions: list[int] = []
"""The signals so far that asked this process to stop."""


def listen_to_interruptions() -> None:
    """Let Ctrl-C and a polite kill raise KeyboardInterrupt, and remember that they came.

    A process that was started to ignore Ctrl-C, as a shell starts those in the background, still ignores it.
    """
    _interruptions.clear()
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)


def _interrupt(number: int, frame: object) -> NoReturn:
    _interruptions.append(number)
    raise KeyboardInterrupt


def end_if_interrupted() -> None:
    """Raise KeyboardInterrupt again where a library swallowed the first, as by an `except:` or in a callback from C.

    What cleans up after an interruption is not disturbed.
    """
    error = sys.exception()
    while error and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    if _interruptions and not error:
        raise KeyboardInterrupt


# ---- programs that are started ---------------------------------------------------------------------------------------


def run_to_end(command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a program and return how it ended; on Linux it never outlives this process, not even one that is killed.

    Args:
        command: the program and its arguments.
        options: of `subprocess.run`.
    """
    return subprocess.run(command, check=False, preexec_fn=_ends_with_parent(), **options)


def _ends_with_parent() -> Callable[[], None] | None:
    """Return what a new process does first: ask for a SIGKILL once this one is gone."""
    if sys.platform != "linux":
        return None
    import ctypes

    parent, prctl, set_signal = os.getpid(), ctypes.CDLL(None, use_errno=True).prctl, 1

    def ask() -> None:
        prctl(set_signal, signal.SIGKILL)
        if os.getppid() != parent:  # it went before anybody could be asked
            os._exit(1)

    return ask


def last_words(stderr: str) -> str:
    """Return the line of a process's stderr that says why it ended: the error, or the last line that is no progress."""
    lines = [line.strip() for line in re.split(r"[\r\n]+", stderr) if line.strip() and not PROGRESS.search(line)]
    errors = [line for line in lines if NAMED_ERROR.match(line)]
    return (errors or lines or ["it ended without a word."])[-1]
