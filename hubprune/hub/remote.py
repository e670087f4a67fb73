"""What is in a repo at a commit, and whether it is what was sent there.

What a publish changes in a repo: the files that are new or other, and those that go.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hubprune.cards.manifest import CARD, MANIFEST, RemoteManifest, read_manifest
from hubprune.cards.provenance import without_times
from hubprune.core.artifacts import RepoFile
from hubprune.core.errors import RemoteMismatchError
from hubprune.hub.session import HubSession
from hubprune.hub.transfer import check_file

if TYPE_CHECKING:
    from huggingface_hub import DiscussionWithDetails, GitRefs

__all__ = [
    "RECENT_PULL_REQUESTS", "RemoteState", "branch_heads", "check_remote", "head_of", "is_same", "missing",
    "number_of", "pull_request", "pull_request_heads", "read_remote", "refs_of", "remote_files", "stale",
    "without_restated",
]  # fmt: skip


# ---- changes -------------------------------------------------------------------------------------------------------


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


# ---- remote --------------------------------------------------------------------------------------------------------


RECENT_PULL_REQUESTS = 20
"""How many pull requests, newest first, are searched for an earlier proposal of the same."""


@dataclass(frozen=True, kw_only=True)
class RemoteState:
    """A repo at one commit."""

    repo_id: str
    commit: str
    files: Mapping[str, RepoFile]
    """By path; SHA-256 for large files, git blob id for all."""
    manifest: RemoteManifest | None
    card: bytes | None

    @property
    def card_sha256(self) -> str | None:
        """SHA-256 of the card, or None where there is none."""
        return hashlib.sha256(self.card).hexdigest() if self.card is not None else None


def refs_of(repo_id: str, *, session: HubSession) -> GitRefs:
    """List the branches, tags and pull requests of a repo."""
    return session.ask(
        lambda api: api.list_repo_refs(repo_id, include_pull_requests=True), doing=f"list the branches of {repo_id}"
    )


def pull_request_heads(repo_id: str, *, session: HubSession) -> dict[str, str]:
    """Map `refs/pr/<number>` to its commit, newest first."""
    refs = refs_of(repo_id, session=session).pull_requests or ()
    return {ref.ref: ref.target_commit for ref in sorted(refs, key=lambda r: -number_of(r.ref))}


def number_of(ref: str) -> int:
    """Return the number of a pull request from its `refs/pr/<number>`."""
    return int(ref.rsplit("/", 1)[-1])


def pull_request(repo_id: str, number: int, *, session: HubSession) -> DiscussionWithDetails:
    """Read a pull request: who opened it, and what became of it."""
    return session.ask(
        lambda api: api.get_discussion_details(repo_id, number), doing=f"read pull request {number} of {repo_id}"
    )


def branch_heads(refs: GitRefs) -> dict[str, str]:
    """Map the name of every branch to its commit."""
    return {ref.name: ref.target_commit for ref in refs.branches}


def head_of(repo_id: str, *, branch: str, session: HubSession) -> str | None:
    """Return the commit that a branch points to, or None where there is no such branch; a tag is none."""
    return branch_heads(refs_of(repo_id, session=session)).get(branch)


def remote_files(repo_id: str, *, commit: str, session: HubSession) -> dict[str, RepoFile]:
    """List all files of a repo at a commit, by path."""
    from huggingface_hub.hf_api import RepoFile as Listed

    entries = session.ask(
        lambda api: list(api.list_repo_tree(repo_id, recursive=True, revision=commit)), doing=f"list {repo_id}"
    )
    return {
        e.path: RepoFile(
            path=e.path, size=e.lfs.size if e.lfs else e.size, sha256=e.lfs.sha256 if e.lfs else None, git_oid=e.blob_id
        )
        for e in entries
        if isinstance(e, Listed)
    }


def read_remote(repo_id: str, *, commit: str, session: HubSession) -> RemoteState:
    """Read a repo's file list, the manifest of the publish before, and the card."""
    files = remote_files(repo_id, commit=commit, session=session)
    manifest = _read(MANIFEST, files=files, repo_id=repo_id, commit=commit, session=session)
    card = _read(CARD, files=files, repo_id=repo_id, commit=commit, session=session)
    return RemoteState(
        repo_id=repo_id,
        commit=commit,
        files=files,
        manifest=read_manifest(manifest) if manifest is not None else None,
        card=card,
    )


def _read(path: str, *, files: Mapping[str, RepoFile], repo_id: str, commit: str, session: HubSession) -> bytes | None:
    if path not in files:
        return None
    found = session.ask(
        lambda api: api.hf_hub_download(repo_id, path, revision=commit), doing=f"read {path} of {repo_id}"
    )
    check_file(Path(found), files[path], repo_id=repo_id, commit=commit)
    return Path(found).read_bytes()


def is_same(local: RepoFile, remote: RepoFile | None) -> bool:
    """Return whether a remote file has the bytes of a local one: by SHA-256 where the Hub tells it, else by blob id."""
    if remote is None or remote.size != local.size:
        return False
    return remote.sha256 == local.sha256 if remote.sha256 else remote.git_oid == local.git_oid


def check_remote(
    files: Iterable[RepoFile], *, gone: Iterable[str], repo_id: str, commit: str, session: HubSession
) -> tuple[RepoFile, ...]:
    """Compare every file of a commit with what was sent, and return the remote files with their SHA-256.

    Args:
        files: the local files, hashed.
        gone: paths that the commit deleted.
        repo_id: the repo.
        commit: 40 hex digits.
        session: which Hub.

    Raises:
        RemoteMismatchError: naming the files that differ.
    """
    remote = remote_files(repo_id, commit=commit, session=session)
    files = tuple(files)
    wrong = [_difference(f, remote=remote.get(f.path)) for f in files if not is_same(f, remote.get(f.path))]
    wrong += [f"{path} is still there" for path in gone if path in remote]
    if wrong:
        raise RemoteMismatchError(
            f"{repo_id} at {commit[:8]} is not what was uploaded: {'; '.join(wrong)}.",
            hint="Run the command again; what is right already is not uploaded twice.",
        )
    return tuple(remote[f.path].model_copy(update={"sha256": f.sha256}) for f in files)


def _difference(local: RepoFile, *, remote: RepoFile | None) -> str:
    if remote is None:
        return f"{local.path} is missing"
    if remote.size != local.size:
        return f"{local.path} has {remote.size} bytes instead of {local.size}"
    return f"{local.path} has other bytes"
