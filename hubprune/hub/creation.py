"""Make the repo and the branch of a publish, and take them back where it failed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

from hubprune.core.errors import ConflictError, HubError, HubpruneError, HubUnreachableError
from hubprune.hub.remote import branch_heads, head_of, refs_of
from hubprune.hub.retry import BUSY
from hubprune.hub.session import HubSession
from hubprune.hub.target import Target, check_still_private

__all__ = ["branch_of"]

CLOCKS_DIFFER = timedelta(minutes=1)
"""How far the Hub's clock may be from ours."""


@contextmanager
def branch_of(target: Target, *, session: HubSession) -> Iterator[str]:
    """Yield the head of a target's branch; repo and branch are created where they are missing.

    What was created here is deleted again when the block fails and left no commit in it.

    Raises:
        ConflictError: the branch has gone since the target was looked at.
        RecipeError: the repo is public by now, and the result is to be private.
        HubError: the Hub refused or did not answer.
    """
    created = None if target.exists else _create(target, session=session)
    undo_repo = _Undo(lambda: _delete_if_untouched(target, session=session), f"The repo {target.repo_id}")
    with _undone(undo_repo, created=created):
        check_still_private(target, session=session)
        there = target.branch_exists or target.revision == "main"
        branched = None if there else _create_branch(target, session=session)
        head = head_of(target.repo_id, branch=target.revision, session=session)
        if head is None:
            raise ConflictError(
                f"The branch {target.revision} of {target.repo_id} was deleted during the run.",
                hint="Run the command again to create it.",
            )
        undo_branch = _Undo(lambda: _delete_branch_at(head, target=target, session=session), _branch(target))
        with _undone(undo_branch, created=branched):
            yield head


def _branch(target: Target) -> str:
    return f"The branch {target.revision} of {target.repo_id}"


@dataclass(frozen=True)
class _Undo:
    """How to take back what was created."""

    action: Callable[[], None]
    what: str
    """Name of what was created, as a sentence begins."""


@contextmanager
def _undone(undo: _Undo, *, created: bool | None) -> Iterator[None]:
    """Undo something when the block fails, or say that it is left; Ctrl-C and a lost answer end here too.

    Args:
        undo: how.
        created: whether it is certainly ours; False where it has come since the target was looked at, whoever made it,
            and None where it was there before.
    """
    try:
        yield
    except BaseException as error:
        if created:
            try:
                undo.action()
            except Exception:  # why it cannot be undone is what the block fails with, as a rule
                _say_left(error, f"{undo.what} was created and could not be taken back; the same command fills it.")
        elif created is False and isinstance(error, HubError) and not isinstance(error, ConflictError):
            _say_left(error, f"{undo.what}, which was not there before, is left; the same command fills it.")
        raise


def _say_left(error: BaseException, left: str) -> None:
    """Add to an error what is left on the Hub."""
    if isinstance(error, HubpruneError):
        error.advise(left)


@contextmanager
def _maybe_left(what: str) -> Iterator[None]:
    """Add to an error that something may have been created after all: a lost answer says nothing of whose it is."""
    try:
        yield
    except HubUnreachableError as error:
        _say_left(error, f"{what} may be there now, without the result; the same command fills it.")
        raise


def _create(target: Target, *, session: HubSession) -> bool:
    """Create the repo, or find that it exists by now; return whether it is certainly ours.

    This is the one request of `HfApi.create_repo`, which would repeat it for ever while the Hub is busy.
    """
    namespace, name = target.repo_id.split("/")
    body: dict[str, Any] = {"name": name, "organization": namespace, "type": "model"}
    if target.private:
        body["visibility"] = "private"
    start = datetime.now(UTC)
    try:
        with _maybe_left(f"The repo {target.repo_id}"):
            answer = session.post(
                "/api/repos/create", body=body, doing=f"create {target.repo_id}", accepted=(409,), busy=BUSY
            )
    except KeyboardInterrupt:
        with suppress(Exception):
            _delete_if_just_made(target, since=start, session=session)
        raise
    return answer.status != 409


def _delete_if_just_made(target: Target, *, since: datetime, session: HubSession) -> None:
    """Delete the repo if it was made in the moment of a Ctrl-C, which took the answer that would say by whom."""
    made = session.api.model_info(target.repo_id).created_at
    if made and made >= since - CLOCKS_DIFFER:
        _delete_if_untouched(target, session=session)


def _create_branch(target: Target, *, session: HubSession) -> bool:
    """Create the branch, or find that it exists by now; return whether it is certainly ours."""
    with _maybe_left(_branch(target)):
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
        session.ask(
            lambda api: api.delete_branch(target.repo_id, branch=target.revision),
            doing=f"delete the branch {target.revision} of {target.repo_id}",
        )


def _delete_if_untouched(target: Target, *, session: HubSession) -> None:
    """Delete the repo, unless a commit landed in it after all."""
    repo_id = target.repo_id
    if all(_is_untouched(repo_id, branch, session) for branch in branch_heads(refs_of(repo_id, session=session))):
        session.ask(lambda api: api.delete_repo(repo_id, missing_ok=True), doing=f"delete {repo_id}")


def _is_untouched(repo_id: str, branch: str, session: HubSession) -> bool:
    commits = session.ask(
        lambda api: api.list_repo_commits(repo_id, revision=branch), doing=f"read the history of {repo_id}"
    )
    return len(commits) <= 1
