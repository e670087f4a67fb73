"""Make the repo and the branch of a publish, and take them back where it failed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import quote

from hubprune.errors import ConflictError
from hubprune.publishing.remote import head_of
from hubprune.publishing.retry import BUSY
from hubprune.publishing.session import HubSession
from hubprune.publishing.target import Target, check_still_private

__all__ = ["branch_of"]


@contextmanager
def branch_of(target: Target, *, session: HubSession) -> Iterator[str]:
    """Yield the head of a target's branch; repo and branch are created where they are missing.

    What was created here is deleted again when the block fails and left no commit in it.

    Raises:
        ConflictError: the branch has gone since the target was looked at.
        RecipeError: the repo is public by now, and the result is to be private.
        HubError: the Hub refused or did not answer.
    """
    created = not target.exists and _create(target, session=session)
    with _undone(lambda: _delete_if_untouched(target, session=session), needed=created):
        check_still_private(target, session=session)
        missing = not target.branch_exists and target.revision != "main"
        branched = missing and _create_branch(target, session=session)
        head = head_of(target.repo_id, branch=target.revision, session=session)
        if head is None:
            raise ConflictError(f"The branch {target.revision} of {target.repo_id} was deleted during the run.")
        with _undone(lambda: _delete_branch_at(head, target=target, session=session), needed=branched):
            yield head


@contextmanager
def _undone(undo: Callable[[], None], *, needed: bool) -> Iterator[None]:
    """Undo something when the block fails; Ctrl-C and a lost answer end here too."""
    try:
        yield
    except BaseException:
        if needed:
            with suppress(Exception):
                undo()
        raise


def _create(target: Target, *, session: HubSession) -> bool:
    """Create the repo, or find that it exists by now; return whether it is certainly ours.

    This is the one request of `HfApi.create_repo`, which would repeat it for ever while the Hub is busy.
    """
    namespace, name = target.repo_id.split("/")
    body: dict[str, Any] = {"name": name, "organization": namespace, "type": "model"}
    if target.private:
        body["visibility"] = "private"
    answer = session.post("/api/repos/create", body=body, doing=f"create {target.repo_id}", accepted=(409,), busy=BUSY)
    return answer.status != 409


def _create_branch(target: Target, *, session: HubSession) -> bool:
    """Create the branch, or find that it exists by now; return whether it is certainly ours."""
    answer = session.post(
        f"/api/models/{target.repo_id}/branch/{quote(target.revision, safe='')}",
        body={"startingPoint": target.parent} if target.parent else {},
        doing=f"create the branch {target.revision} of {target.repo_id}",
        accepted=(409,),
    )
    return answer.status != 409


def _delete_branch_at(head: str, *, target: Target, session: HubSession) -> None:
    """Delete the branch, unless a commit landed on it after all."""
    if head_of(target.repo_id, branch=target.revision, session=session) == head:
        session.api.delete_branch(target.repo_id, branch=target.revision)


def _delete_if_untouched(target: Target, *, session: HubSession) -> None:
    """Delete the repo, unless a commit landed in it after all."""
    api = session.api
    branches = [branch.name for branch in api.list_repo_refs(target.repo_id).branches]
    if all(len(api.list_repo_commits(target.repo_id, revision=branch)) <= 1 for branch in branches):
        api.delete_repo(target.repo_id, missing_ok=True)
