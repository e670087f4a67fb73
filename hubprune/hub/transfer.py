"""Move bytes to and from the Hub and show how far it is."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from hubprune.core.artifacts import RepoFile
from hubprune.core.console import Advance, Reporter
from hubprune.hub.integrity import check_files
from hubprune.hub.session import HubSession

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd

__all__ = ["ByteCounter", "addition", "download", "observed_uploads"]


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


# ---- down --------------------------------------------------------------------------------------------------------


def download(files: Iterable[RepoFile], *, repo_id: str, commit: str, session: HubSession, reporter: Reporter) -> Path:
    """Fetch files of a model repo at a commit into the cache and return the snapshot's folder.

    All of them are compared with the hashes that the Hub gave for them, whether they were fetched or there already.

    Raises:
        CheckpointError: a file in the cache is not the one of the commit.
        HubError: the Hub refused or did not answer.
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
            path = _download_one(file, repo_id=repo_id, commit=commit, session=session, counter=counter)
            counter.finish()
            folder = path.parents[file.path.count("/")]
    check_files(files, folder, repo_id=repo_id, commit=commit, reporter=reporter)
    return folder


def _download_one(file: RepoFile, *, repo_id: str, commit: str, session: HubSession, counter: ByteCounter) -> Path:
    bar: Any = _bar_class(counter)
    path = session.ask(
        lambda api: api.hf_hub_download(repo_id, file.path, revision=commit, tqdm_class=bar),
        doing=f"download {file.path} of {repo_id}",
    )
    return Path(path)


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
    with (
        _replaced(utils, name="are_progress_bars_disabled", value=lambda name=None: False),
        _replaced(reporting, name="XetUploadProgressReporter", value=_reporter_class(counter)),
    ):
        yield


def _reporter_class(counter: ByteCounter) -> type:
    class UploadReporter:
        def __init__(self, *args: Any, **options: Any) -> None:
            """Takes what the client's own reporter takes."""

        def update_progress(self, group_report: Any, *item_reports: Any) -> None:
            counter.reach(int(group_report.total_bytes_completed))

        def close(self) -> None:
            """Nothing to close."""

    return UploadReporter


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
            with super().as_file() as file:
                yield _counted(file, counter=counter) if with_tqdm else file

    return ObservedAdd(path_in_repo=path, path_or_fileobj=source)


def _counted(file: BinaryIO, *, counter: ByteCounter) -> BinaryIO:
    read = file.read

    def counted_read(size: int = -1) -> bytes:
        data = read(size)
        counter.add(len(data))
        return data

    file.read = counted_read  # type: ignore[method-assign]
    return file
