"""`hubprune reproduce`: its options, and what it prints.

Tell people what is equal and what differs.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from hubprune.commands import card_options, options
from hubprune.commands.summary import table
from hubprune.commands.terminal import errors_shown, open_session, show, to_json
from hubprune.core.artifacts import ComparedPart, Difference, Reproduction, Scalar

__all__ = ["DIFFERS", "EXAMPLES", "reproduce", "reproduction_lines"]


# ---- reproduce -----------------------------------------------------------------------------------------------------


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
        pass  # MERGED
        from hubprune.core.files import make_writable, write_atomically
        from hubprune.workflows import reproduce as command

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
        show(to_json(seen) if as_json else reproduction_lines(seen))
        if not seen.equal:
            raise typer.Exit(DIFFERS)


# ---- reproduce lines -----------------------------------------------------------------------------------------------


SHOWN = 3
"""Differences of a part that are written out; the JSON has all of them."""
WIDTH = 60
"""Characters of a value that are shown."""


def reproduction_lines(seen: Reproduction) -> str:
    """Write a table of all parts, the first differences of each, likely causes, and the verdict."""
    at = f" at {seen.commit[:12]}" if seen.commit else ""
    parts = [
        f"{seen.name}{at}, made of {seen.base} at {seen.base_commit[:12]}",
        table([[part.name, part.outcome, part.detail] for part in seen.parts], left=3),
        *filter(None, map(_differences, seen.parts)),
        *_causes(seen),
        _verdict(seen),
    ]
    return "\n\n".join(parts)


def _differences(part: ComparedPart) -> str:
    if not part.differences:
        return ""
    rows = [[part.name, "published", "files" if part.name == "manifest" else "reproduced"]]
    rows += [[f"  {row.place}", *_pair(row)] for row in part.differences[:SHOWN]]
    more = len(part.differences) - SHOWN
    return "\n".join([table(rows, left=3), *([f"  and {more:,} more: --json has all"] if more > 0 else [])])


def _pair(row: Difference) -> list[str]:
    """Write two values; of two long texts what stands where they part."""
    pair = (row.published, row.found)
    if not all(isinstance(value, str) for value in pair):
        return [_short(value, start=0) for value in pair]
    texts = [str(value) for value in pair]
    same = next((i for i, (a, b) in enumerate(zip(*texts, strict=False)) if a != b), min(map(len, texts)))
    return [_short(text, start=max(0, same - WIDTH // 3) if max(map(len, texts)) > WIDTH else 0) for text in texts]


def _short(value: Scalar, *, start: int) -> str:
    if value is None:
        return "none"
    if not isinstance(value, str):
        return repr(value)
    text = value[start : start + WIDTH]
    shown = repr(text)[1:-1] if not text.isprintable() else text
    return f"{'…' if start else ''}{shown}{'…' if len(value) > start + WIDTH else ''}"


def _causes(seen: Reproduction) -> Iterator[str]:
    if seen.causes:
        head = "this changed nothing:" if seen.equal else "what may be the cause:"
        yield "\n".join([head, *(f"  {cause}" for cause in seen.causes)])


def _verdict(seen: Reproduction) -> str:
    where = f"\nreproduced files: {seen.folder}" if seen.folder else ""
    if seen.equal:
        return f"reproduced: everything is equal that should be{where}"
    names = [part.name for part in seen.parts if part.outcome == "differs"]
    return f"not reproduced: {', '.join(names)} {'differs' if len(names) == 1 else 'differ'}{where}"
