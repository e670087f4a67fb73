"""How a repository changes: commits, and the discussions and pull requests that lead to them.

A commit is ordered in lines of JSON, which are read and checked before anything of it is stored.
"""

import base64
import binascii
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

from starlette.responses import JSONResponse, Response

from hubprune.localhub import cards, checks
from hubprune.localhub.cards import render
from hubprune.localhub.checks import Account, RefusedError, conflict, revision_not_found, timestamp
from hubprune.localhub.discussions import TARGET, Discussion, Discussions, Event, Status, comment
from hubprune.localhub.git import Change, RefMove
from hubprune.localhub.hub import Repo
from hubprune.localhub.large_files import Pointer, is_large
from hubprune.localhub.web import REPO, Call, HubRoutes, answers, field, json_object, text_field

_MAX_ATTEMPTS = 100
_ONE = f"{REPO}/discussions/{{number}}"
_PER_PAGE = 30
_MAX_TITLE = 200
_MAX_TEXT = 65_536
_LISTED_AS: dict[str, tuple[Status, ...]] = {"open": ("open", "draft"), "closed": ("closed", "merged")}


@dataclass(frozen=True)
class LargeFile:
    """A large file, uploaded before, that the commit puts at a path."""

    path: str
    sha256: str


@dataclass(frozen=True)
class CommitOrder:
    """What a client wants committed."""

    summary: str
    description: str
    parent: str | None
    """Commit that the branch has to be at, perhaps shortened."""
    steps: tuple[Change | LargeFile, ...]

    @property
    def message(self) -> str:
        """The message of the git commit."""
        return f"{self.summary}\n\n{self.description}".rstrip() + "\n"


class CommitRoutes(HubRoutes):
    """Handlers that write to a repository."""

    @answers("/api/validate-yaml", method="POST")
    def validate_yaml(self, call: Call) -> Response:
        """Check the metadata of a card."""
        try:
            metadata = cards.read_metadata(field(call.json(), "content", str))
        except cards.MetadataError as error:
            message = str(error).encode(errors="replace").decode()
            return JSONResponse({"errors": [{"message": message}], "warnings": []}, 400)
        warnings = [] if metadata else [{"message": "empty or missing yaml metadata in repo card"}]
        return JSONResponse({"errors": [], "warnings": warnings})

    @answers(f"{REPO}/preupload/{{revision}}", method="POST")
    def preupload(self, call: Call) -> Response:
        """Say for each file whether it goes into git or into the large file store, and what is there now."""
        repo = self.repo_to_change(call)
        sha = repo.git.resolve(call.params["revision"])
        wanted = []
        for file in field(call.json(), "files", list):
            sample = _decoded(_checked(file), "sample", "", refusal="A sample is not valid base64")
            wanted.append((checks.file_path(field(file, "path", str)), field(file, "size", int), sample))
        entries = repo.git.entries(sha, [path for path, _, _ in wanted])
        present = {file.entry.path: file for file in self.hub.files(repo, list(entries.values()))}
        answer = []
        for path, size, sample in wanted:
            mode = "lfs" if is_large(path, size, sample) else "regular"
            row: dict[str, Any] = {"path": path, "uploadMode": mode, "shouldIgnore": False}
            if (file := present.get(path)) and file.entry.kind == "file":
                row["oid"] = file.pointer.sha256 if file.pointer else file.entry.oid
            answer.append(row)
        return JSONResponse({"files": answer, "commitOid": sha})

    @answers(f"{REPO}/commit/{{revision}}", method="POST")
    def commit(self, call: Call) -> Response:
        """Make one commit on a branch, or a pull request of one commit."""
        repo, author = self.repo_to_change(call), self.known_caller(call).name
        order, extra = parse_order(call.body), {}
        web = call.origin + repo.web_path()
        if call.flag("create_pr"):
            base = repo.git.resolve(order.parent or call.params["revision"])
            sha = repo.git.write_commit(base, self._changes(order), message=order.message, author=author)
            title, text = order.summary.strip(), order.description.strip()
            made = Discussions(repo.git).open(title, text, author=author, head=sha)
            extra = {"pullRequestUrl": f"{web}/discussions/{made.number}"}
        else:
            sha = self._advance(repo, call.params["revision"], order, author)
        answer = {"success": True, "commitOid": sha, "commitUrl": f"{web}/commit/{sha}", "hookOutput": ""}
        return JSONResponse({**answer, **extra})

    @answers(f"{REPO}/lfs-files/duplicate", method="POST")
    def duplicate(self, call: Call) -> Response:
        """Copy large files into another repository, which takes nothing but leave: the store is one for all."""
        self.repo(call, "read")
        named = [checks.digest(field(_checked(file), "sha256", str)) for file in field(call.json(), "files", list)]
        done = [sha256 for sha256 in named if self.hub.stored_size(sha256) is not None]
        failed = [{"sha256": sha256, "error": "not found"} for sha256 in named if sha256 not in done]
        return JSONResponse({"success": done, "failed": failed})

    def _advance(self, repo: Repo, revision: str, order: CommitOrder, author: str) -> str:
        """Put a commit on a branch.

        With a parent in the order, the branch has to be there still. Without one, a commit that came in between is
        built upon, so that of two writers both succeed.
        """
        ref = revision if revision.startswith(("refs/heads/", "refs/pr/")) else f"refs/heads/{revision}"
        changes = self._changes(order)
        for _ in range(_MAX_ATTEMPTS):
            if (head := repo.git.refs().get(ref)) is None:
                raise revision_not_found(revision)
            if order.parent is not None and not head.startswith(order.parent):
                raise conflict()
            sha = repo.git.write_commit(head, changes, message=order.message, author=author)
            if repo.git.move_ref(ref, sha, old=head):
                return sha
        raise conflict()

    def _changes(self, order: CommitOrder) -> list[Change]:
        """Return the steps with pointers in place of the large files, which have to be in the store."""
        changes = []
        for step in order.steps:
            if isinstance(step, LargeFile):
                if (size := self.hub.stored_size(step.sha256)) is None:
                    raise RefusedError(422, f"LFS pointer {step.path} points to a file that does not exist")
                step = Change(step.path, Pointer(step.sha256, size).encode())
            changes.append(step)
        return changes


