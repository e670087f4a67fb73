"""What a publish would change and send, found out without writing anything to the Hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from hubprune.cards.manifest import CARD
from hubprune.core.artifacts import BaseCheckpoint, PlannedFile, RepoFile, UploadPlan
from hubprune.core.console import Reporter
from hubprune.core.errors import DiskSpaceError
from hubprune.hub.changes import missing, stale, without_restated
from hubprune.hub.foreign import Overwrite, check_is_ours
from hubprune.hub.primer import shards_to_show, uses_xet
from hubprune.hub.remote import RemoteState, read_remote
from hubprune.hub.repos import weight_files
from hubprune.hub.session import HubSession
from hubprune.hub.target import Target
from hubprune.hub.xet_cost import new_bytes

__all__ = ["plan_upload"]


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
        folder: the checkpoint with README.md, recipe.yaml and hubprune.json.
        files: from `write_manifest`.
        target: from `preflight`.
        base: that the weights are a part of, downloaded.
        session: which Hub; it is only read from.
        reporter: shows the progress.
        scratch: folder for what is compared, on a disk with room for a shard and the upload.
        primer: whether the publish would use it.
        overwrite: what may be replaced of what people changed there.

    Raises:
        EditedError: somebody changed files of the publish before, or has others that are in the way.
        HubError: the Hub refused or did not answer.
    """
    remote = _remote(target, session=session)
    check_is_ours(remote, session=session, overwrite=overwrite, coming=files)
    sent = files if overwrite != "nothing" else without_restated(files, folder=folder, remote=remote)
    upload = missing(sent, remote=remote)
    shown = tuple(f.path for f in shards_to_show(base, upload=upload)) if primer and uses_xet() else ()
    lacking, primed = _lacking(folder, upload=upload, base=base, shown=shown, scratch=scratch, reporter=reporter)
    new = [lacking[f.path] for f in upload]
    return UploadPlan(
        repo_id=target.repo_id,
        revision=target.revision,
        parent=target.parent,
        create_pr=target.create_pr,
        files=_planned(files, upload=upload, delete=stale(sent, remote=remote), remote=remote, lacking=lacking),
        upload_bytes=sum(f.size for f in upload),
        primer_bytes=primed,
        new_bytes=None if None in new else primed + sum(n for n in new if n is not None),
        card=(folder / CARD).read_text(encoding="utf-8"),
    )


def _remote(target: Target, *, session: HubSession) -> RemoteState:
    if target.parent is None:
        return RemoteState(repo_id=target.repo_id, commit="", files={}, manifest=None, card=None)
    return read_remote(target.repo_id, commit=target.parent, session=session)


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


# ---- bytes -------------------------------------------------------------------------------------------------------


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
    try:
        added = new_bytes(
            [folder / path for path in pruned],
            known=_shards(base, upload=upload),
            shown=[Path(base.folder, path) for path in shown],
            scratch=scratch,
            reporter=reporter,
        )
    except (DiskSpaceError, OSError, RuntimeError) as error:
        reporter.warn(f"How much is new to the Hub could not be found out: {error}")
        return found | dict.fromkeys(pruned), 0
    return found | {path: added[folder / path] for path in pruned}, sum(
        added[Path(base.folder, path)] for path in shown
    )


def _shards(base: BaseCheckpoint, *, upload: Sequence[RepoFile]) -> list[Path]:
    """List the base's shards of which the upload holds a pruned form: those that are not in it as they were."""
    whole = {f.sha256 for f in upload}
    return [Path(str(base.folder), f.path) for f in weight_files(base.files) if f.sha256 not in whole]
