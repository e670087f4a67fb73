"""Publishing: what a client calls between having files and having a commit.

One commit as a client orders it: lines of JSON, read and checked, then made into changes.
"""

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from hubprune.localhub import cards, names
from hubprune.localhub.discussions import Discussions
from hubprune.localhub.git import Change
from hubprune.localhub.hub import Repo
from hubprune.localhub.lfs import Pointer, is_large
from hubprune.localhub.names import RefusedError, conflict, revision_not_found
from hubprune.localhub.web import REPO, Call, HubRoutes, field, json_object, route, text_field

# ---- commits -------------------------------------------------------------------------------------------------------


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
        """Return the message of the git commit."""
        return f"{self.summary}\n\n{self.description}".rstrip() + "\n"

    def changes(self, size_of: Callable[[str], int | None]) -> list[Change]:
        """Return the steps with pointers in place of the large files, which have to be in the store."""
        return [step if isinstance(step, Change) else _point(step, size_of) for step in self.steps]


def _point(file: LargeFile, size_of: Callable[[str], int | None]) -> Change:
    size = size_of(file.sha256)
    if size is None:
        raise RefusedError(422, f"LFS pointer {file.path} points to a file that does not exist")
    return Change(file.path, Pointer(file.sha256, size).encode())


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
    if parent is not None and not names.is_commit(parent):
        raise RefusedError(400, f"Invalid parentCommit: {parent}")
    summary, description = text_field(header, "summary"), text_field(header, "description", "")
    if not summary.strip() or "\0" in summary + description:
        raise RefusedError(400, "The commit's message cannot be used")
    _check_places(steps)
    return CommitOrder(summary, description, parent, tuple(steps))


def _check_places(steps: Sequence[Change | LargeFile]) -> None:
    """Refuse a commit that puts a file where it also puts a folder."""
    files = {step.path for step in steps if isinstance(step, LargeFile) or step.content is not None}
    for path in sorted(files):
        if folder := next((str(above) for above in PurePosixPath(path).parents if str(above) in files), None):
            raise RefusedError(400, f"{folder} cannot be a file and the folder of {path}")


def _step(key: str, value: Mapping[str, Any]) -> Change | LargeFile:
    path = names.file_path(field(value, "path", str).rstrip("/" if key == "deletedFolder" else ""))
    match key:
        case "file":
            return Change(path, _content(path, value))
        case "lfsFile":
            return LargeFile(path, names.digest(field(value, "oid", str)))
        case "deletedFile" | "deletedFolder":
            return Change(path, None)
    raise RefusedError(400, f"Unknown operation: {key}")


def _content(path: str, value: Mapping[str, Any]) -> bytes:
    try:
        content = base64.b64decode(field(value, "content", str), validate=True)
    except (binascii.Error, ValueError) as error:
        raise RefusedError(400, f"The content of {path} is not valid base64") from error
    if path == "README.md":
        _check_card(content)
    return content


def _check_card(content: bytes) -> None:
    try:
        cards.read_metadata(content.decode(errors="replace"))
    except cards.MetadataError as error:
        raise RefusedError(400, f"Invalid metadata in README.md: {error}") from error


# ---- routes commits ------------------------------------------------------------------------------------------------


_MAX_ATTEMPTS = 100


class CommitRoutes(HubRoutes):
    """Handlers that write to a repository."""

    def routes(self) -> list[Route]:
        """Return the routes of this part."""
        return [
            route("/api/validate-yaml", self.validate_yaml, method="POST"),
            route(f"{REPO}/preupload/{{revision}}", self.preupload, method="POST"),
            route(f"{REPO}/commit/{{revision}}", self.commit, method="POST"),
            route(f"{REPO}/lfs-files/duplicate", self.duplicate, method="POST"),
        ]

    def validate_yaml(self, call: Call) -> Response:
        """Check the metadata of a card."""
        try:
            metadata = cards.read_metadata(field(call.json(), "content", str))
        except cards.MetadataError as error:
            message = str(error).encode(errors="replace").decode()
            return JSONResponse({"errors": [{"message": message}], "warnings": []}, 400)
        warnings = [] if metadata else [{"message": "empty or missing yaml metadata in repo card"}]
        return JSONResponse({"errors": [], "warnings": warnings})

    def preupload(self, call: Call) -> Response:
        """Say for each file whether it goes into git or into the large file store, and what is there now."""
        repo = self.repo_to_change(call)
        sha = repo.git.resolve(call.params["revision"])
        wanted = [_described(file) for file in field(call.json(), "files", list)]
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

    def commit(self, call: Call) -> Response:
        """Make one commit on a branch, or a pull request of one commit."""
        proposes = call.flag("create_pr")
        repo = self.repo_to_change(call)
        author = self.known_caller(call)
        order = parse_order(call.body)
        web = call.origin + repo.web_path()
        if proposes:
            sha, number = self._open_pull_request(repo, call.params["revision"], order, author.name)
            extra = {"pullRequestUrl": f"{web}/discussions/{number}"}
        else:
            sha, extra = self._advance(repo, call.params["revision"], order, author.name), {}
        answer = {"success": True, "commitOid": sha, "commitUrl": f"{web}/commit/{sha}", "hookOutput": ""}
        return JSONResponse({**answer, **extra})

    def duplicate(self, call: Call) -> Response:
        """Copy large files into another repository, which takes nothing but leave: the store is one for all."""
        self.repo(call, "read")
        done, failed = [], []
        for file in field(call.json(), "files", list):
            if not isinstance(file, dict):
                raise RefusedError(400, "A file is not a JSON object")
            sha256 = names.digest(field(file, "sha256", str))
            if self.hub.stored_size(sha256) is not None:
                done.append(sha256)
            else:
                failed.append({"sha256": sha256, "error": "not found"})
        return JSONResponse({"success": done, "failed": failed})

    def _advance(self, repo: Repo, revision: str, order: CommitOrder, author: str) -> str:
        """Put a commit on a branch.

        With a parent in the order, the branch has to be there still. Without one, a commit that came in between is
        built upon, so that of two writers both succeed.
        """
        ref = revision if revision.startswith(("refs/heads/", "refs/pr/")) else f"refs/heads/{revision}"
        changes = order.changes(self.hub.stored_size)
        for _ in range(_MAX_ATTEMPTS):
            head = repo.git.refs().get(ref)
            if head is None:
                raise revision_not_found(revision)
            if order.parent is not None and not head.startswith(order.parent):
                raise conflict()
            sha = repo.git.write_commit(head, changes, message=order.message, author=author)
            if repo.git.move_ref(ref, sha, old=head):
                return sha
        raise conflict()

    def _open_pull_request(self, repo: Repo, revision: str, order: CommitOrder, author: str) -> tuple[str, int]:
        """Store a commit, and open a pull request with it."""
        base = repo.git.resolve(order.parent or revision)
        changes = order.changes(self.hub.stored_size)
        sha = repo.git.write_commit(base, changes, message=order.message, author=author)
        title, text = order.summary.strip(), order.description.strip()
        made = Discussions(repo.git).open(title, text, author=author, head=sha)
        return sha, made.number


def _described(file: Any) -> tuple[str, int, bytes]:
    """Read what `preupload` is told of one file: path, size, first bytes."""
    if not isinstance(file, dict):
        raise RefusedError(400, "A file is not a JSON object")
    try:
        sample = base64.b64decode(field(file, "sample", str, ""), validate=True)
    except (binascii.Error, ValueError) as error:
        raise RefusedError(400, "A sample is not valid base64") from error
    return names.file_path(field(file, "path", str)), field(file, "size", int), sample
