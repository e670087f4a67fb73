"""Find the pull request in which an earlier run proposed what this one would propose, before anything is computed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hubprune.cards.fingerprint import Fingerprint
from hubprune.core.artifacts import PublishReport
from hubprune.hub.remote import RECENT_PULL_REQUESTS, number_of, pull_request, pull_request_heads
from hubprune.hub.session import HubSession
from hubprune.hub.target import Target
from hubprune.workflows.publish.republishing.again import leave_as_it_is
from hubprune.workflows.publish.republishing.before import Before, publish_at
from hubprune.workflows.run import Run

if TYPE_CHECKING:
    from hubprune.workflows.publish.pipeline import PublishOptions

__all__ = ["proposed_before"]


def proposed_before(run: Run, target: Target, now: Fingerprint, options: PublishOptions) -> PublishReport | None:
    """Report an open pull request of this user that proposes the same on top of the same commit; None without one.

    One that is to be merged is not looked for: it has to be loaded back first.  Nor is one of anybody else: whoever may
    propose could keep a result from being proposed by proposing what only says that it is the same.

    Args:
        run: whose recipe is published.
        target: from the preflight.
        now: what this publish depends on.
        options: of the publish; who asks for the files gets them, unless only a change is of interest.
    """
    needs_files = options.force or ((options.dry_run or options.out) and not options.only_if_changed)
    if needs_files or not target.create_pr or target.staged or target.parent is None:
        return None
    session, reporter = run.session, run.reporter
    for ref, head in list(pull_request_heads(target.repo_id, session=session).items())[:RECENT_PULL_REQUESTS]:
        if not _is_own_and_open(number_of(ref), target=target, session=session):
            continue
        before = publish_at(head, target, now, session=session, reporter=reporter)
        if before and before.is_up_to_date and _lies_on(target.parent, before, target=target, session=session):
            url = f"{session.endpoint}/{target.repo_id}/discussions/{number_of(ref)}"
            report = leave_as_it_is(before, target=target, session=session)
            if report and report.published:
                published = report.published.model_copy(update={"pull_request_url": url})
                return report.model_copy(update={"published": published})
    return None


def _is_own_and_open(number: int, *, target: Target, session: HubSession) -> bool:
    found = pull_request(target.repo_id, number, session=session)
    return found.status in ("open", "draft") and found.author == target.user


def _lies_on(parent: str, before: Before, *, target: Target, session: HubSession) -> bool:
    commits = session.ask(
        lambda api: api.list_repo_commits(target.repo_id, revision=before.remote.commit),
        doing=f"read the history of {target.repo_id}",
    )
    return len(commits) > 1 and commits[1].commit_id == parent
