"""What a publish changes in a repo: the files that are new or other, and those that go."""

from __future__ import annotations

from pathlib import Path

from hubprune.cards.manifest import CARD, MANIFEST, read_manifest
from hubprune.cards.provenance import without_times
from hubprune.core.artifacts import RepoFile
from hubprune.hub.remote import RemoteState, is_same

__all__ = ["missing", "stale", "without_restated"]


def without_restated(files: tuple[RepoFile, ...], *, folder: Path, remote: RemoteState) -> tuple[RepoFile, ...]:
    """Leave out card and manifest where they only tell other wall-clock times than those on the Hub.

    A run that was done again gives the same checkpoint and the same figures, but never takes the same seconds.
    """
    changed = {f.path for f in missing(files, remote=remote)}
    if not changed <= {CARD, MANIFEST} & set(remote.files) or not _says_the_same(folder, remote=remote):
        return files
    return tuple(f for f in files if f.path not in changed)


def _says_the_same(folder: Path, *, remote: RemoteState) -> bool:
    card, manifest = folder / CARD, folder / MANIFEST
    if remote.card is None or remote.manifest is None or not (card.is_file() and manifest.is_file()):
        return False
    ours, theirs = read_manifest(manifest.read_bytes()).content_sha256, remote.manifest.content_sha256
    return ours is not None and ours == theirs and without_times(card.read_bytes()) == without_times(remote.card)


def missing(files: tuple[RepoFile, ...], *, remote: RemoteState) -> tuple[RepoFile, ...]:
    """Return the files that the repo does not hold as they are."""
    return tuple(f for f in files if not is_same(f, remote.files.get(f.path)))


def stale(files: tuple[RepoFile, ...], *, remote: RemoteState) -> tuple[str, ...]:
    """List what the publish before owned and this one does not have; files of somebody else are never among them."""
    owned = set(remote.manifest.files) if remote.manifest else set()
    kept = {f.path for f in files} | {CARD, MANIFEST}
    return tuple(sorted((owned & set(remote.files)) - kept))
