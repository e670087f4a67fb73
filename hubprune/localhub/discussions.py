"""Discussions and pull requests of a repository, kept in its git repository.

Each is a JSON blob that `refs/discussions/<number>` points to. So a change to one is the same compare-and-swap as a
commit, the merge of a pull request moves its branch and closes it in one step, and a number is taken by whoever makes
the reference first. A pull request has its commits under `refs/pr/<number>`, as on the Hub.
"""

import json
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from hubprune.localhub.checks import RefusedError, timestamp
from hubprune.localhub.git import GitRepo, LoggedCommit, RefMove

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


Edit = Callable[[Discussion], tuple[Discussion, Sequence[RefMove]]]
"""Makes another discussion of one, and says which references have to move along."""


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
        status: Status = "draft" if draft else "open"
        told = {"title": title, "author": author, "created_at": opened.created_at}
        made = Discussion(number=0, **told, status=status, base=base, events=(opened,))
        taken = max([0, *self._refs(_RECORDS), *self._refs(_COMMITS)])
        for number in range(taken + 1, min(taken + _MAX_ATTEMPTS, _MAX_NUMBER)):
            numbered = replace(made, number=number)
            moves = [RefMove(f"{_RECORDS}{number}", self._store(numbered), None)]
            moves += [RefMove(numbered.ref, head, None)] if head is not None else []
            if self._git.move_refs(moves):
                return numbered
        raise RefusedError(409, "There are too many discussions")

    def change(self, number: int, edit: Edit) -> Discussion:
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

    def merge(self, number: int, *, author: str, remark: Event | None) -> Discussion:
        """Bring the changes of a pull request into main as one commit, in one step with its new status."""

        def merged(discussion: Discussion) -> tuple[Discussion, Sequence[RefMove]]:
            """Return the merged pull request, and the move of main."""
            if not discussion.is_pull_request:
                raise RefusedError(400, "Only a pull request can be merged")
            if discussion.status != "open":
                raise RefusedError(400, f"Only an open pull request can be merged, and this one is {discussion.status}")
            old, commits = self._target(), self._commits(discussion)
            tree, conflicts = self._git.merge_trees(old, self._git.resolve(discussion.ref))
            if conflicts:
                raise RefusedError(409, f"This pull request has conflicts with main: {', '.join(conflicts)}")
            lines = "".join(f"- {commit.title} ({commit.sha})\n" for commit in commits)
            message = f"{discussion.title} (#{discussion.number})\n\n{lines}"
            new = self._git.commit_tree(tree, parent=old, message=message, author=author)
            event = Event(type="status-change", author=author, data={"status": "merged"})
            said = discussion.with_event(remark) if remark else discussion
            return said.with_event(event, status="merged", merge_commit=new), [RefMove(TARGET, new, old)]

        return self.change(number, merged)

    def events(self, discussion: Discussion) -> list[Event]:
        """List what has happened in a discussion, the commits of a pull request among it, oldest first."""
        opened, *later = discussion.events
        commits = []
        for made in self._commits(discussion):
            data, told = {"subject": made.title, "oid": made.sha}, {"author": made.author, "created_at": made.date}
            commits.append(Event(id=made.sha[:24], type="commit", data=data, **told))
        # To the second, as git keeps time; a commit comes before what was said in the same second.
        return [opened, *sorted([*commits, *later], key=lambda event: event.created_at[:19])]

    def conflicts(self, discussion: Discussion) -> list[str]:
        """List the files that keep a pull request from being merged; none for what needs no merge."""
        if discussion.status in ("closed", "merged") or not discussion.is_pull_request:
            return []
        return self._git.merge_trees(self._target(), self._git.resolve(discussion.ref))[1]

    def difference(self, discussion: Discussion) -> str:
        """Return what a pull request changes, as git writes it."""
        return self._git.difference(discussion.base or TARGET, self._git.resolve(discussion.ref))

    def _commits(self, discussion: Discussion) -> list[LoggedCommit]:
        """List the commits of a pull request, oldest first."""
        if discussion.base is None:
            return []
        return self._git.log(self._git.resolve(discussion.ref), since=discussion.base)[::-1]

    def _read(self, number: int) -> tuple[Discussion, str | None]:
        if (oid := self._refs(_RECORDS).get(number)) is not None:
            return _decode(self._git.blob(oid)), oid
        if (head := self._refs(_COMMITS).get(number)) is None:
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
