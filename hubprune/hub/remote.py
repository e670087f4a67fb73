"""What is in a repo at a commit, what a publish changes there, and what people did there since the last one.

No publish undoes other people's work.  A file that is not as the manifest lists it has one of two reasons.  Somebody
committed another one: that stops a publish, which names the commit.  Or an upload broke: then it has been so since the
publish's own commit, which its description tells from all others, and the next publish repairs it.  A pull request that
was merged may hold more than the publish proposed, so what is other there counts as somebody's work.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hubprune.cards.manifest import CARD, MANIFEST, RemoteManifest, read_manifest
from hubprune.cards.markdown import listing, visible
from hubprune.cards.provenance import without_times
from hubprune.core.artifacts import RepoFile
from hubprune.core.errors import EditedError, RemoteMismatchError
from hubprune.hub.session import HubSession
from hubprune.hub.transfer import check_file

if TYPE_CHECKING:
    from huggingface_hub import DiscussionWithDetails, GitCommitInfo, GitRefs

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


def read_remote(repo_id: str, *, commit: str, session: HubSession) -> RemoteState:
    """Read a repo's file list, the manifest of the publish before, and the card."""
    files = remote_files(repo_id, commit=commit, session=session)

    def read(path: str) -> bytes | None:
        """Read a file that is there, and compare it with the list."""
        if path not in files:
            return None
        doing = f"read {path} of {repo_id}"
        found = Path(session.ask(lambda api: api.hf_hub_download(repo_id, path, revision=commit), doing=doing))
        check_file(found, files[path], repo_id=repo_id, commit=commit)
        return found.read_bytes()

    manifest, card = read(MANIFEST), read(CARD)
    known = read_manifest(manifest) if manifest is not None else None
    return RemoteState(repo_id=repo_id, commit=commit, files=files, manifest=known, card=card)


def remote_files(repo_id: str, *, commit: str, session: HubSession) -> dict[str, RepoFile]:
    """List all files of a repo at a commit, by path."""
    from huggingface_hub.hf_api import RepoFile as Listed

    doing = f"list {repo_id}"
    listed = session.ask(lambda api: list(api.list_repo_tree(repo_id, recursive=True, revision=commit)), doing=doing)
    files = {}
    for e in (entry for entry in listed if isinstance(entry, Listed)):
        size, sha256 = (e.lfs.size, e.lfs.sha256) if e.lfs else (e.size, None)
        files[e.path] = RepoFile(path=e.path, size=size, sha256=sha256, git_oid=e.blob_id)
    return files


# ---- branches and pull requests ----------------------------------------------------------------------------------


def refs_of(repo_id: str, *, session: HubSession) -> GitRefs:
    """List the branches, tags and pull requests of a repo."""
    doing = f"list the branches of {repo_id}"
    return session.ask(lambda api: api.list_repo_refs(repo_id, include_pull_requests=True), doing=doing)


def branch_heads(refs: GitRefs) -> dict[str, str]:
    """Map the name of every branch to its commit."""
    return {ref.name: ref.target_commit for ref in refs.branches}


def head_of(repo_id: str, *, branch: str, session: HubSession) -> str | None:
    """Return the commit that a branch points to, or None where there is no such branch; a tag is none."""
    return branch_heads(refs_of(repo_id, session=session)).get(branch)


def history(repo_id: str, *, revision: str, session: HubSession) -> list[GitCommitInfo]:
    """List the commits up to a revision, newest first."""
    doing = f"read the history of {repo_id}"
    return session.ask(lambda api: api.list_repo_commits(repo_id, revision=revision), doing=doing)


def pull_request_heads(repo_id: str, *, session: HubSession) -> dict[str, str]:
    """Map `refs/pr/<number>` to its commit, newest first."""
    refs = refs_of(repo_id, session=session).pull_requests or ()
    return {ref.ref: ref.target_commit for ref in sorted(refs, key=lambda r: -number_of(r.ref))}


def number_of(ref: str) -> int:
    """Return the number of a pull request from its `refs/pr/<number>`, or from the address of its page."""
    return int(ref.rsplit("/", 1)[-1])


def pull_request(repo_id: str, number: int, *, session: HubSession) -> DiscussionWithDetails:
    """Read a pull request: who opened it, and what became of it."""
    doing = f"read pull request {number} of {repo_id}"
    return session.ask(lambda api: api.get_discussion_details(repo_id, number), doing=doing)


# ---- what a publish changes --------------------------------------------------------------------------------------


def is_same(local: RepoFile, remote: RepoFile | None) -> bool:
    """Return whether a remote file has the bytes of a local one: by SHA-256 where the Hub tells it, else by blob id."""
    if remote is None or remote.size != local.size:
        return False
    return remote.sha256 == local.sha256 if remote.sha256 else remote.git_oid == local.git_oid