def parse_order(body: bytes) -> CommitOrder:
    """Read a commit's lines of JSON: one header, then one line for each file."""
    header: Mapping[str, Any] | None = None
    steps = []
    for line in body.splitlines():
        if not line.strip():
            continue
        record = json_object(line)
        key, value = field(record, "key", str), field(record, "value", dict)
        if key == "header":
            header = value
        else:
            steps.append(_step(key, value))
    if header is None:
        raise RefusedError(400, "The commit has no header")
    parent = field(header, "parentCommit", str, None)
    if parent is not None and not checks.is_commit(parent):
        raise RefusedError(400, f"Invalid parentCommit: {parent}")
    summary, description = text_field(header, "summary"), text_field(header, "description", "")
    if not summary.strip() or "\0" in summary + description:
        raise RefusedError(400, "The commit's message cannot be used")
    files = {step.path for step in steps if isinstance(step, LargeFile) or step.content is not None}
    for path in sorted(files):
        if folder := next((str(above) for above in PurePosixPath(path).parents if str(above) in files), None):
            raise RefusedError(400, f"{folder} cannot be a file and the folder of {path}")
    return CommitOrder(summary, description, parent, tuple(steps))


def _step(key: str, value: Mapping[str, Any]) -> Change | LargeFile:
    path = checks.file_path(field(value, "path", str).rstrip("/" if key == "deletedFolder" else ""))
    match key:
        case "file":
            content = _decoded(value, "content", refusal=f"The content of {path} is not valid base64")
            if path == "README.md":
                try:
                    cards.read_metadata(content.decode(errors="replace"))
                except cards.MetadataError as error:
                    raise RefusedError(400, f"Invalid metadata in README.md: {error}") from error
            return Change(path, content)
        case "lfsFile":
            return LargeFile(path, checks.digest(field(value, "oid", str)))
        case "deletedFile" | "deletedFolder":
            return Change(path, None)
    raise RefusedError(400, f"Unknown operation: {key}")


def _checked(file: Any) -> Mapping[str, Any]:
    if not isinstance(file, dict):
        raise RefusedError(400, "A file is not a JSON object")
    return file


def _decoded(record: Mapping[str, Any], name: str, default: Any = ..., *, refusal: str) -> bytes:
    """Return the bytes that a field holds in base64."""
    try:
        return base64.b64decode(field(record, name, str, default), validate=True)
    except (binascii.Error, ValueError) as error:
        raise RefusedError(400, refusal) from error


