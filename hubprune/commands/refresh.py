"""`hubprune refresh`: its options, and what it prints.

Tell people what a refresh changes, or changed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import typer

from hubprune.commands import card_options, options
from hubprune.commands.summary import table
from hubprune.commands.terminal import errors_shown, open_session
from hubprune.core.artifacts import RefreshReport
from hubprune.core.console import duration, size

__all__ = ["EXAMPLES", "WOULD_CHANGE", "refresh", "refresh_lines"]


# ---- refresh -------------------------------------------------------------------------------------------------------


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
Repos = Annotated[list[str], typer.Argument(metavar="REPO...", help="Repo ids of what hubprune publish wrote.")]
Check = Annotated[bool, typer.Option("--check", help="Only tell what would change; needs no right to write.")]
CreatePr = Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead of committing.")]
Revision = Annotated[str, typer.Option(help="Branch of the repo.")]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        help="Replace card, config.json, tokenizer and modeling file even where somebody edited them; never weights.",
    ),
]
NoLoadBack = Annotated[
    bool, typer.Option("--no-load-back", help="Neither build the model beforehand nor download the result and load it.")
]


def refresh(
    repos: Repos,
    check: Check = False,
    create_pr: CreatePr = False,
    revision: Revision = "main",
    overwrite: Overwrite = False,
    card_template: card_options.CardTemplate = None,
    no_load_back: NoLoadBack = False,
    endpoint: options.Endpoint = None,
    as_json: options.Json = False,
) -> None:
    """Bring repos that are out to what this version writes: modeling file, tokenizer files, config.json and card.

    Nothing is computed and no weights are sent.  Every repo gets one commit, is loaded back, and says in its
    hubprune.json and on its card what changed.
    """
    with errors_shown(resume=RESUME) as reporter:
        session = open_session(endpoint)
        pass  # MERGED
        from hubprune.workflows import refresh as command

        chosen = command.RefreshOptions(
            revision=revision,
            check=check,
            create_pr=create_pr,
            overwrite=overwrite,
            card_template=card_template,
            load_back=not no_load_back,
        )
        reports = command.refresh_all(repos, chosen, session=session, reporter=reporter)
        typer.echo(command.to_json(reports) if as_json else refresh_lines(reports))
        failed = {report.exit_code for report in reports if report.outcome == "failed"}
        changes = any(report.outcome == "would change" for report in reports)
        if code := (failed.pop() if len(failed) == 1 else 1) if failed else WOULD_CHANGE if changes else 0:
            raise typer.Exit(code)


# ---- refresh lines -------------------------------------------------------------------------------------------------


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
