"""Publishing: what a client calls between having files and having a commit.

A commit is ordered in lines of JSON, which are read and checked before anything of it is stored.
"""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from starlette.responses import JSONResponse, Response

from hubprune.localhub import cards, names
from hubprune.localhub.discussions import Discussions
from hubprune.localhub.git import Change
from hubprune.localhub.hub import Repo
from hubprune.localhub.large_files import Pointer, is_large
from hubprune.localhub.names import RefusedError, conflict, revision_not_found
from hubprune.localhub.web import REPO, Call, HubRoutes, answers, field, json_object, text_field

_MAX_ATTEMPTS = 100


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
            wanted.append((names.file_path(field(file, "path", str)), field(file, "size", int), sample))
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
        done, failed = [], []
        for file in field(call.json(), "files", list):
            sha256 = names.digest(field(_checked(file), "sha256", str))
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
        changes = self._changes(order)
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

    def _changes(self, order: CommitOrder) -> list[Change]:
        """Return the steps with pointers in place of the large files, which have to be in the store."""
        changes = []
        for step in order.steps:
            if isinstance(step, LargeFile):
                size = self.hub.stored_size(step.sha256)
                if size is None:
                    raise RefusedError(422, f"LFS pointer {step.path} points to a file that does not exist")
                changes.append(Change(step.path, Pointer(step.sha256, size).encode()))
            else:
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
    if parent is not None and not names.is_commit(parent):
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
    path = names.file_path(field(value, "path", str).rstrip("/" if key == "deletedFolder" else ""))
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
            return LargeFile(path, names.digest(field(value, "oid", str)))
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
