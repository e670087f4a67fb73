"""Tell what people did in a published repo since the last publish, so that no publish undoes it.

A file that is not as the manifest lists it has one of two reasons.  Somebody committed another one: that stops a
publish, which names the commit.  Or an upload broke: then it has been so since the publish's own commit, which its
description tells from all others, and the next publish repairs it.  A pull request that was merged may hold more than
the publish proposed, so what is other there counts as somebody's work.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

from hubprune.cards.manifest import CARD, MANIFEST, RemoteManifest
from hubprune.cards.markdown import visible
from hubprune.core.artifacts import RepoFile
from hubprune.core.errors import EditedError
from hubprune.hub.remote import RemoteState, is_same, read_remote, remote_files
from hubprune.hub.session import HubSession

if TYPE_CHECKING:
    from huggingface_hub import GitCommitInfo

__all__ = ["RUN_LINE", "ForeignCommit", "Overwrite", "check_is_ours", "foreign_commits"]

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


# ---- who changed what ----------------------------------------------------------------------------------------------


def foreign_commits(remote: RemoteState, *, session: HubSession) -> tuple[ForeignCommit, ...]:
    """Find who changed or removed files of the last publish since, newest first; card and manifest are among them.

    Where everything is as the manifest lists it, nothing is asked.

    Args:
        remote: the repo at the commit that a publish would go on top of.
        session: which Hub.

    Raises:
        HubError: the Hub refused or did not answer.
    """
    if _is_as_published(remote) or not set(remote.files) - {".gitattributes"}:
        return ()
    history = _History(remote, session=session)
    published = history.last_publish()
    if published is None:
        return ()
    number, manifest = published
    changed = {path for path, file in manifest.listed.items() if not is_same(file, remote.files.get(path))}
    if history.id_of(MANIFEST, number) != history.id_of(MANIFEST, 0):
        changed.add(MANIFEST)
    found: dict[int, list[str]] = {}
    for path in sorted(changed):
        at = history.set_by(path, end=number)
        # What was so as soon as it was published was spoiled on its way, unless others had a hand in it.
        if at < number or not _is_direct(history.commits[number]):
            found.setdefault(at, []).append(path)
    return tuple(_foreign(history.commits[at], found[at]) for at in sorted(found))


def _is_as_published(remote: RemoteState) -> bool:
    manifest = remote.manifest
    return (
        manifest is not None
        and manifest.is_intact
        and all(is_same(file, remote.files.get(path)) for path, file in manifest.listed.items())
    )


def _is_direct(commit: GitCommitInfo) -> bool:
    """Tell whether a commit is as a publish sent it; a pull request may have been added to before it was merged."""
    return OWN_DESCRIPTION.fullmatch(commit.message.strip()) is not None


def _foreign(commit: GitCommitInfo, paths: Sequence[str]) -> ForeignCommit:
    return ForeignCommit(
        commit=commit.commit_id, title=commit.title, authors=tuple(commit.authors), paths=tuple(sorted(paths))
    )


class _History:
    """The commits up to the one that was read, newest first, and the files at each that is asked for."""

    def __init__(self, remote: RemoteState, *, session: HubSession) -> None:
        self._remote, self._session = remote, session
        self.commits: list[GitCommitInfo] = session.ask(
            lambda api: api.list_repo_commits(remote.repo_id, revision=remote.commit),
            doing=f"read the history of {remote.repo_id}",
        )
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


# ---- may it be replaced --------------------------------------------------------------------------------------------


def check_is_ours(
    remote: RemoteState,
    *,
    session: HubSession,
    overwrite: Overwrite = "nothing",
    coming: Sequence[RepoFile] = (),
) -> None:
    """Refuse to undo what people did in a repo: files of the last publish that were changed, and files of their own.

    Args:
        remote: the repo at the commit that a publish would go on top of.
        session: which Hub.
        overwrite: what may be replaced all the same.
        coming: files that the publish will send, as far as they are known; one that is there already is no conflict.

    Raises:
        EditedError: naming the repo, the files and the commits.
        HubError: the Hub refused or did not answer.
    """
    if overwrite == "everything":
        return
    kept = {file.path for file in coming if is_same(file, remote.files.get(file.path))}
    commits = foreign_commits(remote, session=session)
    if overwrite == "card":
        kept.add(CARD)
    changed = sorted({path for commit in commits for path in commit.paths} - kept)
    if changed:
        raise _edited(remote, changed, [commit for commit in commits if set(commit.paths) & set(changed)])
    if others := _in_the_way(remote, coming, kept=kept):
        raise EditedError(
            f"{_listed(others)} of {remote.repo_id} at {remote.commit[:8]} {_were(others)} not written by hubprune.",
            hint=_hint(others),
        )


def _in_the_way(remote: RemoteState, coming: Iterable[RepoFile], *, kept: set[str]) -> list[str]:
    owned = {*(remote.manifest.files if remote.manifest else ()), MANIFEST}
    return sorted({file.path for file in coming if file.path in remote.files} - owned - kept)


def _edited(remote: RemoteState, paths: Sequence[str], commits: Sequence[ForeignCommit]) -> EditedError:
    by_hand = "edited by hand" if paths == [CARD] else "changed or removed"
    where = "; ".join(map(str, commits[:NAMED]))
    more = f" and {len(commits) - NAMED} more" if len(commits) > NAMED else ""
    return EditedError(
        f"{_listed(paths)} of {remote.repo_id} {_were(paths)} {by_hand} since the last publish: {where}{more}.",
        hint=_hint(paths),
        commits=[asdict(commit) for commit in commits],
    )


def _hint(paths: Sequence[str]) -> str:
    if list(paths) == [CARD]:
        return "Pass --overwrite-card to replace it; the old one stays in the history."
    return "Pass --overwrite to replace what is there, which stays in the history, or publish elsewhere with --repo-id."


def _listed(paths: Sequence[str]) -> str:
    named = [*map(visible, paths[:NAMED]), *([f"{len(paths) - NAMED} more"] if len(paths) > NAMED else [])]
    return " and ".join(filter(None, (", ".join(named[:-1]), named[-1])))


def _were(paths: Sequence[str]) -> str:
    return "was" if len(paths) == 1 else "were"
