"""What everything in the local Hub rests on: refusals, names that are safe, and files that are whole.

A handler turns a request down by raising `RefusedError`. Every repository name, revision, file path and hash that a
client sends passes through here before it names anything on disk; whatever comes out is safe to join to a folder or to
hand to git. Files are written so that a reader sees the old content or the new, never half of one.
"""

import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO


class RefusedError(Exception):
    """Answer the request with an error that the Hub's clients understand.

    `code` becomes the X-Error-Code header, from which `huggingface_hub` picks its exception class: RepoNotFound,
    RevisionNotFound, EntryNotFound or GatedRepo.
    """

    def __init__(
        self, status: int, message: str, *, code: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.headers = dict(headers or {})


def conflict() -> RefusedError:
    """Refuse a commit because the branch has moved."""
    return RefusedError(412, "A commit has happened since. Please refresh and try again.")


def revision_not_found(revision: str) -> RefusedError:
    """Refuse a revision that no branch, tag, pull request or commit answers to."""
    return RefusedError(404, f"Invalid rev id: {revision}", code="RevisionNotFound")


def entry_not_found(path: str, sha: str) -> RefusedError:
    """Refuse a path that the commit does not hold; clients note the commit to remember the absence."""
    message = f'{path} does not exist on "{sha}"'
    return RefusedError(404, message, code="EntryNotFound", headers={"X-Repo-Commit": sha})


KINDS = ("models", "datasets")

_REPO_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?")
_REF_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/+@=-]{0,199}")
_HASH = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{5,40}")
_MAX_PATH_BYTES = 1024
_IGNORED = dict.fromkeys([*range(0x200C, 0x2010), *range(0x202A, 0x202F), *range(0x206A, 0x2070), 0xFEFF])
"""Characters that HFS+ leaves out of names."""


def repo_id(namespace: str, name: str) -> str:
    """Return `namespace/name` if both can be what they are."""
    for text in (namespace, name):
        if not _REPO_NAME.fullmatch(text) or ".." in text or "--" in text or text.endswith(".git"):
            raise RefusedError(400, f"Invalid repository name: {text}")
    return f"{namespace}/{name}"


def kind_of(repo_type: str) -> str:
    """Return the plural that addresses use for a repository type."""
    kind = f"{repo_type}s"
    if kind not in KINDS:
        raise RefusedError(400, f"This Hub keeps models and datasets, not {kind}")
    return kind


def file_path(text: str) -> str:
    """Return `text` if it can be the path of a file in a repository: relative, and inside it."""
    if not is_file_path(text):
        raise RefusedError(400, f"Invalid path in repository: {text}")
    return text


def is_file_path(text: str) -> bool:
    """Tell whether `text` can be the path of a file in a repository."""
    if not is_clean(text) or "\\" in text or len(text.encode()) > _MAX_PATH_BYTES:
        return False
    for segment in text.split("/"):
        # Some file system may take it for `.git`: NTFS, which has short names and streams, or HFS+.
        plain = segment.translate(_IGNORED).split(":")[0].rstrip(". ").lower()
        if segment in ("", ".", "..") or plain in (".git", "git~1"):
            return False
    return True


def is_clean(text: str) -> bool:
    """Tell whether `text` is free of control characters and of halves of surrogate pairs."""
    return not any(ord(char) < 0x20 or 0x7F <= ord(char) < 0xA0 or 0xD800 <= ord(char) < 0xE000 for char in text)


def ref_name(text: str) -> str:
    """Return `text` if git takes it as the name of a new branch or tag."""
    if not is_ref_name(text):
        raise RefusedError(400, f"Invalid reference name: {text}")
    return text


def is_ref_name(text: str) -> bool:
    """Tell whether `text` is the name of a reference and nothing that git would work out, such as `main~1`."""
    bad = any(part in text for part in ("..", "//", "/.", "./", ".lock/"))
    return not bad and _REF_NAME.fullmatch(text) is not None and not text.endswith((".", "/", ".lock"))


def is_commit(text: str) -> bool:
    """Tell whether `text` can be a commit's hash, in full or shortened to five digits or more."""
    return _COMMIT.fullmatch(text) is not None


def digest(text: str) -> str:
    """Return `text` if it is 64 lower-case hexadecimal digits: a SHA-256 or a Xet hash."""
    if not _HASH.fullmatch(text):
        raise RefusedError(400, "Invalid hash: 64 hexadecimal digits were expected")
    return text


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a new file for writing that takes the place of `path` when the block ends without an error.

    The file can be read by its owner only (mode 0600).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".incoming-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink()
        raise


def write_bytes(path: Path, content: bytes) -> None:
    """Give `path` this content at once."""
    with replacing(path) as file:
        file.write(content)


def timestamp(seconds: float) -> str:
    """Write a time, in seconds since the epoch, as the Hub does: 2026-01-31T12:00:00.000Z."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
