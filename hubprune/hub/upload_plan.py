"""What a publish would change and send, found out without writing anything to the Hub; and how it sends less.

Xet cuts files into chunks of about 64 kB and uploads those that the Hub does not have.  A client remembers for weeks
what it has uploaded itself.  About all else it asks the Hub only for the first chunk of a file, and for one chunk in
1024, so once in 64 MB.  The first chunk of a pruned shard holds a header that the Hub has never seen, and what comes
before the next question is sent in vain.  But the Hub knows the first chunk of the base's own shard: asked for that, it
answers with all chunks that were uploaded together with it.  So the primer asks before an upload.

How much of some files is new is found out without asking the Hub.  The client can upload into a folder instead.  There
it cuts, compares and packs chunks as it does for the Hub, and says what was new.  So the base's shards go there first,
for what the Hub knows, and then the pruned ones.  What it packed of the base is removed after each shard: it compares
with its lists of chunks, a thousandth of that size.
"""

from __future__ import annotations

import importlib.util
import logging
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubprune.cards.manifest import CARD
from hubprune.core.artifacts import BaseCheckpoint, PlannedFile, RepoFile, UploadPlan
from hubprune.core.console import Advance, Reporter
from hubprune.core.errors import DiskSpaceError
from hubprune.core.extras import client_library
from hubprune.core.files import scratch_folder
from hubprune.hub.remote import Overwrite, RemoteState, check_is_ours, missing, read_remote, stale, without_restated
from hubprune.hub.repos import weight_files
from hubprune.hub.session import HubSession
from hubprune.hub.target import Target
from hubprune.hub.transfer import ByteCounter

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd

logger = logging.getLogger(__name__)

PRIMER_BYTES = 300_000
"""How much of a shard is shown: more than the largest chunk, 128 KiB, so that the first one is in it as a whole."""
SMALLEST_SHARD_BYTES = 1_000_000
"""Below this the question costs about as much as it can save."""


def plan_upload(
    folder: Path,
    *,
    files: tuple[RepoFile, ...],
    target: Target,
    base: BaseCheckpoint,
    session: HubSession,
    reporter: Reporter,
    scratch: Path,
    primer: bool = True,
    overwrite: Overwrite = "nothing",
) -> UploadPlan:
    """Compare a folder with its repo as `commit.publish` does, and estimate how many bytes the Hub lacks.

    The estimate assumes that the Hub tells the client of all chunks of the base.  It knows nothing of what else is
    there, so that an upload can turn out cheaper.

    Args:
        scratch: folder for what is compared, on a disk with room for a shard and the upload.
        primer: whether the publish would use it.

    Raises:
        EditedError: somebody changed files of the publish before, or has others that are in the way.
    """
    remote = RemoteState(repo_id=target.repo_id, commit="", files={}, manifest=None, card=None)
    if target.parent is not None:
        remote = read_remote(target.repo_id, commit=target.parent, session=session)
    check_is_ours(remote, session=session, overwrite=overwrite, coming=files)
    sent = files if overwrite != "nothing" else without_restated(files, folder=folder, remote=remote)
    upload = missing(sent, remote=remote)
    shown = tuple(f.path for f in shards_to_show(base, upload=upload)) if primer and uses_xet() else ()
    lacking, primed = _lacking(folder, upload=upload, base=base, shown=shown, scratch=scratch, reporter=reporter)
    new = [lacking[f.path] for f in upload]
    return UploadPlan(
        repo_id=target.repo_id, revision=target.revision, parent=target.parent, create_pr=target.create_pr,
        files=_planned(files, upload=upload, delete=stale(sent, remote=remote), remote=remote, lacking=lacking),
        upload_bytes=sum(f.size for f in upload), primer_bytes=primed,
        new_bytes=None if None in new else primed + sum(n for n in new if n is not None),
        card=(folder / CARD).read_text(encoding="utf-8"),
    )  # fmt: skip


def _planned(
    files: Sequence[RepoFile],
    *,
    upload: Sequence[RepoFile],
    delete: Sequence[str],
    remote: RemoteState,
    lacking: Mapping[str, int | None],
) -> tuple[PlannedFile, ...]:
    """Say of every file what becomes of it; one that is only restated counts as unchanged."""
    sent = {f.path for f in upload}
    rows = [PlannedFile(path=path, size=remote.files[path].size, change="deleted", new_bytes=0) for path in delete]
    for file in files:
        change = "unchanged" if file.path not in sent else "changed" if file.path in remote.files else "new"
        new = lacking[file.path] if file.path in sent else 0
        rows.append(PlannedFile(path=file.path, size=file.size, change=change, new_bytes=new))
    return tuple(sorted(rows, key=lambda row: row.path))


