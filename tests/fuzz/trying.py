"""Read nearly valid files one after the other, each in a folder of its own, and tell how each attempt ended."""

from __future__ import annotations

import contextlib
import io
import logging
import signal
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path

from fuzz_kinds import Kind
from mutations import nearly

from hubprune.core.errors import HubpruneError

DEADLINE_SECONDS = 30
"""For one file, which takes milliseconds: a loop without an end is found, and no busy machine."""


class HangError(Exception):
    """A file that is not read to its end."""


@contextlib.contextmanager
def deadline(seconds: int) -> Iterator[None]:
    """Stop what takes longer, wherever it is."""

    def stop(number, frame):
        raise HangError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def files_of(kind: Kind):
    """A strategy of nearly valid files of a kind, as bytes."""
    return nearly(kind.valid, kind.write)


READ, REFUSED = "read", "refused"


def attempt(kind: Kind, data: bytes) -> str:
    """Read a file of a kind; return that it was read, or refused in one line, or else what escaped."""
    with tempfile.TemporaryDirectory(prefix="hubprune-fuzz-") as folder, quietly(), deadline(DEADLINE_SECONDS):
        path = Path(folder, kind.file)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        try:
            kind.read(path)
        except HubpruneError as error:
            in_one_line = error.message and "\n" not in error.message
            return REFUSED if in_one_line else f"an error of several lines: {error.message[:200]!r}"
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            return f"{type(error).__name__}: {str(error)[:200]} ({Path(last.filename).name}:{last.lineno})"
    return READ


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Keep what libraries say of broken files to themselves."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)
