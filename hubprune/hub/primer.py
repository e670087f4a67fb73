"""Teach this machine, before an upload, which chunks the Hub has already.

Xet cuts files into chunks of about 64 kB and uploads those that the Hub does not have.  A client remembers for weeks
what it has uploaded itself.  About all else it asks the Hub only for the first chunk of a file, and for one chunk in
1024, so once in 64 MB.  The first chunk of a pruned shard holds a header that the Hub has never seen, and what comes
before the next question is sent in vain.  But the Hub knows the first chunk of the base's own shard: asked for that, it
answers with all chunks that were uploaded together with it.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hubprune.core.artifacts import BaseCheckpoint, RepoFile
from hubprune.core.console import Reporter
from hubprune.hub.repos import weight_files
from hubprune.hub.session import HubSession
from hubprune.hub.target import Target

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd

__all__ = ["PRIMER_BYTES", "beginning", "prime", "shards_to_show", "uses_xet"]

PRIMER_BYTES = 300_000
"""How much of a shard is shown: more than the largest chunk, 128 KiB, so that the first one is in it as a whole."""
SMALLEST_SHARD_BYTES = 1_000_000
"""Below this the question costs about as much as it can save."""

logger = logging.getLogger(__name__)


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
    whole = {f.sha256 for f in weight_files(base.files)}
    if not any(f.sha256 not in whole and _is_worth_it(f) for f in weight_files(upload)):
        return ()
    unchanged = {f.sha256 for f in upload}
    return tuple(f for f in weight_files(base.files) if _is_worth_it(f) and f.sha256 not in unchanged)


def _is_worth_it(file: RepoFile) -> bool:
    return file.size >= SMALLEST_SHARD_BYTES


def prime(
    shards: Sequence[RepoFile], *, base: BaseCheckpoint, target: Target, session: HubSession, reporter: Reporter
) -> None:
    """Upload the beginnings of some shards, which no commit will name, so that the client asks the Hub for them.

    An upload goes on without: whatever fails here is only written into the log.

    Args:
        shards: from `shards_to_show`; nothing happens where there is none, or where uploads do not go to Xet.
        base: that they are of; what is not on this disk is read from the Hub.
        target: whose Xet token is used; it has to exist.
        session: which Hub, and as whom.
        reporter: told what is done.
    """
    import httpx2

    if not shards or not uses_xet():
        return
    reporter.note(f"asking the Hub which parts of {_counted(len(shards))} of the base it has")
    try:
        session.api.preupload_lfs_files(
            target.repo_id,
            [_addition(shard, base=base, session=session) for shard in shards],
            revision=target.revision,
            create_pr=target.create_pr,
        )
    except (OSError, RuntimeError, ValueError, httpx2.HTTPError) as error:
        # Its text may hold an address that was signed for this user.
        logger.debug("the Hub was not asked for the base's chunks: %s", type(error).__name__)


def _counted(shards: int) -> str:
    return "the weights" if shards == 1 else f"{shards} shards"


def _addition(shard: RepoFile, *, base: BaseCheckpoint, session: HubSession) -> CommitOperationAdd:
    from huggingface_hub import CommitOperationAdd

    here = _on_disk(shard, base=base)
    content = beginning(here) if here else _from_hub(shard, base=base, session=session)
    return CommitOperationAdd(path_in_repo=shard.path, path_or_fileobj=content)


def _on_disk(shard: RepoFile, *, base: BaseCheckpoint) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    if base.folder is not None and (path := Path(base.folder, shard.path)).is_file():
        return path
    cached = try_to_load_from_cache(base.name, shard.path, revision=base.commit)
    return Path(cached) if isinstance(cached, str) else None


def beginning(shard: Path) -> bytes:
    """Read as much of a shard as the primer shows."""
    with shard.open("rb") as file:
        return file.read(PRIMER_BYTES)


def _from_hub(shard: RepoFile, *, base: BaseCheckpoint, session: HubSession) -> bytes:
    from huggingface_hub import HfFileSystem

    files = HfFileSystem(endpoint=session.endpoint, token=session.token or False, skip_instance_cache=True)
    # Its caches read ahead, by megabytes.
    with files.open(f"{base.name}@{base.commit}/{shard.path}", cache_type="none") as file:
        return bytes(file.read(min(PRIMER_BYTES, shard.size)))
