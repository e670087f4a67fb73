"""Merge a pull request once it was found to load: readers of the branch never meet a result that does not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hubprune.core.artifacts import PublishedCommit
from hubprune.core.errors import ConflictError, HubError
from hubprune.hub.commit import tag_commit
from hubprune.hub.remote import check_remote, head_of, pull_request, pull_request_heads
from hubprune.hub.session import HubSession
from hubprune.hub.target import Target

if TYPE_CHECKING:
    from huggingface_hub import DiscussionWithDetails

__all__ = ["merge"]


def merge(proposed: PublishedCommit, *, target: Target, tag: str | None, session: HubSession) -> PublishedCommit:
    """Merge a pull request of `publish`, compare what arrived on the branch, and tag it.

    The Hub squashes what it merges, so the branch gets one commit, of another id than the proposed one.

    Args:
        proposed: the pull request, found to load.
        target: from `preflight`; where it goes.
        tag: name to give the merged commit; a tag that exists stays where it is.
        session: which Hub, and as whom.

    Raises:
        ConflictError: the branch has moved since, or the pull request was closed or cannot be merged; it stays there.
        RemoteMismatchError: what is on the branch is not what was proposed.
        HubError: the Hub refused or did not answer.
    """
    number = int(str(proposed.pull_request_url).rsplit("/", 1)[-1])
    found = pull_request(target.repo_id, number, session=session)
    if found.status != "merged":
        _check_mergeable(found, target=target, session=session)
        _check_unchanged(number, proposed, target=target, session=session)
        _merge(number, target=target, session=session)
    head = head_of(target.repo_id, branch=target.revision, session=session)
    if head is None:
        raise ConflictError(f"The branch {target.revision} of {target.repo_id} was deleted during the run.")
    files = check_remote(proposed.files, gone=(), repo_id=target.repo_id, commit=head, session=session)
    given = tag_commit(tag, repo_id=target.repo_id, commit=head, session=session)
    url = f"{session.endpoint}/{target.repo_id}/commit/{head}"
    return proposed.model_copy(
        update={"commit": head, "parent": target.parent, "created": True, "tag": given, "url": url, "files": files}
    )


def _check_unchanged(number: int, proposed: PublishedCommit, *, target: Target, session: HubSession) -> None:
    """Merge only what was loaded back: whoever opened a pull request can add to it."""
    head = pull_request_heads(target.repo_id, session=session).get(f"refs/pr/{number}")
    if head != proposed.commit:
        raise ConflictError(
            f"Pull request {number} of {target.repo_id} was at {proposed.commit} and is at {head}; it was not merged.",
            hint="Look at what was added; run the command again to propose the result anew.",
        )


def _check_mergeable(found: DiscussionWithDetails, *, target: Target, session: HubSession) -> None:
    """Merge on top of what the preflight saw only: the Hub itself would mix both sides' files."""
    head = head_of(target.repo_id, branch=target.revision, session=session)
    if head != target.parent:
        raise ConflictError(
            f"Somebody else committed to {target.repo_id}: {target.revision} was at {target.parent} and is at {head} "
            f"now; pull request {found.num} was not merged.",
            hint="Run the command again to propose it on top of that, or merge it on the Hub.",
        )
    if found.status not in ("open", "draft"):
        raise ConflictError(f"Pull request {found.num} of {target.repo_id} is {found.status}, so it is not merged.")


def _merge(number: int, *, target: Target, session: HubSession) -> None:
    """Merge; an error after which it is merged was a lost answer."""
    doing = f"merge pull request {number} of {target.repo_id}"
    try:
        session.ask(lambda api: api.merge_pull_request(target.repo_id, number), doing=doing)
    except (HubError, ConflictError):
        if pull_request(target.repo_id, number, session=session).status != "merged":
            raise
