"""`hubprune reproduce`: its options, and what it prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hubprune.commands import card_options, options
from hubprune.commands.terminal import errors_shown, open_session, show, to_json

__all__ = ["DIFFERS", "EXAMPLES", "reproduce"]

DIFFERS = 3
"""Exit code where everything was run and something is not equal."""
EXAMPLES = (
    "Exit codes: 0 everything is equal that should be, 3 something differs, 1 it could not be run."
    "  |  Examples:  hubprune reproduce me/Llama-3.2-3B-attn-drop-3"
    "  |  hubprune reproduce ./published --calibration texts.jsonl --report reproduction.json"
)
Published = Annotated[
    str, typer.Argument(metavar="FOLDER_OR_REPO", help="A folder or repo that hubprune publish wrote.")
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of the repo. Default: main.")]
Texts = Annotated[
    list[Path] | None,
    typer.Option(metavar="FILE", help="A local file that it was scored on, found by its name; may be given again."),
]
TrustTasks = Annotated[
    bool,
    typer.Option("--trust-tasks", help="Run the benchmark definitions that come with it: their templates are code."),
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Start over instead of going on where it was stopped.")]
Device = Annotated[
    str | None,
    typer.Option(metavar="auto|cpu|mps|cuda[:N]", help="Where to compute. Default: where the recipe says."),
]
Out = Annotated[Path | None, typer.Option(metavar="FOLDER", help="New folder that keeps the reproduced files.")]


def reproduce(
    published: Published,
    revision: Revision = None,
    calibration: Texts = None,
    trust_tasks: TrustTasks = False,
    fresh: Fresh = False,
    out: Out = None,
    device: Device = None,
    card_template: card_options.CardTemplate = None,
    report: options.ReportFile = None,
    endpoint: options.Endpoint = None,
    as_json: options.Json = False,
) -> None:
    """Run the recipe of a published result again, publish nothing, and say what is equal and what differs."""
    with errors_shown() as reporter:
        session = open_session(endpoint)
        from hubprune.commands import reproduce_lines as lines
        from hubprune.core.files import make_writable, write_atomically
        from hubprune.workflows.reproduce import command

        if report:
            make_writable(report.absolute().parent)
        chosen = command.ReproduceOptions(
            revision=revision,
            calibration=tuple(calibration or ()),
            trust_tasks=trust_tasks,
            fresh=fresh,
            out=out,
            device=device,
            card_template=card_template,
        )
        seen = command.reproduce(published, chosen, session=session, reporter=reporter)
        if report:
            write_atomically(report, f"{to_json(seen)}\n")
        show(to_json(seen) if as_json else lines.reproduction_lines(seen))
        if not seen.equal:
            raise typer.Exit(DIFFERS)
