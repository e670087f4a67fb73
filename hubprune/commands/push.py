"""`hubprune push`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hubprune.commands import options
from hubprune.commands.ci import told_to_job
from hubprune.commands.terminal import edits_as_json, errors_shown, open_session, show

EXAMPLES = (
    "Example:  hubprune publish --recipe recipe.yaml --repo-id me/tiny --dry-run --out result --report report.json"
    "  &&  hubprune push result report.json"
)

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="What publish --dry-run --out wrote.")]
Report = Annotated[Path, typer.Argument(metavar="REPORT", help="What --report of the same run wrote.")]


def push(
    folder: Folder,
    dry_run_report: Report,
    overwrite_card: options.OverwriteCard = False,
    overwrite: options.Overwrite = False,
    report: options.ReportFile = None,
    endpoint: options.Endpoint = None,
    as_json: options.Json = False,
) -> None:
    """Publish what a dry run made, on another machine and with another token if need be; nothing is computed again."""
    with errors_shown() as reporter, told_to_job(reporter) as told, edits_as_json(wanted=as_json):
        session = open_session(endpoint)
        from hubprune.commands import summary
        from hubprune.workflows import push as pushing
        from hubprune.workflows.publish import pipeline

        made = pushing.read_report(dry_run_report)
        chosen = pipeline.PublishOptions(overwrite_card=overwrite_card, overwrite=overwrite, report=report, told=told)
        done = pushing.push(folder, made, chosen, session=session, reporter=reporter)
        show(pipeline.to_json(done) if as_json else summary.publish_summary(done))
