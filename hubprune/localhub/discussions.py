"""Discussions and pull requests of a repository, kept in its git repository.

Each is a JSON blob that `refs/discussions/<number>` points to. So a change to one is the same compare-and-swap as a
commit, the merge of a pull request moves its branch and closes it in one step, and a number is taken by whoever makes
the reference first. A pull request has its commits under `refs/pr/<number>`, as on the Hub.

Merge one commit into another without a working tree, and say what a pull request changes.
"""

import json
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from hubprune.localhub.git import GitError, GitRepo, LoggedCommit, RefMove
from hubprune.localhub.names import RefusedError, timestamp

# ---- merging -------------------------------------------------------------------------------------------------------


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


# ---- discussions ---------------------------------------------------------------------------------------------------


Status = Literal["open", "draft", "closed", "merged"]
EventType = Literal["comment", "status-change", "title-change", "commit"]

TARGET = "refs/heads/main"
"""The branch that pull requests are merged into."""

_RECORDS = "refs/discussions/"
_COMMITS = "refs/pr/"
_MAX_NUMBER = 100_000
_MAX_ATTEMPTS = 100


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened in a discussion."""

    type: EventType
    author: str
    data: Mapping[str, Any]
    """As the Hub writes it, without the HTML of a comment."""
    created_at: str = field(default_factory=lambda: timestamp(time.time()))
    id: str = field(default_factory=lambda: secrets.token_hex(12))


@dataclass(frozen=True, kw_only=True)
class Discussion:
    """One discussion or pull request."""

    number: int
    title: str
    author: str
    created_at: str
    status: Status
    base: str | None
    """Commit of the target branch from which a pull request started, None for a plain discussion."""
    merge_commit: str | None = None
    events: tuple[Event, ...]
    """Oldest first. The commits of a pull request are not among them: git knows those."""

    @property
    def is_pull_request(self) -> bool:
        """Whether there are commits to be merged."""
        return self.base is not None

    @property
    def is_closed(self) -> bool:
        """Whether nothing is left to be done."""
        return self.status in ("closed", "merged")

    @property
    def ref(self) -> str:
        """Where the commits of a pull request are."""
        return f"{_COMMITS}{self.number}"

    def with_event(self, event: Event, **changes: Any) -> "Discussion":
        """Return the discussion after something has happened in it."""
        return replace(self, events=(*self.events, event), **changes)


def comment(text: str, *, author: str) -> Event:
    """Make the event of a new comment."""
    now = timestamp(time.time())
    latest = {"raw": text, "updatedAt": now, "author": {"name": author}}
    data = {"edited": False, "hidden": False, "latest": latest, "history": []}
    return Event(type="comment", author=author, data=data, created_at=now)


class Discussions:
    """All discussions and pull requests of one repository."""

    def __init__(self, git: GitRepo) -> None:
        self._git = git

    def all(self) -> list[Discussion]:
        """List them, newest first."""
        records, heads = self._refs(_RECORDS), self._refs(_COMMITS)
        blobs = self._git.blobs(records.values())
        known = {number: _decode(blobs[oid]) for number, oid in records.items()}
        bare = {number: self._undescribed(number, head) for number, head in heads.items() if number not in known}
        return [discussion for _, discussion in sorted({**known, **bare}.items(), reverse=True)]

    def get(self, number: int) -> Discussion:
        """Return one of them, which has to be there."""
        return self._read(number)[0]

    def open(self, title: str, text: str, *, author: str, head: str | None = None, draft: bool = False) -> Discussion:
        """Start a discussion, or a pull request when there is a `head`, under the next free number."""
        base = self._target() if head is not None else None
        opened = comment(text, author=author)
        made = Discussion(
            number=0,
            title=title,
            author=author,
            created_at=opened.created_at,
            status="draft" if draft else "open",
            base=base,
            events=(opened,),
        )
        taken = max([0, *self._refs(_RECORDS), *self._refs(_COMMITS)])
        for number in range(taken + 1, min(taken + _MAX_ATTEMPTS, _MAX_NUMBER)):
            numbered = replace(made, number=number)
            moves = [RefMove(f"{_RECORDS}{number}", self._store(numbered), None)]
            moves += [RefMove(f"{_COMMITS}{number}", head, None)] if head is not None else []
            if self._git.move_refs(moves):
                return numbered
        raise RefusedError(409, "There are too many discussions")

    def change(self, number: int, edit: Callable[[Discussion], tuple[Discussion, Sequence[RefMove]]]) -> Discussion:
        """Replace a discussion by what `edit` makes of it, along with references that move in the same step.

        When somebody else is faster, `edit` is asked again with what they left.
        """
        for _ in range(_MAX_ATTEMPTS):
            before, old = self._read(number)
            after, moves = edit(before)
            record = RefMove(f"{_RECORDS}{number}", self._store(after), old)
            if self._git.move_refs([record, *moves]):
                return after
        raise RefusedError(409, "Too many others are changing this discussion. Please try again.")

    def commits(self, discussion: Discussion) -> list[LoggedCommit]:
        """List the commits of a pull request, oldest first."""
        if discussion.base is None:
            return []
        head = self._git.resolve(discussion.ref)
        return self._git.log(head, since=discussion.base)[::-1]

    def _read(self, number: int) -> tuple[Discussion, str | None]:
        oid = self._refs(_RECORDS).get(number)
        if oid is not None:
            return _decode(self._git.blob(oid)), oid
        head = self._refs(_COMMITS).get(number)
        if head is None:
            raise RefusedError(404, "Discussion not found")
        return self._undescribed(number, head), None

    def _undescribed(self, number: int, head: str) -> Discussion:
        """Describe a pull request by its commit, when there is nothing but the reference."""
        (commit,) = self._git.log(head, limit=1)
        fork = self._git.try_run("merge-base", TARGET, head)
        return Discussion(
            number=number,
            title=commit.title,
            author=commit.author,
            created_at=commit.date,
            status="open",
            base=fork.decode().strip() if fork else self._target(),
            events=(replace(comment(commit.description, author=commit.author), created_at=commit.date),),
        )

    def _target(self) -> str:
        return self._git.resolve(TARGET)

    def _store(self, discussion: Discussion) -> str:
        return self._git.store_blob(json.dumps(asdict(discussion), sort_keys=True, indent=1).encode())

    def _refs(self, prefix: str) -> dict[int, str]:
        """Map numbers to what their references point to."""
        listing = self._git.run("for-each-ref", "--format=%(refname) %(objectname)", prefix).decode()
        rows = (line.removeprefix(prefix).split(" ") for line in listing.splitlines())
        return {int(number): oid for number, oid in rows if number.isdecimal()}


def _decode(blob: bytes) -> Discussion:
    stored = json.loads(blob)
    return Discussion(**{**stored, "events": tuple(Event(**event) for event in stored["events"])})