class DiscussionRoutes(HubRoutes):
    """Handlers for what people say about a repository, and what they propose."""

    @answers(f"{REPO}/discussions")
    def listing(self, call: Call) -> Response:
        """List discussions and pull requests, newest first."""
        repo, kind, author = self.repo(call, "see"), call.query.get("type", "all"), call.query.get("author")
        status = call.query.get("status", "all")
        if kind not in ("all", "discussion", "pull_request") or status not in ("all", *_LISTED_AS):
            raise RefusedError(400, "type is discussion or pull_request, status is open or closed")
        page = call.query.get("p", "0")
        start = int(page) * _PER_PAGE if page.isascii() and page.isdigit() and len(page) < 7 else 0
        found = [one for one in Discussions(repo.git).all() if not author or one.author == author]
        if kind != "all":
            found = [one for one in found if one.is_pull_request == (kind == "pull_request")]
        if status != "all":
            found = [one for one in found if one.status in _LISTED_AS[status]]
        rows = [_row(repo, discussion) for discussion in found[start : start + _PER_PAGE]]
        return JSONResponse({"discussions": rows, "count": len(found), "start": start})

    @answers(f"{REPO}/discussions", method="POST")
    def open(self, call: Call) -> Response:
        """Start a discussion, or a pull request that has no commits yet: a draft until its author opens it."""
        repo, account, body = self.repo(call, "propose"), self.known_caller(call), call.json()
        title, text = _title(body), _text(body, "description")
        proposes = field(body, "pullRequest", bool, False)
        head = repo.git.resolve(TARGET) if proposes else None
        made = Discussions(repo.git).open(title, text, author=account.name, head=head, draft=proposes)
        url = f"{call.origin}{repo.web_path()}/discussions/{made.number}"
        return JSONResponse({"num": made.number, "url": url, "pullRequest": proposes})

    @answers(_ONE)
    def details(self, call: Call) -> Response:
        """Tell everything about a discussion; of a pull request also what it changes and what is in its way."""
        repo = self.repo(call, "read")
        discussions = Discussions(repo.git)
        discussion = discussions.get(call.number)
        answer = {**_row(repo, discussion), "events": [_event(event) for event in discussions.events(discussion)]}
        if discussion.is_pull_request:
            merged = {"mergeCommitId": discussion.merge_commit} if discussion.merge_commit else {}
            answer |= {"changes": {"base": TARGET, **merged}, "filesWithConflicts": discussions.conflicts(discussion)}
            if call.flag("diff"):
                answer["diff"] = discussions.difference(discussion)
        return JSONResponse(answer)

    @answers(f"{_ONE}/comment", method="POST")
    def comment(self, call: Call) -> Response:
        """Say something."""
        repo, account = self.repo(call, "propose"), self.known_caller(call)
        said = comment(_text(call.json(), "comment"), author=account.name)
        Discussions(repo.git).change(call.number, lambda discussion: (discussion.with_event(said), ()))
        return JSONResponse({"newMessage": _event(said)})

    @answers(f"{_ONE}/comment/{{event}}/edit", method="POST")
    def edit(self, call: Call) -> Response:
        """Replace the text of one's own comment; what it was before is kept."""
        text, now = _text(call.json(), "content"), timestamp(time.time())

        def edited(event: Event, account: Account) -> Event:
            """Keep the old text in the history."""
            if event.author != account.name:
                raise RefusedError(403, "A comment can be edited by its author only")
            latest = {"raw": text, "updatedAt": now, "author": {"name": account.name}}
            history = [*event.data["history"], event.data["latest"]]
            return replace(event, data={**event.data, "edited": True, "latest": latest, "history": history})

        return self._change_comment(call, edited)

    @answers(f"{_ONE}/comment/{{event}}/hide", method="POST")
    def hide(self, call: Call) -> Response:
        """Take the text of a comment away for good."""
        repo = self.repo(call, "propose")

        def hidden(event: Event, account: Account) -> Event:
            if event.author != account.name and not account.may_write(repo.repo_id):
                raise RefusedError(403, "A comment can be hidden by its author and by those who may write only")
            latest = {**event.data["latest"], "raw": ""}
            return replace(event, data={**event.data, "hidden": True, "latest": latest, "history": []})

        return self._change_comment(call, hidden)

    @answers(f"{_ONE}/title", method="POST")
    def rename(self, call: Call) -> Response:
        """Change the title."""
        repo, account, title = self.repo(call, "propose"), self.known_caller(call), _title(call.json())

        def renamed(discussion: Discussion) -> tuple[Discussion, Sequence[RefMove]]:
            _check_owner(repo, discussion, account)
            event = Event(type="title-change", author=account.name, data={"from": discussion.title, "to": title})
            return discussion.with_event(event, title=title), ()

        done = Discussions(repo.git).change(call.number, renamed)
        return JSONResponse({"newTitle": _event(done.events[-1])})

    @answers(f"{_ONE}/status", method="POST")
    def change_status(self, call: Call) -> Response:
        """Close a discussion or pull request, or open it (again)."""
        repo, account, body = self.repo(call, "propose"), self.known_caller(call), call.json()
        status = field(body, "status", str)
        if status not in ("open", "closed"):
            raise RefusedError(400, "status is open or closed")
        said = _remark(body, account)
        event = Event(type="status-change", author=account.name, data={"status": status})

        def changed(discussion: Discussion) -> tuple[Discussion, Sequence[RefMove]]:
            _check_owner(repo, discussion, account)
            if discussion.status == "merged":
                raise RefusedError(400, "This pull request is merged, which cannot be undone")
            return (discussion.with_event(said) if said else discussion).with_event(event, status=status), ()

        Discussions(repo.git).change(call.number, changed)
        return JSONResponse({"newStatus": _event(event)})

    @answers(f"{_ONE}/merge", method="POST")
    def merge(self, call: Call) -> Response:
        """Bring the changes of a pull request into main."""
        repo, account = self.repo(call, "write"), self.known_caller(call)
        done = Discussions(repo.git).merge(call.number, author=account.name, remark=_remark(call.json(), account))
        return JSONResponse({"success": True, "mergeCommitId": done.merge_commit})

    def _change_comment(self, call: Call, edit: Callable[[Event, Account], Event]) -> Response:
        repo, account, wanted = self.repo(call, "propose"), self.known_caller(call), call.params["event"]

        def changed(discussion: Discussion) -> tuple[Discussion, Sequence[RefMove]]:
            """Change the one comment; no reference moves."""
            events = {event.id: event for event in discussion.events}
            if wanted not in events or events[wanted].type != "comment":
                raise RefusedError(404, "Comment not found")
            events[wanted] = edit(events[wanted], account)
            return replace(discussion, events=tuple(events.values())), ()

        done = Discussions(repo.git).change(call.number, changed)
        return JSONResponse({"updatedComment": _event(next(event for event in done.events if event.id == wanted))})


