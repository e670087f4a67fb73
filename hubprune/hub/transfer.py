"""Move bytes to and from the Hub, show how far it is, and check what lies in the client's cache.

A cache can be damaged and never tells, and the client takes whatever it finds there.  So it is compared with what the
Hub says of the commit.  All bytes of a base are hashed once; which files were right is remembered in the work folder,
by path, size, time and inode, so that later runs need not read them again.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from hubprune.core.artifacts import PublishedCommit, RepoFile
from hubprune.core.console import Advance, Reporter
from hubprune.core.errors import CheckpointError, VerificationError
from hubprune.core.files import READ_BYTES, work_folder, write_atomically
from hubprune.hub.session import HubSession

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd


class ByteCounter:
    """Passes bytes on to a progress bar, from any thread, and never more than there are."""

    def __init__(self, advance: Advance, *, total: int) -> None:
        self._advance, self._total, self._seen, self._lock = advance, total, 0, threading.Lock()

    def add(self, amount: int) -> None:
        """Count bytes that were moved; a retry may take some back."""
        with self._lock:
            self._move_to(self._seen + amount)

    def reach(self, seen: int) -> None:
        """Set how many bytes were moved in all."""
        with self._lock:
            self._move_to(max(seen, self._seen))

    def finish(self) -> None:
        """Count what was never reported: bytes that were there already, and small files."""
        self.reach(self._total)

    def _move_to(self, seen: int) -> None:
        seen = max(0, min(seen, self._total))
        if seen != self._seen:
            self._advance(seen - self._seen)
        self._seen = seen


# ---- down ----------------------------------------------------------------------------------------------------------


def download(files: Iterable[RepoFile], *, repo_id: str, commit: str, session: HubSession, reporter: Reporter) -> Path:
    """Fetch files of a model repo at a commit into the cache and return the snapshot's folder.

    All of them are compared with the hashes that the Hub gave for them, whether they were fetched or there already.

    Raises:
        CheckpointError: a file in the cache is not the one of the commit.
    """
    from huggingface_hub.utils.tqdm import disable_progress_bars

    files = tuple(files)
    folder = Path()
    with (
        disable_progress_bars(),
        reporter.progress(f"download {repo_id}", total=sum(f.size for f in files), unit="B") as advance,
    ):
        for file in files:
            counter = ByteCounter(advance, total=file.size)
            path = _fetched(file, repo_id=repo_id, commit=commit, session=session, bar=_bar_class(counter))
            counter.finish()
            folder = path.parents[file.path.count("/")]
    check_files(files, folder, repo_id=repo_id, commit=commit, reporter=reporter)
    return folder


def _fetched(file: RepoFile, *, repo_id: str, commit: str, session: HubSession, bar: Any) -> Path:
    options, doing = {"revision": commit, "tqdm_class": bar}, f"download {file.path} of {repo_id}"
    return Path(session.ask(lambda api: api.hf_hub_download(repo_id, file.path, **options), doing=doing))


def _bar_class(counter: ByteCounter) -> type:
    """Make a class that the client takes for tqdm; it has the methods that both of its download paths call."""

    class Bar:
        def __init__(self, *args: Any, total: int | None = None, initial: int = 0, **options: Any) -> None:
            self.total, self.n = total, 0
            self.update(initial)

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *error: object) -> None:
            """Nothing to close."""

        def update(self, n: float | None = 1) -> None:
            counter.add(int(n or 0))

        def update_transfer(self, n: float | None = 1) -> None:
            """Bytes from the network; those on disk are counted instead, since only they have a total."""

        def _ignore(self, *args: Any, **options: Any) -> None:
            """Labels are the reporter's business."""

        set_postfix_str = set_transfer_postfix_str = set_description = refresh = close = _ignore

    return Bar


# ---- up ----------------------------------------------------------------------------------------------------------


@contextmanager
def observed_uploads(counter: ByteCounter) -> Iterator[None]:
    """Count the bytes that the client uploads through Xet while the block runs.

    The client offers no public way to look on: it makes a reporter of its own, and only when its bars are on.  Both
    names are replaced for the time being.  Where a later client has other names, the bar jumps at the end instead.
    """
    from huggingface_hub import utils

    try:
        from huggingface_hub.utils import _xet_progress_reporting as reporting
    except ImportError:
        yield
        return

    class UploadReporter:
        def __init__(self, *args: Any, **options: Any) -> None:
            """Takes what the client's own reporter takes."""

        def update_progress(self, group_report: Any, *item_reports: Any) -> None:
            counter.reach(int(group_report.total_bytes_completed))

        def close(self) -> None:
            """Nothing to close."""

    with (
        _replaced(utils, name="are_progress_bars_disabled", value=lambda name=None: False),
        _replaced(reporting, name="XetUploadProgressReporter", value=UploadReporter),
    ):
        yield


@contextmanager
def _replaced(module: Any, *, name: str, value: Any) -> Iterator[None]:
    if not hasattr(module, name):
        yield
        return
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def addition(path: str, *, source: Path, counter: ByteCounter) -> CommitOperationAdd:
    """Make the operation that uploads a file, counting its bytes where it goes up as plain LFS."""
    from huggingface_hub import CommitOperationAdd

    class ObservedAdd(CommitOperationAdd):
        @contextmanager
        def as_file(self, with_tqdm: bool = False) -> Iterator[BinaryIO]:  # noqa: FBT001, FBT002
            """Open it, and count what is read where the client would show a bar."""
            with super().as_file() as file:
                read = file.read

                def counted_read(size: int = -1) -> bytes:
                    data = read(size)
                    counter.add(len(data))
                    return data

                if with_tqdm:
                    file.read = counted_read  # type: ignore[method-assign]
                yield file

    return ObservedAdd(path_in_repo=path, path_or_fileobj=source)


# ---- integrity -----------------------------------------------------------------------------------------------------


MEMORY = "checked.json"
"""File of the work folder."""
SHOWN_DIGITS = 12


def check_files(
    files: Iterable[RepoFile], folder: Path, *, repo_id: str, commit: str, reporter: Reporter, remembered: bool = True
) -> None:
    """Compare files of a snapshot with the hashes that the Hub gave for its commit.

    Args:
        files: as the Hub lists them; one without a hash is passed over.
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
        self._known = self._read()

    def _read(self) -> dict[str, Any]:
        try:
            known = json.loads(self._path.read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        return dict(known) if isinstance(known, Mapping) else {}

    def has(self, path: Path, digest: str) -> bool:
        """Tell whether a file had a hash, and has not been touched since."""
        return self._known.get(str(path)) == _row(path, digest)

    def add(self, path: Path, digest: str) -> None:
        """Remember the hash of a file, beside what another run has remembered in the meantime."""
        self._known = {**self._read(), str(path): _row(path, digest)}
        known = {name: row for name, row in self._known.items() if Path(name).exists()}
        with suppress(OSError):  # a work folder that cannot be written costs the next run some seconds
            write_atomically(self._path, json.dumps(known, sort_keys=True) + "\n")


def _row(path: Path, digest: str) -> list[Any]:
    seen = path.stat()
    return [seen.st_size, seen.st_mtime_ns, seen.st_ino, digest]
