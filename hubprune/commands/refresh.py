"""`hubprune refresh`, and what it tells people: what changes, or changed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import typer

from hubprune.commands.summary import table
from hubprune.core.console import Reporter, duration, size
from hubprune.core.requests import RefreshRequest

if TYPE_CHECKING:
    from hubprune.core.artifacts import RefreshReport

WOULD_CHANGE = 3
"""Exit code of a check that found something to do."""
RESUME = "Run the same command again: a repo that has its commit gets none again."
EXAMPLES = (
    "Exit codes: 0 all is up to date or refreshed, 3 --check found something to do, 5 somebody edited a repo,"
    " 1 one could not be refreshed for another reason, or several for more than one."
    "  |  Examples:  hubprune refresh me/Llama-3.2-3B-attn-drop-3 --check"
    "  |  hubprune refresh me/one me/two me/three"
    "  |  hubprune refresh acme/model --create-pr"
)
LONGEST = 48
"""Characters of a value of config.json that are shown."""


def refresh(request: RefreshRequest, reporter: Reporter, *, as_json: bool) -> None:
    """Bring repos that are out to what this version writes: modeling file, tokenizer files, config.json and card.

    Nothing is computed and no weights are sent.  Every repo gets one commit, is loaded back, and says in its
    hubprune.json and on its card what changed.
    """
    from hubprune.workflows.refresh import refresh_all, to_json

    reports = refresh_all(request, reporter=reporter)
    typer.echo(to_json(reports) if as_json else refresh_lines(reports))
    failed = {report.exit_code for report in reports if report.outcome == "failed"}
    changes = any(report.outcome == "would change" for report in reports)
    if code := (failed.pop() if len(failed) == 1 else 1) if failed else WOULD_CHANGE if changes else 0:
        raise typer.Exit(code)


def refresh_lines(reports: Sequence[RefreshReport]) -> str:
    """Write one line per repo; below it, where something changes, every file and key."""
    return "\n".join(line for report in reports for line in _lines(report))


def _lines(report: RefreshReport) -> Iterator[str]:
    yield f"{report.repo_id}  {_told(report)}"
    if report.changed:
        digests = [f"{_short(file.before)} -> {_short(file.after)}" for file in report.changed]
        rows = [[f"  {f.outcome}", f.path, told] for f, told in zip(report.changed, digests, strict=True)]
        yield table(rows, left=3)
    if same := [file.path for file in report.files if file.outcome == "same"] if report.changed else []:
        yield f"  same     {', '.join(same)}"
    for change in report.config:
        yield f"  config.json  {change.key}: {_value(change.before)} -> {_value(change.after)}"
    for note in report.notes:
        yield f"  note: {note}"
    if report.commit:
        tag = f", tag {report.tag}" if report.tag else ""
        yield f"  {report.url}{tag}"
        sent = f"{size(report.sent_bytes)} in {duration(report.seconds)}"
        yield f"  {len(report.changed)} files, {sent}; no weights were sent"


def _told(report: RefreshReport) -> str:
    if report.outcome == "failed":
        return f"failed: {report.error}"
    if not report.changed:
        return f"{report.outcome} with hubprune {report.to_version}"
    before = "" if report.from_version == report.to_version else f"{report.from_version} -> "
    return f"{report.outcome}: hubprune {before}{report.to_version}"


def _short(digest: str | None) -> str:
    return digest[:12] if digest else "none"


def _value(value: Any) -> str:
    text = "none" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
