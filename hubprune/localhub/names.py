"""Check what a client sends before it names anything on disk.

Every repository name, revision, file path and hash passes through here; whatever comes out is safe to join to a
folder or to hand to git.
"""

import re

from hubprune.localhub.refusal import RefusedError

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
    forbidden = any(segment in ("", ".", "..") or _is_git_folder(segment) for segment in text.split("/"))
    return not (forbidden or not is_clean(text) or "\\" in text or len(text.encode()) > _MAX_PATH_BYTES)


def _is_git_folder(segment: str) -> bool:
    """Tell whether some file system takes a name for `.git`: NTFS, which has short names and streams, or HFS+."""
    plain = segment.translate(_IGNORED).split(":")[0].rstrip(". ").lower()
    return plain in (".git", "git~1")


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