def missing(files: tuple[RepoFile, ...], *, remote: RemoteState) -> tuple[RepoFile, ...]:
    """Return the files that the repo does not hold as they are."""
    return tuple(f for f in files if not is_same(f, remote.files.get(f.path)))


def stale(files: tuple[RepoFile, ...], *, remote: RemoteState) -> tuple[str, ...]:
    """List what the publish before owned and this one does not have; files of somebody else are never among them."""
    owned = set(remote.manifest.files) if remote.manifest else set()
    kept = {f.path for f in files} | {CARD, MANIFEST}
    return tuple(sorted((owned & set(remote.files)) - kept))


def without_restated(files: tuple[RepoFile, ...], *, folder: Path, remote: RemoteState) -> tuple[RepoFile, ...]:
    """Leave out card and manifest where they only tell other wall-clock times than those on the Hub.

    A run that was done again gives the same checkpoint and the same figures, but never takes the same seconds.
    """
    changed = {f.path for f in missing(files, remote=remote)}
    card, manifest = folder / CARD, folder / MANIFEST
    if not changed <= {CARD, MANIFEST} & set(remote.files) or remote.card is None or remote.manifest is None:
        return files
    if not (card.is_file() and manifest.is_file()):
        return files
    ours, theirs = read_manifest(manifest.read_bytes()).content_sha256, remote.manifest.content_sha256
    restated = ours is not None and ours == theirs and without_times(card.read_bytes()) == without_times(remote.card)
    return tuple(f for f in files if f.path not in changed) if restated else files


def check_remote(
    files: Iterable[RepoFile], *, gone: Iterable[str], repo_id: str, commit: str, session: HubSession
) -> tuple[RepoFile, ...]:
    """Compare every file of a commit with what was sent, and return the remote files with their SHA-256.

    Raises:
        RemoteMismatchError: naming the files that differ.
    """
    remote, files, wrong = remote_files(repo_id, commit=commit, session=session), tuple(files), []
    for local in files:
        there = remote.get(local.path)
        if there is None:
            wrong.append(f"{local.path} is missing")
        elif there.size != local.size:
            wrong.append(f"{local.path} has {there.size} bytes instead of {local.size}")
        elif not is_same(local, there):
            wrong.append(f"{local.path} has other bytes")
    wrong += [f"{path} is still there" for path in gone if path in remote]
    if wrong:
        raise RemoteMismatchError(
            f"{repo_id} at {commit[:8]} is not what was uploaded: {'; '.join(wrong)}.",
            hint="Run the command again; what is right already is not uploaded twice.",
        )
    return tuple(remote[f.path].model_copy(update={"sha256": f.sha256}) for f in files)


# ---- what people did ---------------------------------------------------------------------------------------------


Overwrite = Literal["nothing", "card", "everything"]
"""What of other people's work a publish may replace: nothing, a README.md that was edited by hand, or all of it."""
RUN_LINE = "hubprune-run: "
"""Line in a commit's description: the digest after it tells our commit from everybody else's, and the word after
that from one of the same files that another publisher made at the same time."""
OWN_DESCRIPTION = re.compile(re.escape(RUN_LINE) + r"[0-9a-f]{64}( [0-9a-f]+)?\s*")
MOST_LOOKS = 50
"""How many commits back a manifest is looked for that was removed or edited."""
NAMED = 3
"""How many commits and files a message names."""
LONGEST_TITLE = 60


@dataclass(frozen=True, kw_only=True)
class ForeignCommit:
    """A commit of somebody else to files of the last publish."""

    commit: str
    title: str
    authors: tuple[str, ...]
    paths: tuple[str, ...]
    """The files that are since then as they are now, sorted."""

    def __str__(self) -> str:
        """Return id, title and author as a message names them; both are other people's text."""
        title = visible(" ".join(self.title.split()))
        title = title if len(title) <= LONGEST_TITLE else f"{title[: LONGEST_TITLE - 1]}…"
        by = f" by {visible(', '.join(self.authors))}" if self.authors else ""
        return f'{self.commit[:8]} "{title}"{by}'


def check_is_ours(
    remote: RemoteState, *, session: HubSession, overwrite: Overwrite = "nothing", coming: Sequence[RepoFile] = ()
) -> None:
    """Refuse to undo what people did in a repo: files of the last publish that were changed, and files of their own.

    Args:
        coming: files that the publish will send, as far as they are known; one that is there already is no conflict.

    Raises:
        EditedError: naming the repo, the files and the commits.
    """
    if overwrite == "everything":
        return
    kept = {file.path for file in coming if is_same(file, remote.files.get(file.path))}
    commits = foreign_commits(remote, session=session)
    if overwrite == "card":
        kept.add(CARD)
    if changed := sorted({path for commit in commits for path in commit.paths} - kept):
        by = [commit for commit in commits if set(commit.paths) & set(changed)]
        more = f" and {len(by) - NAMED} more" if len(by) > NAMED else ""
        what = "edited by hand" if changed == [CARD] else "changed or removed"
        raise EditedError(
            f"{_listed(changed)} of {remote.repo_id} {_were(changed)} {what} since the last publish:"
            f" {'; '.join(map(str, by[:NAMED]))}{more}.",
            hint=_hint(changed),
            commits=[asdict(commit) for commit in by],
        )
    owned = {*(remote.manifest.files if remote.manifest else ()), MANIFEST}
    if others := sorted({file.path for file in coming if file.path in remote.files} - owned - kept):
        raise EditedError(
            f"{_listed(others)} of {remote.repo_id} at {remote.commit[:8]} {_were(others)} not written by hubprune.",
            hint=_hint(others),
        )


