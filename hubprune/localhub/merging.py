"""Merge one commit into another without a working tree, and say what a pull request changes."""

from dataclasses import dataclass

from hubprune.localhub.git import GitError, GitRepo
from hubprune.localhub.refusal import RefusedError

_CONFLICTS = 1
"""Exit status with which git says that a merge has conflicts."""


@dataclass(frozen=True)
class Merged:
    """The outcome of a three-way merge."""

    tree: str
    """Hash of the merged tree, which is of use only when there are no conflicts."""
    conflicts: tuple[str, ...]
    """Paths that both sides have changed, each in its own way."""


def merge_trees(git: GitRepo, ours: str, theirs: str) -> Merged:
    """Merge two commits into a tree; nothing moves.

    Histories that have nothing in common merge as well: a squashed branch has lost what it shared with its pull
    requests.
    """
    options = ("--write-tree", "-z", "--name-only", "--no-messages", "--allow-unrelated-histories")
    try:
        output = git.run("merge-tree", *options, ours, theirs)
    except GitError as error:
        if error.status != _CONFLICTS:
            raise RefusedError(501, f"This machine's git cannot merge, which takes version 2.38: {error}") from error
        output = error.output
    tree, *conflicts = output.decode(errors="replace").rstrip("\0").split("\0")
    return Merged(tree, tuple(dict.fromkeys(conflicts)))


def squash(git: GitRepo, tree: str, *, parent: str | None, message: str, author: str) -> str:
    """Store a commit of a tree that exists already, and return its hash."""
    identity = {"GIT_AUTHOR_NAME": author, "GIT_AUTHOR_EMAIL": f"{author}@localhost"}
    parents = ["-p", parent] if parent else []
    return git.run("commit-tree", tree, *parents, stdin=message.encode(), env=identity).decode().strip()


def difference(git: GitRepo, base: str, head: str) -> str:
    """Return what `head` changes since it left `base`, as git writes it; large files show as their pointers."""
    fork = git.try_run("merge-base", base, head)
    start = fork.decode().strip() if fork else base
    return git.run("diff", "--no-color", "--no-ext-diff", start, head).decode(errors="replace")
