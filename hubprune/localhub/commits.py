"""One commit as a client orders it: lines of JSON, read and checked, then made into changes."""

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from hubprune.localhub import cards, names
from hubprune.localhub.git import Change
from hubprune.localhub.lfs import Pointer
from hubprune.localhub.refusal import RefusedError
from hubprune.localhub.web import field, json_object, text_field


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
