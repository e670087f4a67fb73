"""Files and folders: written completely or not at all, listed with their hashes, and kept for the next run.

Whatever is half-done has a name that tells whose it is, so that the next run sweeps up after a process that was killed.

A stage's result is kept as JSON under a key of everything it depends on.  Whatever changes gives another key, so
nothing has to be thrown away by hand, and two runs that share a stage share its result.  A file that is not as it was
written, by its SHA-256, is computed again: the numbers in it are those that get published.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import to_jsonable_python

from hubprune.core import __version__
from hubprune.core.artifacts import RepoFile
from hubprune.core.console import end_if_interrupted
from hubprune.core.errors import DiskSpaceError, RecipeError

READ_BYTES = 2**22
PARTIAL = ".partial-"
LONGEST_LABEL = 60
"""Bytes; a file name has 255 at most, of which a host takes up to 64."""
Value = TypeVar("Value", bound=BaseModel)


@contextmanager
def staged_folder(target: Path, *, becomes: Path | None = None) -> Iterator[Path]:
    """Yield a temporary folder beside `target` that becomes `target`, or `becomes` there, when the block ends well.

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
        staged.replace(becomes or target)
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
    return f".{label(name)}{PARTIAL}{host()}-{os.getpid()}-"


def sweep(folder: Path, *, name: str | None = None) -> None:
    """Remove what processes of this machine that are gone left half-done in a folder.

    Args:
        folder: looked through, and nothing below it.
        name: what it was for; None for anything.
    """
    # On a shared file system other hosts have processes of their own, of which this one knows nothing.
    named = "*" if name is None else glob.escape(label(name))
    for left in folder.glob(f".{named}{PARTIAL}{glob.escape(host())}-*"):
        pid = left.name.rpartition(f"{PARTIAL}{host()}-")[2].split("-")[0]
        if not pid.isdigit() or not is_gone(int(pid)):
            continue
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
        else:
            with suppress(OSError):  # that of another user, who will sweep it up
                left.unlink()


def is_gone(pid: int) -> bool:
    """Tell whether no process of this machine has a number."""
    try:
        os.kill(pid, 0)
    except OSError as error:  # another one, if it is another user's process, and alive
        return isinstance(error, ProcessLookupError)
    return False


def _partial_folder(target: Path) -> Path:
    sweep(target.parent, name=target.name)
    return Path(tempfile.mkdtemp(prefix=scratch_prefix(target.name), dir=target.parent))


def label(name: str) -> str:
    """Return a name, or what stands for a long one: with host and process beside it, it has to be legal still."""
    return name if len(data := os.fsencode(name)) <= LONGEST_LABEL else hashlib.sha256(data).hexdigest()[:16]


def host() -> str:
    """Return the name of this machine as names of temporary files have it."""
    return re.sub(r"\W", "_", socket.gethostname())


class FileHash:
    """The SHA-256 of a file and the id that git would give it, from its pieces as somebody reads them."""

    def __init__(self, name: str, size: int) -> None:
        self._name, self._size, self._sha256 = name, size, hashlib.sha256()
        self._git_oid = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)

    def update(self, piece: bytes | memoryview) -> None:
        """Take the next piece."""
        self._sha256.update(piece)
        self._git_oid.update(piece)

    def file(self) -> RepoFile:
        """Return what it is, after the last piece."""
        sha256, git_oid = self._sha256.hexdigest(), self._git_oid.hexdigest()
        return RepoFile(path=self._name, size=self._size, sha256=sha256, git_oid=git_oid)


