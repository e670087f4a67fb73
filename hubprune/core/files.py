"""Files and folders: written completely or not at all, listed with their hashes, and which of a base's are carried.

Whatever is half-done has a name that tells whose it is, so that the next run sweeps up after a process that was killed.
A result is published under its user's name, so of the files of a base besides its weights and config.json only those
travel, byte for byte, of which both name and kind are known: nothing that a program would run or unpickle.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from hubprune.core.errors import DiskSpaceError, RecipeError

if TYPE_CHECKING:
    from hubprune.core.artifacts import RepoFile

READ_BYTES = 2**22
PARTIAL = ".partial-"
LONGEST_LABEL = 60
"""Bytes; a file name has 255 at most, of which a host takes up to 64."""


@contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `target` that becomes `target` when the block ends well.

    Whatever ends the block early, the temporary folder goes; one that a killed process left is swept up next time.

    Raises:
        RecipeError: `target` exists and is no empty folder, or its parent cannot be written.
        DiskSpaceError: the disk filled up.
    """
    check_new_folder(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        staged = _partial_folder(target)
    except OSError as error:
        raise RecipeError(f"Cannot write to {target.parent}: {error.strerror}.") from error
    try:
        yield staged
        mask = os.umask(0)
        os.umask(mask)
        staged.chmod(0o777 & ~mask)  # mkdtemp makes it private; a published folder is an ordinary one
        staged.replace(target)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskSpaceError(f"The disk is full: {target} was not written.") from error
        raise
    finally:
        shutil.rmtree(staged, ignore_errors=True)


@contextmanager
def scratch_folder(parent: Path | None = None, *, name: str) -> Iterator[Path]:
    """Yield a temporary folder that goes when the block ends; one that a killed process left is swept up next time.

    Args:
        parent: where to make it; None for the folder of temporary files.
        name: what it is for, in a word.
    """
    folder = _partial_folder((parent or Path(tempfile.gettempdir())) / name)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file under a temporary name and rename it, so that readers see the old or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f"{scratch_prefix(path.name)}tmp")
    try:
        staged.write_bytes(content.encode() if isinstance(content, str) else content)
        staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)


