"""Hold the libraries to the manners of the house: no bars beside ours, no chatter."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from typing import Any

__all__ = ["log_level", "quiet"]


@contextmanager
def quiet() -> Iterator[None]:
    """Keep lm-eval off stdout, its logs at warnings and above, and every tqdm bar off while the block runs."""
    with ExitStack() as stack:
        stack.enter_context(_no_tqdm())
        stack.enter_context(log_level("lm_eval", logging.WARNING))
        # The bootstrap announces itself with print(), and stdout is for results.
        stack.enter_context(redirect_stdout(io.StringIO()))
        # It also opens a pool of processes as wide as the machine, for a single piece of work.
        stack.enter_context(_environment("DISABLE_MULTIPROC", "1"))
        yield


@contextmanager
def _no_tqdm() -> Iterator[None]:
    from tqdm import tqdm  # type: ignore[import-untyped]

    original = tqdm.__init__

    def silent(bar: Any, *args: Any, **kwargs: Any) -> None:
        # lm-eval passes `disable` itself or nothing at all, so no option of its own reaches all of its bars.
        original(bar, *args, **{**kwargs, "disable": True})

    tqdm.__init__ = silent
    try:
        yield
    finally:
        tqdm.__init__ = original


@contextmanager
def log_level(name: str, level: int) -> Iterator[None]:
    """Give a logger another level while the block runs."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