def list_files(
    folder: Path, *, advance: Callable[[int], None] = lambda _: None, known: Collection[RepoFile] = ()
) -> tuple[RepoFile, ...]:
    """List all files below a folder, sorted by path, each with its size, its SHA-256 and the id git would give it.

    `advance` is told the number of bytes after each piece that was read; those that are known are not read.
    """
    found = {file.path: file for file in known}
    for path in sorted(folder.rglob("*")):
        if (name := path.relative_to(folder).as_posix()) in found or not path.is_file():
            continue
        hashed = FileHash(name, path.stat().st_size)
        with path.open("rb") as file:
            while piece := file.read(READ_BYTES):
                hashed.update(piece)
                advance(len(piece))
        found[name] = hashed.file()
    return tuple(file for _, file in sorted(found.items()))


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
    """Raise RecipeError unless `target` is free, absent or an empty folder, in a place that can be written.

    Something whole is to take its place, which the system refuses of a file system's root and of where a process is.
    """
    there = next(p for p in target.absolute().parents if p.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise RecipeError(f"Cannot write to {there}.", hint="Choose another --out.")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise RecipeError(f"{target} exists already.", hint="Choose another --out, or remove it.")
    if not target.name or (target.exists() and (os.path.ismount(target) or target.samefile("."))):
        raise RecipeError(f"{target} cannot be replaced by a new folder.", hint="Choose a folder in it as --out.")


# ---- what is kept for the next run -----------------------------------------------------------------------------------


def work_folder() -> Path:
    """Return the folder that finished stages are kept in: `HUBPRUNE_HOME`, else the user's cache folder.

    Raises:
        RecipeError: neither exists.
    """
    import platformdirs

    if home := os.environ.get("HUBPRUNE_HOME"):
        return Path(home)
    try:
        return Path(platformdirs.user_cache_dir("hubprune"))
    except RuntimeError as error:  # where a container runs as a user that it does not know
        hint = "Set HOME to a folder that can be written; the client of the Hub needs it as well."
        raise RecipeError("This user has no home folder to keep results in.", hint=hint) from error


def key_of(*inputs: Any) -> str:
    """Return 16 hex digits that stand for some inputs and for this version of hubprune."""
    text = json.dumps([__version__, *inputs], sort_keys=True, default=to_jsonable_python)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class _Offer:
    """The result of a run elsewhere."""

    value: BaseModel
    seconds: float
    on_take: Callable[[str], object]


class StageStore:
    """Results of stages on disk, and the seconds each stage took.

    Args:
        folder: where they are kept.
        on_reuse: told the stage whose result is taken from an earlier run.
        warn: told of a kept result that is not as it was written, in a sentence.

    Raises:
        RecipeError: nothing can be written there.
    """

    def __init__(
        self,
        folder: Path,
        *,
        on_reuse: Callable[[str], None] = lambda _: None,
        warn: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.folder = folder
        make_writable(folder / "stages")
        for place in (folder, *(path for path in folder.iterdir() if path.is_dir()), Path(tempfile.gettempdir())):
            sweep(place)
        self.seconds: dict[str, float] = {}
        """Stage -> how long it took, when it was run."""
        self.keys: dict[str, str] = {}
        """Stage -> its key."""
        self.warn = warn
        self._on_reuse = on_reuse
        self._offers: dict[tuple[str, str], _Offer] = {}

    def run(
        self,
        stage: str,
        key: str,
        kind: type[Value],
        compute: Callable[[], Value],
        *,
        valid: Callable[[Value], bool] = lambda _: True,
    ) -> Value:
        """Return a stage's result: the one kept under this key, or a new one, which is then kept.

        Args:
            key: from `key_of` everything that the result depends on.
            valid: tells whether a kept result can still be used, where it speaks of files that may be gone.

        Raises:
            RecipeError: the result could not be kept, as a folder stands in its place.
        """
        end_if_interrupted()
        path = self._path(stage, key)
        if path.is_dir():
            raise RecipeError(f"{path} is a folder, and a file belongs there.", hint="Remove it.")
        self.keys[stage] = key
        content, kept = _content(path), None
        with suppress(ValidationError, ValueError, KeyError, TypeError):  # of another shape: it is computed again
            kept = (kind.model_validate(content["value"]), float(content["seconds"])) if content else None
        if kept is None and path.exists():
            self.warn(f"{stage}: what an earlier run kept in {path} is not as it was written, and is computed again")
        if kept and valid(kept[0]):
            value, self.seconds[stage] = kept
            self._on_reuse(stage)
            return value
        if (offer := self._offers.get((stage, key))) and isinstance(offer.value, kind) and valid(offer.value):
            self.take(stage, key, seconds=offer.seconds)
            offer.on_take(stage)
            return offer.value
        start = time.monotonic()
        value = compute()
        end_if_interrupted()  # before a result is kept that may be half of one
        self.seconds[stage] = round(time.monotonic() - start, 2)
        content = json.loads(json.dumps({"seconds": self.seconds[stage], "value": value.model_dump(mode="json")}))
        write_atomically(path, json.dumps({**content, "sha256": _digest(content)}, sort_keys=True) + "\n")
        return value

    def has(self, stage: str, key: str) -> bool:
        """Tell whether a result is kept under this key, as it was written."""
        return _content(self._path(stage, key)) is not None

    def _path(self, stage: str, key: str) -> Path:
        return self.folder / "stages" / f"{stage}-{key}.json"

    def offer(
        self, stage: str, key: str, value: BaseModel, *, seconds: float, on_take: Callable[[str], object]
    ) -> None:
        """Hold the result of a run elsewhere ready, in case that it is asked for and none is kept here.

        The key and the seconds are those of that run; `on_take` is told the stage when the result is taken.
        """
        self._offers[stage, key] = _Offer(value, seconds, on_take)

    def offers(self, stage: str, key: str) -> bool:
        """Tell whether a result that is not kept here is ready under this key."""
        return (stage, key) in self._offers and not self.has(stage, key)

    def take(self, stage: str, key: str, *, seconds: float) -> None:
        """Note that the result of a stage comes from a run elsewhere, which took so long."""
        self.keys[stage], self.seconds[stage] = key, seconds


def _content(path: Path) -> dict[str, Any] | None:
    """Read a kept result; None where there is none, or where it is not what was written."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        digest = kept.pop("sha256", None) if isinstance(kept, dict) else None
        return kept if digest is not None and digest == _digest(kept) else None
    except (OSError, ValueError, RecursionError):
        return None


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