def move_folder(source: Path, target: Path) -> None:
    """Move a folder to where nothing is yet, across file systems too; readers see all of it or nothing.

    Raises:
        RecipeError: `target` exists and is no empty folder.
        DiskSpaceError: the disk filled up.
    """
    check_new_folder(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        source.replace(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        with staged_folder(target) as staged:
            shutil.copytree(source, staged, dirs_exist_ok=True)
        shutil.rmtree(source)


def scratch_prefix(name: str) -> str:
    """Return how the name of a temporary file or folder has to begin for `sweep` to know whose it is."""
    return f".{_label(name)}{PARTIAL}{_host()}-{os.getpid()}-"


def sweep(folder: Path, *, name: str | None = None) -> None:
    """Remove what processes of this machine that are gone left half-done in a folder.

    Args:
        folder: where to look, and nowhere below it.
        name: what it was for; None for anything.
    """
    # On a shared file system other hosts have processes of their own, of which this one knows nothing.
    label = "*" if name is None else glob.escape(_label(name))
    for left in folder.glob(f".{label}{PARTIAL}{glob.escape(_host())}-*"):
        pid = left.name.rpartition(f"{PARTIAL}{_host()}-")[2].split("-")[0]
        if not pid.isdigit() or _alive(int(pid)):
            continue
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
        else:
            with suppress(OSError):  # that of another user, who will sweep it up
                left.unlink()


def _partial_folder(target: Path) -> Path:
    sweep(target.parent, name=target.name)
    return Path(tempfile.mkdtemp(prefix=scratch_prefix(target.name), dir=target.parent))


def _label(name: str) -> str:
    """Return a name, or what stands for a long one: with host and process beside it, it has to be legal still."""
    data = os.fsencode(name)
    return name if len(data) <= LONGEST_LABEL else hashlib.sha256(data).hexdigest()[:16]


def _host() -> str:
    return re.sub(r"\W", "_", socket.gethostname())


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is another user's
        pass
    return True


# ---- what a user names -----------------------------------------------------------------------------------------------


def existing_folder(name: str) -> Path | None:
    """Return the folder that a user means by a name, with `~` or without; None where there is none.

    pathlib raises for what no file system can hold: thousands of characters, NUL, the home of an unknown user.
    """
    path = os.path.expanduser(name)  # noqa: PTH111
    return Path(path) if os.path.isdir(path) else None  # noqa: PTH112


def file_exists(path: str | Path) -> bool:
    """Tell whether there is a file of a name that a user wrote, whatever stands in it."""
    return os.path.isfile(path)  # noqa: PTH113


def short_name(name: str) -> str:
    """Shorten a name to what leaves room for a key behind it; two long names never become the same."""
    data = os.fsencode(name)
    if len(data) <= LONGEST_LABEL:
        return name
    start = os.fsdecode(data[: LONGEST_LABEL - 9]).encode(errors="ignore").decode()
    return f"{start}-{hashlib.sha256(data).hexdigest()[:8]}"


def make_writable(folder: Path) -> None:
    """Make a folder where it is missing.

    Raises:
        RecipeError: that is impossible, or nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise RecipeError(f"Cannot write to {folder}: {error.strerror}.") from error


def check_new_folder(target: Path) -> None:
    """Raise RecipeError unless `target` is free, absent or an empty folder, in a place that can be written."""
    there = next(p for p in target.absolute().parents if p.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise RecipeError(f"Cannot write to {there}.", hint="Choose another --out.")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise RecipeError(f"{target} exists already.", hint="Choose another --out, or remove it.")


# ---- what a repo consists of -----------------------------------------------------------------------------------------

LICENSE_PATTERNS = ("license*", "notice*", "use_policy*")
"""Patterns of lower-case names at the top of a repo."""
CARRIED_FILES = (
    *("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json"),
    *("*.tiktoken", "spiece.model", "sentencepiece.bpe.model", "tekken.json"),
    *("generation_config.json", "chat_template*", "chat_templates/*", "additional_chat_templates/*"),
)
"""Patterns of tokenizer, generation and chat template files, at the top unless a folder is named."""
CARRIED_SUFFIXES = (".bpe", ".jinja", ".json", ".model", ".tiktoken", ".txt")
LICENSE_SUFFIXES = ("", ".html", ".md", ".pdf", ".rst", ".rtf", ".txt")
VERSION_SUFFIX = re.compile(r"\.v?\d+")
"""The end of `LICENSE-2.0` and of `tokenizer.model.v3`."""


def list_files(folder: Path, *, advance: Callable[[int], None] = lambda _: None) -> tuple[RepoFile, ...]:
    """List all files below a folder, sorted by path, each with its size, its SHA-256 and the id git would give it.

    Args:
        folder: where to look.
        advance: told the number of bytes after each piece that was read.
    """
    named = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return tuple(_hashed(named[name], name=name, advance=advance) for name in sorted(named))


def _hashed(path: Path, *, name: str, advance: Callable[[int], None]) -> RepoFile:
    from hubprune.core.artifacts import RepoFile  # pydantic costs time that `hubprune --help` would spend too

    size = path.stat().st_size
    sha256, git_oid = hashlib.sha256(), hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while piece := file.read(READ_BYTES):
            sha256.update(piece)
            git_oid.update(piece)
            advance(len(piece))
    return RepoFile(path=name, size=size, sha256=sha256.hexdigest(), git_oid=git_oid.hexdigest())


def is_carried(path: str) -> bool:
    """Tell whether a file travels into the result; `path` is below the repo, with forward slashes."""
    return is_license(path) or (_matches(path, CARRIED_FILES) and _suffix(path) in CARRIED_SUFFIXES)


def is_license(path: str) -> bool:
    """Tell whether a file holds terms of use, to go by its name."""
    return _matches(path, LICENSE_PATTERNS) and _suffix(path) in LICENSE_SUFFIXES


def _matches(path: str, patterns: tuple[str, ...]) -> bool:
    """Compare without regard to case: a name that only some systems tell from another one is no other name."""
    name = path.lower()
    return any(fnmatchcase(name, pattern) and name.count("/") == pattern.count("/") for pattern in patterns)


def _suffix(path: str) -> str:
    """Return the suffix that says what kind of file it is, in lower case; that of a version says nothing."""
    name = PurePosixPath(path.lower())
    return name.with_suffix("").suffix if VERSION_SUFFIX.fullmatch(name.suffix) else name.suffix
