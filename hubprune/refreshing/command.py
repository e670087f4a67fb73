"""Refresh repos: look, write anew, one commit, load back; one after the other, whatever becomes of the one before."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hubprune import __version__
from hubprune.artifacts import PublishedCommit, RefreshReport
from hubprune.console import Reporter
from hubprune.endpoint import check_endpoint
from hubprune.errors import HubpruneError, VerificationError
from hubprune.files import make_writable, scratch_folder
from hubprune.pruning import verify
from hubprune.pruning.config import needs_modeling_file
from hubprune.publishing.card import check_templates
from hubprune.publishing.commit import publish as send
from hubprune.publishing.commit import tag_commit
from hubprune.publishing.remote import refs_of
from hubprune.publishing.session import HubSession
from hubprune.recipe import Recipe, parse
from hubprune.refreshing.anew import Anew, write_anew
from hubprune.refreshing.there import Published, read_published, target_of
from hubprune.republishing.unfinished import Unfinished
from hubprune.stages import work_folder

__all__ = ["RefreshOptions", "refresh", "refresh_all", "to_json"]

NEW_TOKENS = 40
"""How many a refreshed model writes after it was loaded back."""


@dataclass(frozen=True, kw_only=True)
class RefreshOptions:
    """How repos are refreshed."""

    revision: str = "main"
    """Branch."""
    check: bool = False
    """Only tell what would change."""
    create_pr: bool = False
    """Leave the commit in an open pull request."""
    overwrite: bool = False
    """Replace a card, and small files, that somebody edited."""
    card_template: Path | None = None
    """Folder of card templates that win over the shipped ones."""
    load_back: bool = True
    """Whether the result is downloaded and loaded in a fresh process."""


def refresh_all(
    repo_ids: Sequence[str], options: RefreshOptions, *, session: HubSession, reporter: Reporter
) -> tuple[RefreshReport, ...]:
    """Refresh several repos; one that fails keeps none of the others from it.

    Args:
        repo_ids: each once.
        options: how.
        session: which Hub, and as whom.
        reporter: told what is going on.

    Raises:
        HubpruneError: nothing can be refreshed at all.
    """
    check_endpoint(session.endpoint)
    if options.card_template:
        check_templates(options.card_template)
    reports = []
    for repo_id in dict.fromkeys(repo_ids):
        start = time.monotonic()
        try:
            report = refresh(repo_id, options, session=session, reporter=reporter)
        except HubpruneError as error:
            reporter.error(error.message, error.hint)
            report = RefreshReport(
                repo_id=repo_id, outcome="failed", error=error.message, hint=error.hint, exit_code=error.exit_code
            )
        reports.append(report.model_copy(update={"seconds": round(time.monotonic() - start, 2)}))
    return tuple(reports)


def refresh(repo_id: str, options: RefreshOptions, *, session: HubSession, reporter: Reporter) -> RefreshReport:
    """Bring a repo to what this version writes for the same plan and base, in one commit.

    Raises:
        HubpruneError: it is no repo of ours, was edited, may not be written, or does not load afterwards.
    """
    target = target_of(
        repo_id, revision=options.revision, create_pr=options.create_pr, writes=not options.check, session=session
    )
    published = read_published(target, overwrite=options.overwrite, session=session, reporter=reporter)
    with scratch_folder(_work_folder(), name="refresh") as folder:
        anew = write_anew(published, folder, template=options.card_template, overwrite=options.overwrite)
        for note in anew.notes:
            reporter.warn(note)
        report = RefreshReport(
            repo_id=repo_id,
            outcome="up to date" if anew.is_up_to_date else "would change",
            from_version=published.version,
            to_version=__version__,
            parent=published.remote.commit,
            files=anew.changes,
            config=anew.config,
            notes=anew.notes,
        )
        return report if options.check else _carried_out(report, published, anew, options, session, reporter)


def _work_folder() -> Path:
    folder = work_folder()
    make_writable(folder)
    return folder


def to_json(reports: Sequence[RefreshReport]) -> str:
    """Write all reports for machines."""
    return json.dumps({"repos": [report.model_dump(mode="json") for report in reports]}, indent=2)


def _carried_out(
    report: RefreshReport,
    published: Published,
    anew: Anew,
    options: RefreshOptions,
    session: HubSession,
    reporter: Reporter,
) -> RefreshReport:
    """Commit what changes and load it back; of what is up to date, do what a killed refresh left undone."""
    target, work = published.target, _work_folder()
    unfinished = Unfinished(work, target, endpoint=session.endpoint)
    if anew.is_up_to_date:
        report = report.model_copy(update={"tag": _make_up_for_tag(published, anew, session=session)})
        commit = published.remote.commit
    else:
        unfinished.begin()
        sent = _send(published, anew, session=session, reporter=reporter)
        reporter.note(f"{'committed' if sent.created else 'there already'}: {sent.pull_request_url or sent.url}")
        commit = sent.commit
        report = report.model_copy(
            update={
                "outcome": "proposed" if sent.pull_request_url else "committed",
                "commit": commit,
                "url": sent.pull_request_url or sent.url,
                "tag": sent.tag,
                "sent_bytes": sum(change.size for change in anew.changes) if sent.created else 0,
            }
        )
    if unfinished and options.load_back:
        text = _load_back(published, commit, work=work, reporter=reporter)
        report = report.model_copy(update={"loaded_back": text})
        unfinished.end()
    return report


def _send(published: Published, anew: Anew, *, session: HubSession, reporter: Reporter) -> PublishedCommit:
    changed = [change.path for change in anew.changes if change.outcome != "same"]
    told = f"Refresh with hubprune {__version__}" if anew.record.report.refreshed else "Render the card again"
    reporter.note(f"{len(changed)} files change: {', '.join(changed)}")
    return send(
        anew.folder,
        target=published.target,
        files=anew.files,
        message=told,
        tag=anew.tag,
        session=session,
        reporter=reporter,
        overwrite_card=True,  # whether it may be replaced was found out on the same parent
    )


def _make_up_for_tag(published: Published, anew: Anew, *, session: HubSession) -> str | None:
    """Name the files of a refresh that was cut off between its commit and its tag."""
    repo_id, report = published.target.repo_id, anew.record.report
    if report.recipe["target"]["create_pr"] or published.target.create_pr:
        return None
    if anew.tag in {ref.name for ref in refs_of(repo_id, session=session).tags}:
        return anew.tag
    return tag_commit(anew.tag, repo_id=repo_id, commit=published.remote.commit, session=session)


def _load_back(published: Published, commit: str, *, work: Path, reporter: Reporter) -> str:
    """Load a commit over HTTP in a fresh process with an empty cache, and return what it writes.

    Raises:
        VerificationError: it does not load, or has another number of parameters.
    """
    report, target = published.record.report, published.target
    reporter.note("loading it back from the Hub in a fresh process")
    expected = report.checkpoint.parameters
    try:
        loaded = verify.load_from_hub(
            target.repo_id,
            commit=commit,
            prompt=parse(Recipe, report.recipe).evaluation.prompt_texts()[0],
            new_tokens=NEW_TOKENS,
            custom_code=needs_modeling_file(report.plan),
            work_folder=work,
        )
        if loaded.parameters != expected:
            raise VerificationError(f"it loads with {loaded.parameters:,} parameters instead of {expected:,}.")
    except VerificationError as error:
        raise VerificationError(
            f"{target.repo_id} is refreshed at {commit[:8]}, but: {error.message}",
            hint=f"The commit before, {published.remote.commit[:8]}, has the files as they were.",
        ) from error
    return loaded.text
