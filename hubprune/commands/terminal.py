"""What every command does around its work: show errors, open sessions and runs, write JSON."""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from hubprune.console import Reporter
from hubprune.errors import DiskSpaceError, EditedError, HubpruneError
from hubprune.processes import rank, world_size

if TYPE_CHECKING:
    from pydantic import BaseModel

    from hubprune.localhub import Preview
    from hubprune.publishing.session import HubSession
    from hubprune.recipe import Recipe
    from hubprune.run import Run

INTERRUPTED = 130
RESUME = "Run the same command again: it goes on after the last finished stage."


@contextmanager
def errors_shown(*, resume: str = RESUME) -> Iterator[Reporter]:
    """Turn what the user can do something about into two lines and an exit code; bugs keep their traceback.

    Args:
        resume: what to do after an interrupt.
    """
    reporter = Reporter()
    try:
        yield reporter
    except HubpruneError as error:
        reporter.error(error.message, error.hint)
        raise typer.Exit(error.exit_code) from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        reporter.error("The disk is full; nothing half-written was kept.", "Free some space and run it again.")
        raise typer.Exit(DiskSpaceError.exit_code) from None
    except KeyboardInterrupt as interrupt:
        reporter.error("Interrupted.", str(interrupt) or resume)
        raise typer.Exit(INTERRUPTED) from None


@contextmanager
def edits_as_json(*, wanted: bool) -> Iterator[None]:
    """Print, for machines, who changed what where a publish stops because of it; the error goes on."""
    try:
        yield
    except EditedError as error:
        if wanted:
            said = {"outcome": "edited", "message": error.message, "hint": error.hint, "commits": error.commits}
            typer.echo(json.dumps(said, indent=2))
        raise


def open_session(endpoint: str | None) -> HubSession:
    """Open a session with a Hub; None for the one that the environment names."""
    from hubprune.endpoint import use_endpoint
    from hubprune.publishing.session import HubSession

    return HubSession.open(endpoint=use_endpoint(endpoint))


def open_run(recipe: Recipe, endpoint: str | None, reporter: Reporter) -> Run:
    """Open a run of a recipe over the work folder; what is taken from it is said."""
    session = open_session(endpoint)
    from hubprune.run import Run
    from hubprune.stages import StageStore, work_folder

    def say_reused(stage: str) -> None:
        reporter.note(f"{stage}: taken from an earlier run")

    return Run(recipe, session, reporter, StageStore(work_folder(), on_reuse=say_reused))


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


def to_json(value: BaseModel) -> str:
    """Write a result for machines."""
    # Scores per document are for statistics in the work folder and would bury everything else.
    return value.model_dump_json(indent=2, exclude={"per_document"})


def follow() -> None:
    """Compute what the first of several processes tells."""
    from hubprune.evaluation import team
    from hubprune.evaluation.libraries import quiet

    try:
        with errors_shown(), quiet():
            team.follow()
    except typer.Exit as end:  # which only an app turns into an exit code
        sys.exit(end.exit_code)


def dismiss() -> None:
    """Let the other processes of a run go, where this is the first of several."""
    if rank() == 0 and world_size() > 1:
        from hubprune.evaluation import team

        team.dismiss()
