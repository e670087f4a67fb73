"""What every command does around its work: show errors and results, write JSON."""

from __future__ import annotations

import codecs
import errno
import io
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from hubprune.core.console import Reporter, was_interrupted
from hubprune.core.devices import rank, world_size
from hubprune.core.errors import DiskSpaceError, EditedError, HubpruneError, OutputError, RecipeError
from hubprune.core.extras import missing

if TYPE_CHECKING:
    from pydantic import BaseModel

    from hubprune.localhub import Preview

INTERRUPTED = 130
RESUME = "Run the same command again: it goes on after the last finished stage."
CIRCUMSTANCES = frozenset(
    {
        errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.ELOOP,
        errno.EIO, errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ENXIO, errno.ENODEV, errno.ETXTBSY, errno.EFBIG,
    }
)  # fmt: skip
"""What the system refuses over a file and no program can help; anything else is a bug and keeps its traceback."""


def prepare_streams() -> None:
    r"""Let stdout and stderr write every character; what their encoding lacks becomes \u2026, which JSON reads back."""

    def escaped(error: UnicodeError) -> tuple[str, int]:
        if not isinstance(error, UnicodeEncodeError):
            raise error
        return json.dumps(error.object[error.start : error.end])[1:-1], error.end

    codecs.register_error("hubprune", escaped)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # and not None, as where it was closed
            stream.reconfigure(errors="hubprune")


def check_texts(arguments: Sequence[str]) -> None:
    """Refuse arguments and folders whose names are no text, before anything is computed that would name them in JSON.

    Raises:
        RecipeError: one is not UTF-8.
    """
    named = {"The argument": arguments, "The working directory": [os.getcwd()]}  # noqa: PTH109
    named["HUBPRUNE_HOME"] = [os.environ.get("HUBPRUNE_HOME", "")]
    for name, values in named.items():
        for value in values:
            try:
                value.encode()
            except UnicodeEncodeError as error:
                hint = "Choose another name: this one fits into no JSON."
                raise RecipeError(f"{name} {value!r} is not UTF-8.", hint=hint) from error


def fail_on_output(error: OSError) -> int:
    """Say that stdout could not be written, and return the exit code."""
    sys.stdout = None  # which Python would try to flush once more
    Reporter().error(f"The output cannot be written: {error.strerror}.", None)
    return OutputError.exit_code


@contextmanager
def errors_shown(*, resume: str = RESUME) -> Iterator[Reporter]:
    """Turn what the user can do something about into two lines and an exit code; bugs keep their traceback.

    `resume` says what to do after an interrupt.
    """
    reporter = Reporter()
    try:
        with _interruption_told():
            yield reporter
    except HubpruneError as error:
        reporter.error(error.message, error.hint)
        raise typer.Exit(error.exit_code) from None
    except ModuleNotFoundError as error:
        if (told := missing(error)) is None:
            raise
        reporter.error(told.message, told.hint)
        raise typer.Exit(told.exit_code) from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            reporter.error("The disk is full; nothing half-written was kept.", "Free some space and run it again.")
            raise typer.Exit(DiskSpaceError.exit_code) from None
        if error.errno not in CIRCUMSTANCES:
            raise
        place = f": {error.filename}" if error.filename else ""
        reporter.error(f"{error.strerror}{place}.", "Set it right and run the same command again.")
        raise typer.Exit(HubpruneError.exit_code) from None
    except KeyboardInterrupt as interrupt:
        reporter.error("Interrupted.", str(interrupt) or resume)
        raise typer.Exit(INTERRUPTED) from None


@contextmanager
def _interruption_told() -> Iterator[None]:
    """Raise KeyboardInterrupt in place of an error that comes after Ctrl-C.

    A library that catches everything, as in the middle of an import, swallows it, and fails later of what it left.
    """
    try:
        yield
    except typer.Exit:
        raise
    except Exception:
        if was_interrupted():
            raise KeyboardInterrupt from None
        raise


@contextmanager
def edits_as_json(*, wanted: bool) -> Iterator[None]:
    """Print, for machines, who changed what where a publish stops because of it; the error goes on."""
    try:
        yield
    except EditedError as error:
        if wanted:
            said = {"outcome": "edited", "message": error.message, "hint": error.hint, "commits": error.commits}
            show(json.dumps(said, indent=2))
        raise


def show_page(shown: Preview, *, port: int, opens: bool, reporter: Reporter) -> None:
    """Show a card's page until Ctrl-C; its address is the first line on stdout."""
    import webbrowser

    from hubprune.localhub import serve_preview

    def announce(address: str) -> None:
        print(address, flush=True)
        reporter.note("Ctrl-C ends the preview")
        if opens and not webbrowser.open(address):
            reporter.warn("no browser could be opened: open the address above")

    serve_preview(shown, port=port, announce=announce)


def show(text: str) -> None:
    """Write a result to stdout.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        typer.echo(text)
    except OSError as error:
        if error.errno == errno.EPIPE:  # whoever read it had enough
            raise
        hint = "What was computed is kept: run the same command again."
        raise OutputError(f"The result cannot be written to stdout: {error.strerror}.", hint=hint) from error


def to_json(value: BaseModel) -> str:
    """Write a result for machines."""
    # Scores per document are for statistics in the work folder and would bury everything else.
    return value.model_dump_json(indent=2, exclude={"per_document"})


def follow() -> None:
    """Compute what the first of several processes tells."""
    from hubprune.core.console import quiet
    from hubprune.evaluation import computing

    try:
        with errors_shown(), quiet():
            computing.follow()
    except typer.Exit as end:  # which only an app turns into an exit code
        sys.exit(end.exit_code)


def dismiss() -> None:
    """Let the other processes of a run go, where this is the first of several."""
    if rank() == 0 and world_size() > 1:
        from hubprune.evaluation import computing

        computing.dismiss()
