"""`hubprune reproduce`, and what it tells people: what is equal and what differs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import typer

from hubprune.commands.summary import table
from hubprune.commands.terminal import show, to_json
from hubprune.core.console import Reporter
from hubprune.core.requests import ReproduceRequest

if TYPE_CHECKING:
    from hubprune.core.artifacts import ComparedPart, Difference, Reproduction, Scalar

DIFFERS = 3
"""Exit code where everything was run and something is not equal."""
EXAMPLES = (
    "Exit codes: 0 everything is equal that should be, 3 something differs, 1 it could not be run."
    "  |  Examples:  hubprune reproduce me/Llama-3.2-3B-attn-drop-3"
    "  |  hubprune reproduce ./published --calibration texts.jsonl --report reproduction.json"
)
SHOWN = 3
"""Differences of a part that are written out; the JSON has all of them."""
WIDTH = 60
"""Characters of a value that are shown."""


def reproduce(request: ReproduceRequest, reporter: Reporter, *, as_json: bool) -> None:
    """Run the recipe of a published result again, publish nothing, and say what is equal and what differs."""
    from hubprune.workflows import reproduce as again

    seen = again.reproduce(request, reporter=reporter)
    show(to_json(seen) if as_json else reproduction_lines(seen))
    if not seen.equal:
        raise typer.Exit(DIFFERS)


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
