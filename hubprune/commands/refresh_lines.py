"""Tell people what a refresh changes, or changed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from hubprune.commands.summary import table
from hubprune.core.artifacts import RefreshReport
from hubprune.core.console import duration, size

__all__ = ["refresh_lines"]

LONGEST = 48
"""Characters of a value of config.json that are shown."""


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
