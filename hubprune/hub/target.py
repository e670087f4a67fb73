"""Where the result goes: to which branch, and who may see it; repo and branch are made where they are missing.

What was made for a publish that failed is taken back.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import quote

from hubprune.core.artifacts import Artifact, BaseCheckpoint
from hubprune.core.errors import ConflictError, HubError, HubpruneError, HubUnreachableError, RecipeError
from hubprune.core.recipe import Recipe
from hubprune.hub.remote import branch_heads, head_of, history, refs_of
from hubprune.hub.retry import BUSY, REQUEST_SECONDS, advising
from hubprune.hub.session import HubSession

if TYPE_CHECKING:
    from huggingface_hub import GitRefs

BRANCH = re.compile(r"(?!refs/)(?!.*(\.\.|//|/\.|@\{|\.lock(/|$)))\w[\w./+@=-]*(?<![./])", re.ASCII)
"""Names that git takes for a branch, but for some that nobody needs."""
COMMIT = re.compile(r"[0-9a-f]{7,40}")
"""Full and shortened commit ids: a branch of such a name could not be told from a commit."""

LOOKS, LOOK_SECONDS = 4, 0.5
"""How often, and how long apart, a repo is looked for whose making was interrupted."""
LONGEST_FOLDER = 255
"""Bytes in the name of a folder, for the modules that transformers copies too."""
SHORTER = "Pass a shorter name as --repo-id."


class Target(Artifact):
    """Where the result goes, as it was before any compute."""

    repo_id: str
    revision: str
    """Branch that the commit goes to."""
    exists: bool
    branch_exists: bool
    parent: str | None
    """Commit that the new one goes on top of; None where the repo does not exist yet."""
    private: bool
    """Whether nobody else may see it: asked for, or because the base is private."""
    create_pr: bool
    """Whether the commit goes into a pull request."""
    staged: bool = False
    """Whether that is merged as soon as the result was loaded back from it."""
    user: str
    """Whose token it is."""

    @property
    def is_tagged(self) -> bool:
        """Whether the branch gets the commit in the end, and the commit a name."""
        return self.staged or not self.create_pr


def check_name_loads(repo_id: str) -> None:
    """Refuse the name of a repo with a modeling file that transformers could not load for anybody.

    It makes a folder of each part of the name, with `_hyphen_` for a hyphen and `_dot_` for a dot.

    Raises:
        RecipeError: such a folder would have a name that file systems do not take.
    """
    for part in repo_id.split("/"):
        folder = part.replace(".", "_dot_").replace("-", "_hyphen_")
        if len(folder) > LONGEST_FOLDER:
            raise RecipeError(
                f"Nobody could load the modeling file of a repo called {part}: transformers writes each hyphen as "
                f"_hyphen_ and each dot as _dot_, which makes {len(folder)} characters, and a folder's name has "
                f"{LONGEST_FOLDER} at most.",
                hint=SHORTER,
            )


def is_private(repo_id: str, *, session: HubSession) -> bool | None:
    """Return whether a repo is private; None where there is none that this token may see."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        info = session.ask(
            lambda api: api.model_info(repo_id, timeout=REQUEST_SECONDS), doing=f"look up {repo_id}",
            passing=(RepositoryNotFoundError,),
        )  # fmt: skip
    except GatedRepoError:  # a subclass of RepositoryNotFoundError: everybody may know that it exists
        return False
    except RepositoryNotFoundError:
        return None
    return bool(info.private)


def check_visibility(
    recipe: Recipe, *, base: BaseCheckpoint, repo_id: str, private: bool | None, endpoint: str
) -> None:
    """Refuse to show to everybody what was meant for few, or is made of a private base; `private` as from `is_private`.

    Raises:
        RecipeError: with what to do about it.
    """
    of_base = f"the base {base.name} is private"
    if private is False and (recipe.target.private or base.private):
        raise _public(repo_id, why="--private was asked for" if recipe.target.private else of_base, at=endpoint)
    if private is None and base.private and not recipe.target.private:
        raise RecipeError(f"{repo_id} would be public, and {of_base}.", hint="Pass --private.")


def _public(repo_id: str, *, why: str, at: str) -> RecipeError:
    return RecipeError(
        f"{repo_id} is public, and {why}.",
        hint=f"Make it private at {at}/{repo_id}/settings, or pass another --repo-id together with --private.",
    )


def check_branch(name: str, *, refs: GitRefs | None) -> None:
    """Refuse a revision that no commit can go on top of.

    Raises:
        RecipeError: it is a tag or a commit, or no name for a branch.
    """
    if name in {ref.name for ref in (refs.branches if refs else ())}:
        return
    if name in {ref.name for ref in (refs.tags if refs else ())}:
        why = "is a tag, which does not move"
    elif COMMIT.fullmatch(name):
        why = "looks like the id of a commit"
    elif not BRANCH.fullmatch(name):
        why = "cannot be the name of one"
    else:
        return
    hint = "Pass the name of a branch as --revision, or none."
    raise RecipeError(f"The result goes to a branch, and {name!r} {why}.", hint=hint)


CLOCKS_DIFFER = timedelta(minutes=1)
"""How far the Hub's clock may be from ours."""


