"""Bring repos that are out to what this version writes, without computing: `hubprune refresh`.

In come repo ids; out comes a report for each.  Of weights only headers are read, none are sent, and no code of a repo
is run before it was replaced by ours.  Here: look, write anew, one commit, load back; then the next repo, whatever
became of the one before.

    there      the repo as its publish left it, or why it is left alone
    anew       the files that this version writes for the same plan and base, and what of them differs
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

from hubprune import __version__
from hubprune.cards.card import check_templates
from hubprune.core.artifacts import PublishedCommit, RefreshReport
from hubprune.core.config import needs_modeling_file
from hubprune.core.console import Reporter
from hubprune.core.errors import CheckpointError, HubpruneError, VerificationError
from hubprune.core.files import make_writable, scratch_folder
from hubprune.core.privacy import check_endpoint
from hubprune.core.recipe import BaseModelSpec, Recipe, parse
from hubprune.core.requests import RefreshRequest
from hubprune.core.stages import work_folder
from hubprune.hub import repos as hub
from hubprune.hub.commit import publish as send
from hubprune.hub.commit import tag_commit
from hubprune.hub.remote import refs_of
from hubprune.hub.repos import stored_shapes
from hubprune.hub.session import HubSession
from hubprune.hub.transfer import check_arrived
from hubprune.pruning import verify
from hubprune.pruning.base_files import fit
from hubprune.workflows.publish.before import Unfinished
from hubprune.workflows.refresh.anew import Anew, write_anew
from hubprune.workflows.refresh.there import Published, read_published, target_of
from hubprune.workflows.run import open_session

BUG = "Nothing was changed. This is a bug worth reporting, with the name of the repo."
NEW_TOKENS = 40
"""How many a refreshed model writes after it was loaded back."""


def refresh_all(
    request: RefreshRequest, *, reporter: Reporter, session: HubSession | None = None
) -> tuple[RefreshReport, ...]:
    """Refresh several repos; one that fails keeps none of the others from it.

    Raises:
        HubpruneError: nothing can be refreshed at all.
    """
    session = session or open_session(request.endpoint)
    check_endpoint(session.endpoint)
    if request.card_template:
        check_templates(Path(request.card_template))
    reports = []
    for repo_id in dict.fromkeys(request.repos):
        start = time.monotonic()
        try:
            report = refresh(repo_id, request, session=session, reporter=reporter)
        except HubpruneError as error:
            reporter.error(error.message, error.hint)
            report = RefreshReport(
                repo_id=repo_id, outcome="failed", error=error.message, hint=error.hint, exit_code=error.exit_code
            )
        reports.append(report.model_copy(update={"seconds": round(time.monotonic() - start, 2)}))
    return tuple(reports)


def refresh(repo_id: str, request: RefreshRequest, *, session: HubSession, reporter: Reporter) -> RefreshReport:
    """Bring a repo to what this version writes for the same plan and base, in one commit.

    Raises:
        HubpruneError: it is no repo of ours, was edited, may not be written, or does not load afterwards.
    """
    target = target_of(
        repo_id, revision=request.revision, create_pr=request.create_pr, writes=not request.check, session=session
    )
    published = read_published(target, overwrite=request.overwrite, session=session, reporter=reporter)
    template = Path(request.card_template) if request.card_template else None
    with scratch_folder(_work_folder(), name="refresh") as folder:
        anew = write_anew(published, folder, template=template, overwrite=request.overwrite)
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
        return report if request.check else _carried_out(report, published, anew, request, session, reporter)


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
    request: RefreshRequest,
    session: HubSession,
    reporter: Reporter,
) -> RefreshReport:
    """Commit what changes and load it back; of what is up to date, do what a killed refresh left undone."""
    work = _work_folder()
    unfinished = Unfinished(work, published.target, endpoint=session.endpoint)
    if anew.is_up_to_date:
        there = _as_it_is(published, anew, session=session)
        report = report.model_copy(update={"tag": there.tag})
    else:
        if not request.no_load_back:
            unfinished.begin()
        there = _send(published, anew, request, session=session, reporter=reporter)
        url = there.pull_request_url or there.url
        reporter.note(f"{'committed' if there.created else 'there already'}: {url}")
        outcome = "proposed" if there.pull_request_url else "committed"
        sent = sum(change.size for change in anew.changes) if there.created else 0
        told = {"outcome": outcome, "commit": there.commit, "url": url, "tag": there.tag, "sent_bytes": sent}
        report = report.model_copy(update=told)
    if unfinished and not request.no_load_back:
        report = report.model_copy(update={"loaded_back": _load_back(published, there, work=work, reporter=reporter)})
        unfinished.end()
    return report


def _send(
    published: Published, anew: Anew, request: RefreshRequest, *, session: HubSession, reporter: Reporter
) -> PublishedCommit:
    if not request.no_load_back:
        _check_fit(published, anew, session=session)
    changed = [change.path for change in anew.changes if change.outcome != "same"]
    reporter.note(f"{len(changed)} files change: {', '.join(changed)}")
    is_new = anew.record.report.refreshed != published.record.report.refreshed
    return send(
        anew.folder,
        target=published.target,
        files=anew.files,
        message=f"Refresh with hubprune {__version__}" if is_new else "Render the card again",
        tag=anew.tag,
        session=session,
        reporter=reporter,
        overwrite="everything" if request.overwrite else "nothing",
    )


def _check_fit(published: Published, anew: Anew, *, session: HubSession) -> None:
    """Let transformers build the model of the files to be, without data, and compare it with the weights there.

    Raises:
        VerificationError: it is another model.
    """
    spec = BaseModelSpec(repo_id=published.target.repo_id, revision=published.remote.commit)
    shapes = stored_shapes(hub.resolve_repo(spec, session=session), session=session)
    what = f"What this version writes for {spec.repo_id}"
    try:
        unused = fit(anew.config_json, shapes, name=spec.repo_id).unused
    except CheckpointError as error:
        raise VerificationError(f"{what} does not fit its weights: {error.message}", hint=BUG) from error
    if unused:
        raise VerificationError(f"{what} makes no use of {unused[0]} in its weights.", hint=BUG)


def _as_it_is(published: Published, anew: Anew, *, session: HubSession) -> PublishedCommit:
    """Describe what is there, and name its files where a refresh was cut off between its commit and its tag."""
    repo_id, commit, tag = published.target.repo_id, published.remote.commit, None
    if not (anew.record.report.recipe["target"]["create_pr"] or published.target.create_pr):
        tag = anew.tag
        if tag not in {ref.name for ref in refs_of(repo_id, session=session).tags}:
            tag_commit(tag, repo_id=repo_id, commit=commit, session=session)
    url = f"{session.endpoint}/{repo_id}/commit/{commit}"
    return PublishedCommit(
        repo_id=repo_id, commit=commit, parent=None, url=url, created=False, tag=tag, files=anew.files
    )


def _load_back(published: Published, there: PublishedCommit, *, work: Path, reporter: Reporter) -> str:
    """Load a commit over HTTP in a fresh process with an empty cache, and return what it writes.

    Raises:
        VerificationError: it does not load, or is not what was sent.
    """
    report, commit = published.record.report, there.commit
    reporter.note("loading it back from the Hub in a fresh process")
    expected = report.checkpoint.parameters
    try:
        loaded = verify.load_from_hub(
            there.repo_id,
            commit=commit,
            prompt=parse(Recipe, report.recipe).evaluation.prompt_texts()[0],
            new_tokens=NEW_TOKENS,
            custom_code=needs_modeling_file(report.plan),
            work_folder=work,
            check=lambda folder: check_arrived(there, folder),
        )
        if loaded.parameters != expected:
            raise VerificationError(f"it loads with {loaded.parameters:,} parameters instead of {expected:,}.")
    except VerificationError as error:
        raise VerificationError(
            f"{there.repo_id} is refreshed at {commit[:8]}, but: {error.message}",
            hint=f"The commit before, {published.remote.commit[:8]}, has the files as they were.",
        ) from error
    return loaded.text
