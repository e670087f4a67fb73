"""Where the result goes: to which branch, and who may see it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from hubprune.core.artifacts import Artifact, BaseCheckpoint
from hubprune.core.errors import RecipeError
from hubprune.core.recipe import Recipe
from hubprune.hub.retry import REQUEST_SECONDS
from hubprune.hub.session import HubSession

if TYPE_CHECKING:
    from huggingface_hub import GitRefs

__all__ = [
    "SHORTER",
    "Target",
    "check_branch",
    "check_name_loads",
    "check_still_private",
    "check_visibility",
    "is_private",
]

BRANCH = re.compile(r"(?!refs/)(?!.*(\.\.|//|/\.|@\{|\.lock(/|$)))\w[\w./+@=-]*(?<![./])", re.ASCII)
"""Names that git takes for a branch, but for some that nobody needs."""
COMMIT = re.compile(r"[0-9a-f]{7,40}")
"""Full and shortened commit ids: a branch of such a name could not be told from a commit."""

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


# ---- what it is called -------------------------------------------------------------------------------------------


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


# ---- who may see it ----------------------------------------------------------------------------------------------


def is_private(repo_id: str, *, session: HubSession) -> bool | None:
    """Return whether a repo is private; None where there is none that this token may see."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        info = session.ask(
            lambda api: api.model_info(repo_id, timeout=REQUEST_SECONDS),
            doing=f"look up {repo_id}",
            passing=(RepositoryNotFoundError,),
        )
    except GatedRepoError:  # a subclass of RepositoryNotFoundError: everybody may know that it exists
        return False
    except RepositoryNotFoundError:
        return None
    return bool(info.private)


def check_visibility(
    recipe: Recipe, *, base: BaseCheckpoint, repo_id: str, private: bool | None, endpoint: str
) -> None:
    """Refuse to show to everybody what was meant for few, or what is made of a private base.

    Args:
        recipe: says whether the target is to be private.
        base: a private one needs a private target.
        repo_id: of the target.
        private: what `is_private` said of it.
        endpoint: of the Hub.

    Raises:
        RecipeError: with what to do about it.
    """
    if private is False and (recipe.target.private or base.private):
        raise _public(repo_id, why="--private was asked for" if recipe.target.private else _private(base), at=endpoint)
    if private is None and base.private and not recipe.target.private:
        raise RecipeError(f"{repo_id} would be public, and {_private(base)}.", hint="Pass --private.")


def check_still_private(target: Target, *, session: HubSession) -> None:
    """Raise RecipeError where a target that has to be private is a public repo by now."""
    if target.private and is_private(target.repo_id, session=session) is False:
        raise _public(target.repo_id, why="the result is to be private", at=session.endpoint)


def _private(base: BaseCheckpoint) -> str:
    return f"the base {base.name} is private"


def _public(repo_id: str, *, why: str, at: str) -> RecipeError:
    return RecipeError(
        f"{repo_id} is public, and {why}.",
        hint=f"Make it private at {at}/{repo_id}/settings, or pass another --repo-id together with --private.",
    )


# ---- which branch ------------------------------------------------------------------------------------------------


def check_branch(name: str, *, refs: GitRefs | None) -> None:
    """Refuse a revision that no commit can go on top of.

    Args:
        name: a branch, there already or yet to be made.
        refs: those of the target; None where it does not exist.

    Raises:
        RecipeError: it is a tag or a commit, or no name for a branch.
    """
    if name in {ref.name for ref in (refs.branches if refs else ())}:
        return
    if name in {ref.name for ref in (refs.tags if refs else ())}:
        raise _no_branch(name, why="is a tag, which does not move")
    if COMMIT.fullmatch(name):
        raise _no_branch(name, why="looks like the id of a commit")
    if not BRANCH.fullmatch(name):
        raise _no_branch(name, why="cannot be the name of one")


def _no_branch(name: str, *, why: str) -> RecipeError:
    return RecipeError(
        f"The result goes to a branch, and {name!r} {why}.", hint="Pass the name of a branch as --revision, or none."
    )