def _lacking(
    folder: Path,
    *,
    upload: Sequence[RepoFile],
    base: BaseCheckpoint,
    shown: Sequence[str],
    scratch: Path,
    reporter: Reporter,
) -> tuple[dict[str, int | None], int]:
    """Return how many bytes of each file the Hub lacks, and how many the primer adds.

    A file of the base costs nothing.  Of pruned shards the chunks are compared with the base's; all else counts whole.
    """
    there = {f.sha256 for f in base.files if f.sha256} if base.commit else set()
    found: dict[str, int | None] = {f.path: 0 if f.sha256 in there else f.size for f in upload}
    pruned = [f.path for f in weight_files(upload) if found[f.path]]
    if not pruned or base.folder is None or base.commit is None or not uses_xet():
        return found, 0
    # Of those base shards that are in the upload as they were it holds no pruned form.
    whole = {f.sha256 for f in upload}
    known = [Path(base.folder, f.path) for f in weight_files(base.files) if f.sha256 not in whole]
    parts, primer = [folder / path for path in pruned], [Path(base.folder, path) for path in shown]
    try:
        added = new_bytes(parts, known=known, shown=primer, scratch=scratch, reporter=reporter)
    except (DiskSpaceError, OSError, RuntimeError) as error:
        reporter.warn(f"How much is new to the Hub could not be found out: {error}")
        return found | dict.fromkeys(pruned), 0
    return found | {path: added[folder / path] for path in pruned}, sum(added[path] for path in primer)


# ---- what Xet would have to store --------------------------------------------------------------------------------


def new_bytes(
    files: Sequence[Path], *, known: Sequence[Path], shown: Sequence[Path] = (), scratch: Path, reporter: Reporter
) -> dict[Path, int]:
    """Compute how many bytes each file adds to a Xet store that holds other files, packed as they would be sent.

    Args:
        files: to be uploaded, in this order: what one adds is no longer new to the next.
        known: files that the store holds.
        shown: those of them whose beginnings are uploaded before, by the primer; each is in the answer too.
        scratch: folder on a disk with room for the largest known file and for what is new.

    Raises:
        DiskSpaceError: there is not enough room.
        OSError, RuntimeError: the client failed.
    """
    sizes = {path: path.stat().st_size for path in (*known, *files)}
    needed = max((sizes[path] for path in known), default=0) + sum(sizes[path] for path in files)
    if (free := shutil.disk_usage(scratch).free) < needed:
        raise DiskSpaceError(f"Comparing chunks needs {needed:,} bytes below {scratch}, which has {free:,} free.")
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


# ---- the primer --------------------------------------------------------------------------------------------------


def uses_xet() -> bool:
    """Return whether uploads of this process go to Xet rather than to LFS."""
    from huggingface_hub import constants

    return not constants.HF_HUB_DISABLE_XET and importlib.util.find_spec("hf_xet") is not None


def shards_to_show(base: BaseCheckpoint | None, *, upload: Sequence[RepoFile]) -> tuple[RepoFile, ...]:
    """Choose the base's shards whose chunks the Hub should tell: those of which the upload may hold a pruned form.

    Args:
        base: None, or one that is not on the Hub, has none.
        upload: files to upload; a shard that is among them as it was in the base is found by its own first chunk.
    """
    if base is None or base.commit is None:
        return ()
    whole, unchanged = {f.sha256 for f in weight_files(base.files)}, {f.sha256 for f in upload}
    if all(f.size < SMALLEST_SHARD_BYTES or f.sha256 in whole for f in weight_files(upload)):
        return ()
    large = (f for f in weight_files(base.files) if f.size >= SMALLEST_SHARD_BYTES)
    return tuple(f for f in large if f.sha256 not in unchanged)


def prime(
    shards: Sequence[RepoFile], *, base: BaseCheckpoint, target: Target, session: HubSession, reporter: Reporter
) -> None:
    """Upload the beginnings of some shards, which no commit will name, so that the client asks the Hub for them.

    An upload goes on without: whatever fails here is only written into the log.

    Args:
        shards: from `shards_to_show`; nothing happens where there is none, or where uploads do not go to Xet.
        base: that they are of; what is not on this disk is read from the Hub.
    """

    if not shards or not uses_xet():
        return
    parts = "the weights" if len(shards) == 1 else f"{len(shards)} shards"
    reporter.note(f"asking the Hub which parts of {parts} of the base it has")
    try:
        api, shown = session.api, [_addition(shard, base=base, session=session) for shard in shards]
        api.preupload_lfs_files(target.repo_id, shown, revision=target.revision, create_pr=target.create_pr)
    except (OSError, RuntimeError, ValueError, client_library().HTTPError) as error:
        # Its text may hold an address that was signed for this user.
        logger.debug("the Hub was not asked for the base's chunks: %s", type(error).__name__)


def _addition(shard: RepoFile, *, base: BaseCheckpoint, session: HubSession) -> CommitOperationAdd:
    from huggingface_hub import CommitOperationAdd, HfFileSystem, try_to_load_from_cache

    own = Path(base.folder, shard.path) if base.folder is not None else None
    here = own if own and own.is_file() else try_to_load_from_cache(base.name, shard.path, revision=base.commit)
    if isinstance(here, (str, Path)):
        content = beginning(Path(here))
    else:
        files = HfFileSystem(endpoint=session.endpoint, token=session.token or False, skip_instance_cache=True)
        # Its caches read ahead, by megabytes.
        with files.open(f"{base.name}@{base.commit}/{shard.path}", cache_type="none") as file:
            content = bytes(file.read(min(PRIMER_BYTES, shard.size)))
    return CommitOperationAdd(path_in_repo=shard.path, path_or_fileobj=content)


def beginning(shard: Path) -> bytes:
    """Read as much of a shard as the primer shows."""
    with shard.open("rb") as file:
        return file.read(PRIMER_BYTES)
