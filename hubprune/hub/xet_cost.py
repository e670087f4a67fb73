"""Find out how much of some files Xet would have to store, without asking the Hub and without sending anything.

The client can upload into a folder instead.  There it cuts, compares and packs chunks as it does for the Hub, and says
what was new.  So the base's shards go there first, for what the Hub knows, and then the pruned ones.  What it packed of
the base is removed after each shard: it compares with its lists of chunks, a thousandth of that size.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hubprune.core.console import Advance, Reporter
from hubprune.core.errors import DiskSpaceError
from hubprune.core.files import scratch_folder
from hubprune.hub.primer import beginning
from hubprune.hub.transfer import ByteCounter

__all__ = ["new_bytes"]


def new_bytes(
    files: Sequence[Path], *, known: Sequence[Path], shown: Sequence[Path] = (), scratch: Path, reporter: Reporter
) -> dict[Path, int]:
    """Compute how many bytes each file adds to a Xet store that holds other files, packed as they would be sent.

    Args:
        files: to be uploaded, in this order: what one adds is no longer new to the next.
        known: files that the store holds.
        shown: those of them whose beginnings are uploaded before, by the primer; each is in the answer too.
        scratch: folder on a disk with room for the largest known file and for what is new.
        reporter: shows the progress.

    Raises:
        DiskSpaceError: there is not enough room.
        OSError, RuntimeError: the client failed.
    """
    sizes = {path: path.stat().st_size for path in (*known, *files)}
    _check_room(scratch, max((sizes[path] for path in known), default=0) + sum(sizes[path] for path in files))
    import hf_xet  # type: ignore[import-untyped]

    session = hf_xet.XetSession()
    with (
        scratch_folder(scratch, name="xet") as folder,
        reporter.progress("comparing chunks with the base's", total=sum(sizes.values()), unit="B") as advance,
    ):
        store = _Store(session, folder, advance)
        try:
            return store.measure(files, known=known, shown=shown, sizes=sizes)
        except KeyboardInterrupt:
            session.sigint_abort()
            raise


def _check_room(scratch: Path, needed: int) -> None:
    if (free := shutil.disk_usage(scratch).free) < needed:
        raise DiskSpaceError(f"Comparing chunks needs {needed:,} bytes below {scratch}, which has {free:,} free.")


class _Store:
    """A Xet store in a folder."""

    def __init__(self, session: Any, folder: Path, advance: Advance) -> None:
        self._session, self._folder, self._advance = session, folder, advance

    def measure(
        self, files: Iterable[Path], *, known: Iterable[Path], shown: Iterable[Path], sizes: dict[Path, int]
    ) -> dict[Path, int]:
        """Upload all files one after the other, and return what each of `shown` and `files` added."""
        for path in known:
            self._add(path, size=sizes[path])
            shutil.rmtree(self._folder / "xet" / "xorbs", ignore_errors=True)
        found = {path: self._add(beginning(path), size=0) for path in shown}
        return found | {path: self._add(path, size=sizes[path]) for path in files}

    def _add(self, content: Path | bytes, *, size: int) -> int:
        """Upload one file, count `size` bytes of progress, and return how many packed bytes were new."""
        import hf_xet

        counter = ByteCounter(self._advance, total=size)
        commit = self._session.new_upload_commit(
            endpoint=f"local://{self._folder}",
            progress_callback=lambda total, _: counter.reach(int(total.total_bytes_completed)),
        )
        if isinstance(content, bytes):
            commit.start_upload_bytes(content, sha256=hf_xet.SKIP_SHA256)
        else:
            commit.start_upload_file(str(content), sha256=hf_xet.SKIP_SHA256)
        metrics = commit.wait_to_finish().dedup_metrics
        counter.finish()
        return int(metrics.xorb_bytes_uploaded)