def _title(body: dict[str, Any]) -> str:
    title = " ".join(text_field(body, "title").split())
    if not 0 < len(title) <= _MAX_TITLE:
        raise RefusedError(400, f"A title has 1 to {_MAX_TITLE} characters")
    return title


def _text(body: dict[str, Any], name: str) -> str:
    text = text_field(body, name).strip()
    if not 0 < len(text) <= _MAX_TEXT:
        raise RefusedError(400, f"{name} has 1 to {_MAX_TEXT} characters")
    return text


def _remark(body: dict[str, Any], account: Account) -> Event | None:
    """Return the comment that comes along with a change of status."""
    return comment(_text(body, "comment"), author=account.name) if body.get("comment") else None


def _check_owner(repo: Repo, discussion: Discussion, account: Account) -> None:
    if discussion.author != account.name and not account.may_write(repo.repo_id):
        raise RefusedError(403, "Only its author and those who may write to the repository can change that")


def _row(repo: Repo, discussion: Discussion) -> dict[str, Any]:
    """Describe a discussion as a list does."""
    comments = sum(event.type == "comment" for event in discussion.events)
    return {
        "num": discussion.number, "title": discussion.title, "author": {"name": discussion.author},
        "createdAt": discussion.created_at, "status": discussion.status, "isPullRequest": discussion.is_pull_request,
        "numComments": comments, "repo": {"name": repo.repo_id, "type": repo.kind.removesuffix("s")},
    }  # fmt: skip


def _event(event: Event) -> dict[str, Any]:
    """Describe an event as the Hub does; the HTML of a comment is made here, and harmless."""
    data = dict(event.data)
    if event.type == "comment":
        data["latest"] = {**data["latest"], "html": render(data["latest"]["raw"], address_of=lambda path: path)}
    row = {"id": event.id, "type": event.type, "author": {"name": event.author}, "createdAt": event.created_at}
    return {**row, "data": data}