@contextmanager
def branch_of(target: Target, *, session: HubSession) -> Iterator[str]:
    """Yield the head of a target's branch; repo and branch are created where they are missing.

    What was created here is deleted again when the block fails and left no commit in it.

    Raises:
        ConflictError: the branch has gone since the target was looked at.
        RecipeError: the repo is public by now, and the result is to be private.
    """
    created = None if target.exists else _create(target, session=session)
    undo = partial(_delete_if_untouched, target, session=session)
    with _undone(f"The repo {target.repo_id}", undo, created=created):
        if target.private and is_private(target.repo_id, session=session) is False:  # it may be public by now
            raise _public(target.repo_id, why="the result is to be private", at=session.endpoint)
        there = target.branch_exists or target.revision == "main"
        branched = None if there else _create_branch(target, session=session)
        head = head_of(target.repo_id, branch=target.revision, session=session)
        if head is None:
            hint = "Run the command again to create it."
            raise ConflictError(f"{_branch(target)} was deleted during the run.", hint=hint)
        undo = partial(_delete_branch_at, head, target=target, session=session)
        with _undone(_branch(target), undo, created=branched):
            yield head


def _branch(target: Target) -> str:
    return f"The branch {target.revision} of {target.repo_id}"


@contextmanager
def _undone(what: str, undo: Callable[[], None], *, created: bool | None) -> Iterator[None]:
    """Undo something when the block fails, or say that it is left; Ctrl-C and a lost answer end here too.

    Args:
        what: its name, as a sentence begins.
        undo: how.
        created: whether it is certainly ours; False where it has come since the target was looked at, whoever made it,
            and None where it was there before.
    """
    try:
        yield
    except BaseException as error:
        left = ""
        if created:
            try:
                undo()
            except Exception:  # why it cannot be undone is what the block fails with, as a rule
                left = f"{what} was created and could not be taken back; the same command fills it."
        elif created is False and isinstance(error, HubError) and not isinstance(error, ConflictError):
            left = f"{what}, which was not there before, is left; the same command fills it."
        if left and isinstance(error, HubpruneError):
            error.advise(left)
        raise


def _maybe_left(what: str) -> AbstractContextManager[None]:
    """Add to an error that something may have been created after all: a lost answer says nothing of whose it is."""
    left = f"{what} may be there now, without the result; the same command fills it."
    return advising(left, of=HubUnreachableError)


def _create(target: Target, *, session: HubSession) -> bool:
    """Create the repo, or find that it exists by now; return whether it is certainly ours.

    This is the one request of `HfApi.create_repo`, which would repeat it for ever while the Hub is busy.
    """
    namespace, name = target.repo_id.split("/")
    body = {"name": name, "organization": namespace, "type": "model"}
    if target.private:
        body["visibility"] = "private"
    start = datetime.now(UTC)
    try:
        doing = f"create {target.repo_id}"
        with _maybe_left(f"The repo {target.repo_id}"):
            answer = session.post("/api/repos/create", body=body, doing=doing, accepted=(409,), busy=BUSY)
    except KeyboardInterrupt:  # it took the answer that would say who made the repo: its time has to tell
        with suppress(Exception):
            if _came_since(start, target, session=session):
                _delete_if_untouched(target, session=session)
        raise
    return answer.status != 409


def _came_since(start: datetime, target: Target, *, session: HubSession) -> bool:
    """Tell whether the repo was made after a time; a Hub that was just asked for it may still be at it."""
    from huggingface_hub.errors import RepositoryNotFoundError

    for _ in range(LOOKS):
        try:
            made = session.api.model_info(target.repo_id).created_at
        except RepositoryNotFoundError:
            time.sleep(LOOK_SECONDS)
        else:
            return made is not None and made >= start - CLOCKS_DIFFER
    return False


def _create_branch(target: Target, *, session: HubSession) -> bool:
    """Create the branch, or find that it exists by now; return whether it is certainly ours."""
    path = f"/api/models/{target.repo_id}/branch/{quote(target.revision, safe='')}"
    body = {"startingPoint": target.parent} if target.parent else {}
    doing = f"create the branch {target.revision} of {target.repo_id}"
    with _maybe_left(_branch(target)):
        return session.post(path, body=body, doing=doing, accepted=(409,)).status != 409


def _delete_branch_at(head: str, *, target: Target, session: HubSession) -> None:
    """Delete the branch, unless a commit landed on it after all."""
    repo_id, branch = target.repo_id, target.revision
    if head_of(repo_id, branch=branch, session=session) == head:
        doing = f"delete the branch {branch} of {repo_id}"
        session.ask(lambda api: api.delete_branch(repo_id, branch=branch), doing=doing)


def _delete_if_untouched(target: Target, *, session: HubSession) -> None:
    """Delete the repo, unless a commit landed in it after all."""
    repo_id = target.repo_id
    heads = branch_heads(refs_of(repo_id, session=session))
    if all(len(history(repo_id, revision=branch, session=session)) <= 1 for branch in heads):
        session.ask(lambda api: api.delete_repo(repo_id, missing_ok=True), doing=f"delete {repo_id}")
