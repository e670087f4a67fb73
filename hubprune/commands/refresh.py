"""`hubprune refresh`: its options, and what it prints."""

from __future__ import annotations

from typing import Annotated

import typer

from hubprune.commands import card_options, options
from hubprune.commands.terminal import errors_shown, open_session

__all__ = ["EXAMPLES", "WOULD_CHANGE", "refresh"]

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
        from hubprune.commands import refresh_lines as lines
        from hubprune.workflows.refresh import command

        chosen = command.RefreshOptions(
            revision=revision,
            check=check,
            create_pr=create_pr,
            overwrite=overwrite,
            card_template=card_template,
            load_back=not no_load_back,
        )
        reports = command.refresh_all(repos, chosen, session=session, reporter=reporter)
        typer.echo(command.to_json(reports) if as_json else lines.refresh_lines(reports))
        failed = {report.exit_code for report in reports if report.outcome == "failed"}
        changes = any(report.outcome == "would change" for report in reports)
        if code := (failed.pop() if len(failed) == 1 else 1) if failed else WOULD_CHANGE if changes else 0:
            raise typer.Exit(code)