def _hint(paths: Sequence[str]) -> str:
    if list(paths) == [CARD]:
        return "Pass --overwrite-card to replace it; the old one stays in the history."
    return "Pass --overwrite to replace what is there, which stays in the history, or publish elsewhere with --repo-id."


def _listed(paths: Sequence[str]) -> str:
    more = [f"{len(paths) - NAMED} more"] if len(paths) > NAMED else []
    return listing([*map(visible, paths[:NAMED]), *more])


def _were(paths: Sequence[str]) -> str:
    return "was" if len(paths) == 1 else "were"


def foreign_commits(remote: RemoteState, *, session: HubSession) -> tuple[ForeignCommit, ...]:
    """Find who changed or removed files of the last publish since, newest first; card and manifest are among them.

    Where everything is as the manifest lists it, nothing is asked.
    """
    now = remote.manifest
    if now and now.is_intact and all(is_same(file, remote.files.get(path)) for path, file in now.listed.items()):
        return ()
    if not set(remote.files) - {".gitattributes"}:
        return ()
    looked = _History(remote, session=session)
    if (published := looked.last_publish()) is None:
        return ()
    number, manifest = published
    changed = {path for path, file in manifest.listed.items() if not is_same(file, remote.files.get(path))}
    if looked.id_of(MANIFEST, number) != looked.id_of(MANIFEST, 0):
        changed.add(MANIFEST)
    found: dict[int, list[str]] = {}
    for path in sorted(changed):
        at = looked.set_by(path, end=number)
        # What was so as soon as it was published was spoiled on its way, unless others had a hand in it.
        if at < number or not _is_direct(looked.commits[number]):
            found.setdefault(at, []).append(path)
    return tuple(
        ForeignCommit(commit=made.commit_id, title=made.title, authors=tuple(made.authors), paths=tuple(paths))
        for made, paths in ((looked.commits[at], found[at]) for at in sorted(found))
    )


def _is_direct(commit: GitCommitInfo) -> bool:
    """Tell whether a commit is as a publish sent it; a pull request may have been added to before it was merged."""
    return OWN_DESCRIPTION.fullmatch(commit.message.strip()) is not None


class _History:
    """The commits up to the one that was read, newest first, and the files at each that is asked for."""

    def __init__(self, remote: RemoteState, *, session: HubSession) -> None:
        self._remote, self._session = remote, session
        self.commits = history(remote.repo_id, revision=remote.commit, session=session)
        self._files: dict[int, Mapping[str, RepoFile]] = {0: remote.files}

    def id_of(self, path: str, number: int) -> str | None:
        """Return the git blob id of a file at a commit, or None where it is not there."""
        if number not in self._files:
            commit = self.commits[number].commit_id
            self._files[number] = remote_files(self._remote.repo_id, commit=commit, session=self._session)
        file = self._files[number].get(path)
        return file.git_oid if file else None

    def set_by(self, path: str, *, end: int, start: int = 0) -> int:
        """Return the number of a commit that made a file what it is at `start`; `end` is the last to look at.

        By halves: a history may be long, and each look is a request.
        """
        now = self.id_of(path, start)
        if self.id_of(path, end) == now:
            return end
        same, other = start, end
        while other - same > 1:
            middle = (same + other) // 2
            same, other = (middle, other) if self.id_of(path, middle) == now else (same, middle)
        return same

    def last_publish(self) -> tuple[int, RemoteManifest] | None:
        """Return the newest commit that brought a manifest which nobody edited, and that manifest."""
        start, oldest = 0, len(self.commits) - 1
        while start <= min(oldest, MOST_LOOKS):
            manifest = self._manifest_at(start)
            if manifest is None:  # it was removed: the commit before may have it
                start += 1
                continue
            by = self.set_by(MANIFEST, start=start, end=oldest)
            # A manifest of an older version has a digest by older rules; then its commit has to say what it is.
            if manifest.is_intact or _is_direct(self.commits[by]):
                return by, manifest
            start = by + 1
        return None

    def _manifest_at(self, number: int) -> RemoteManifest | None:
        if self.id_of(MANIFEST, number) is None:
            return None
        if number == 0:
            return self._remote.manifest
        commit = self.commits[number].commit_id
        return read_remote(self._remote.repo_id, commit=commit, session=self._session).manifest
