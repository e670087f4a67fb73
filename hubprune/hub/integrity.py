"""Compare what lies in the client's cache with what the Hub says of the commit: a cache can be damaged and never tells.

The client itself takes whatever it finds there.  All bytes of a base are hashed once; which files were right is
remembered in the work folder, by path, size, time and inode, so that later runs need not read them again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from hubprune.core.artifacts import PublishedCommit, RepoFile
from hubprune.core.console import Advance, Reporter
from hubprune.core.errors import CheckpointError, VerificationError
from hubprune.core.files import READ_BYTES, write_atomically
from hubprune.core.stages import work_folder

__all__ = ["check_arrived", "check_file", "check_files"]

MEMORY = "checked.json"
"""File of the work folder."""
SHOWN_DIGITS = 12


def check_files(
    files: Iterable[RepoFile],
    folder: Path,
    *,
    repo_id: str,
    commit: str,
    reporter: Reporter,
    remembered: bool = True,
) -> None:
    """Compare files of a snapshot with the hashes that the Hub gave for its commit.

    Args:
        files: as the Hub lists them; one without a hash is passed over.
        folder: of the snapshot.
        repo_id: the repo.
        commit: 40 hex digits.
        reporter: shows how far it is, where something has to be read.
        remembered: whether a file that was right once counts as right while its time is what it was; a bad disk changes
            no times.

    Raises:
        CheckpointError: a file is another one; the message names it, the hint how to get it again.
    """
    memory = _Memory(work_folder() / MEMORY)
    paths = {file: (folder / file.path).resolve() for file in files if _expected(file)}
    unread = {file: path for file, path in paths.items() if not (remembered and memory.has(path, _expected(file)))}
    if not unread:
        return
    total = sum(file.size for file in unread)
    with reporter.progress(f"check {repo_id}", total=total, unit="B") as advance:
        for file, path in unread.items():
            check_file(path, file, repo_id=repo_id, commit=commit, advance=advance)
            memory.add(path, _expected(file))


def check_file(
    path: Path, file: RepoFile, *, repo_id: str, commit: str, advance: Advance = lambda amount=1, /: None
) -> None:
    """Compare one file with the hash that the Hub gave for it.

    Args:
        path: where it is.
        file: as the Hub lists it.
        repo_id: the repo.
        commit: 40 hex digits.
        advance: told the number of bytes after each piece that was read.

    Raises:
        CheckpointError: it is another one.
    """
    expected = _expected(file)
    if not expected or (found := _digest(path, is_large=bool(file.sha256), advance=advance)) == expected:
        return
    kind, at = ("SHA-256" if file.sha256 else "git blob id"), f"{repo_id} --revision {commit}"
    raise CheckpointError(
        f"{file.path} of {repo_id} in the cache is not the file of commit {commit[:8]}: its {kind} is "
        f"{found[:SHOWN_DIGITS]}…, and the Hub's is {expected[:SHOWN_DIGITS]}….",
        hint=f"Look at all of its files with `hf cache verify {at}`, and fetch this one again with "
        f"`hf download {repo_id} {file.path} --revision {commit} --force-download`.",
    )


def check_arrived(published: PublishedCommit, folder: Path) -> None:
    """Compare what was loaded back from the Hub with what was sent there; files that were not loaded are passed over.

    Raises:
        VerificationError: a file is another one.
    """
    there = [file for file in published.files if (folder / file.path).is_file()]
    try:
        for file in there:
            check_file(folder / file.path, file, repo_id=published.repo_id, commit=published.commit)
    except CheckpointError as error:
        raise VerificationError(f"what was loaded back is not what was sent: {error.message}") from error


def _expected(file: RepoFile) -> str:
    """Return the SHA-256 of a large file, whose blob is a pointer, else the blob id."""
    return file.sha256 or file.git_oid or ""


def _digest(path: Path, *, is_large: bool, advance: Advance) -> str:
    size = path.stat().st_size
    digest = hashlib.sha256() if is_large else hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while piece := file.read(READ_BYTES):
            digest.update(piece)
            advance(len(piece))
    return digest.hexdigest()


class _Memory:
    """Which files were read before and had which hash; what cannot be read or written is found out anew."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known = _read(path)

    def has(self, path: Path, digest: str) -> bool:
        """Tell whether a file had a hash, and has not been touched since."""
        return self._known.get(str(path)) == [*_marks(path), digest]

    def add(self, path: Path, digest: str) -> None:
        """Remember the hash of a file, beside what another run has remembered in the meantime."""
        self._known = {**_read(self._path), str(path): [*_marks(path), digest]}
        known = {name: row for name, row in self._known.items() if Path(name).exists()}
        with suppress(OSError):  # a work folder that cannot be written costs the next run some seconds
            write_atomically(self._path, json.dumps(known, sort_keys=True) + "\n")


def _marks(path: Path) -> list[int]:
    seen = path.stat()
    return [seen.st_size, seen.st_mtime_ns, seen.st_ino]


def _read(path: Path) -> dict[str, Any]:
    try:
        known = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return dict(known) if isinstance(known, Mapping) else {}
