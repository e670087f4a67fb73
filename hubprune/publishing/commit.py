"""One publish is one commit: all of it or nothing, whatever the network does."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubprune.artifacts import PublishedCommit, RepoFile
from hubprune.console import Reporter
from hubprune.errors import ConflictError, HubError
from hubprune.files import list_files
from hubprune.publishing.manifest import CARD, MANIFEST, files_digest, read_manifest
from hubprune.publishing.preflight import Target
from hubprune.publishing.remote import RemoteState, check_card_is_ours, check_remote, head_of, is_same, read_remote
from hubprune.publishing.retry import BUSY, is_transient, translate, wait_seconds
from hubprune.publishing.session import HubSession
from hubprune.publishing.transfer import ByteCounter, addition, observed_uploads

if TYPE_CHECKING:
    from huggingface_hub import GitCommitInfo, HfApi

__all__ = ["RUN_LINE", "publish"]

RUN_LINE = "hubprune-run: "
"""Line in a commit's description; the digest after it tells our commit from everybody else's."""
COMMIT_ATTEMPTS = 4


@dataclass(frozen=True, kw_only=True)
class _Change:
    """The one commit to make."""

    target: Target
    parent: str
    folder: Path
    upload: tuple[RepoFile, ...]
    delete: tuple[str, ...]
    message: str
    digest: str

    @property
    def upload_bytes(self) -> int:
        return sum(f.size for f in self.upload)


@dataclass(frozen=True, kw_only=True)
class _Landed:
    """A commit that is on the Hub."""

    commit: str
    pull_request_url: str | None = None


def publish(
    folder: Path,
    *,
    target: Target,
    message: str,
    session: HubSession,
    reporter: Reporter,
    tag: str | None = None,
    overwrite_card: bool = False,
) -> PublishedCommit:
    """Put a folder into its repo with one commit, compare what arrived, and tag it.

    Files that are there already are not sent, and where all are, no commit is made.  Files that the publish before
    owned and this one does not have are deleted in the same commit; nobody else's are touched.

    Args:
        folder: the checkpoint with README.md, recipe.yaml and hubprune.json.
        target: from `preflight`; the commit goes on top of the one that was seen there.
        message: first line of the commit.
        session: which Hub, and as whom.
        reporter: shows the upload.
        tag: name to give the commit, unless it is a pull request; a tag that exists stays where it is.
        overwrite_card: whether a card that was edited by hand may be replaced.

    Raises:
        ConflictError: somebody else committed meanwhile, or edited the card.
        RemoteMismatchError: what arrived is not what was sent.
        HubError: the Hub refused or did not answer.
    """
    files = list_files(folder)
    digest = files_digest(files)
    with _repo(target, session=session) as found:
        parent = _check_head(found, target=target, digest=digest, session=session)
        remote = read_remote(target.repo_id, commit=parent, session=session)
        card = next((f.sha256 for f in files if f.path == CARD), None)
        check_card_is_ours(remote, overwrite_card=overwrite_card, new_sha256=card)
        files = _without_restated(files, folder=folder, remote=remote, overwrite_card=overwrite_card)
        change = _Change(
            target=target, parent=parent, folder=folder, message=message, digest=digest,
            upload=tuple(f for f in files if not is_same(f, remote.files.get(f.path))),
            delete=_stale(files, remote=remote),
        )  # fmt: skip
        landed = _land(change, session=session, reporter=reporter)
    commit = landed.commit if landed else parent
    arrived = check_remote(files, gone=change.delete, repo_id=target.repo_id, commit=commit, session=session)
    given = _tag(tag, target=target, commit=commit, session=session)
    return PublishedCommit(
        repo_id=target.repo_id, commit=commit, parent=parent if landed else None, created=landed is not None, tag=given,
        url=f"{session.endpoint}/{target.repo_id}/commit/{commit}", files=arrived,
        pull_request_url=landed.pull_request_url if landed else None,
    )  # fmt: skip


# ---- what changes ------------------------------------------------------------------------------------------------


def _without_restated(
    files: tuple[RepoFile, ...], *, folder: Path, remote: RemoteState, overwrite_card: bool
) -> tuple[RepoFile, ...]:
    """Leave out card and manifest where they only tell other wall-clock times than those on the Hub.

    A run that was done again gives the same checkpoint and the same figures, but never takes the same seconds.
    """
    path = folder / MANIFEST
    ours = read_manifest(path.read_bytes()).content_sha256 if path.is_file() else None
    theirs = remote.manifest.content_sha256 if remote.manifest else None
    if overwrite_card or ours is None or ours != theirs:
        return files
    same = tuple(f for f in files if is_same(f, remote.files.get(f.path)))
    restated = {f.path for f in files} - {f.path for f in same}
    return same if restated <= {CARD, MANIFEST} & set(remote.files) else files


def _stale(files: tuple[RepoFile, ...], *, remote: RemoteState) -> tuple[str, ...]:
    owned = set(remote.manifest.files) if remote.manifest else set()
    kept = {f.path for f in files} | {CARD, MANIFEST}
    return tuple(sorted((owned & set(remote.files)) - kept))


# ---- the repo ----------------------------------------------------------------------------------------------------


@contextmanager
def _repo(target: Target, *, session: HubSession) -> Iterator[str]:
    """Yield the head of the target, which is created where it is missing.

    A repo that was created here is deleted again when the block fails and left no commit in it.
    """
    if target.exists:
        yield _existing_head(target, session=session)
        return
    created = _create(target, session=session)
    try:
        if target.revision != "main":
            _create_branch(target, session=session)
        yield str(head_of(target.repo_id, revision=target.revision, session=session))
    except BaseException:
        # Ctrl-C and a lost answer end here too.  The commit may have landed after all: then the repo stays.
        if created:
            with suppress(Exception):
                _delete_if_untouched(target, session=session)
        raise


def _existing_head(target: Target, *, session: HubSession) -> str:
    if not target.branch_exists:
        _create_branch(target, session=session)
    head = head_of(target.repo_id, revision=target.revision, session=session)
    if head is None:
        raise ConflictError(f"The branch {target.revision} of {target.repo_id} was deleted during the run.")
    return head


def _create(target: Target, *, session: HubSession) -> bool:
    """Create the repo, or find that it exists by now; return whether it is certainly ours.

    This is the one request of `HfApi.create_repo`, which would repeat it for ever while the Hub is busy.
    """
    namespace, name = target.repo_id.split("/")
    body: dict[str, Any] = {"name": name, "organization": namespace, "type": "model"}
    if target.private:
        body["visibility"] = "private"
    answer = session.post("/api/repos/create", body=body, doing=f"create {target.repo_id}", accepted=(409,), busy=BUSY)
    return answer.status != 409


def _create_branch(target: Target, *, session: HubSession) -> None:
    session.ask(
        lambda api: api.create_branch(target.repo_id, branch=target.revision, revision=target.parent, exist_ok=True),
        doing=f"create the branch {target.revision} of {target.repo_id}",
    )


def _delete_if_untouched(target: Target, *, session: HubSession) -> None:
    api = session.api
    branches = [branch.name for branch in api.list_repo_refs(target.repo_id).branches]
    if all(len(api.list_repo_commits(target.repo_id, revision=branch)) <= 1 for branch in branches):
        api.delete_repo(target.repo_id, missing_ok=True)


def _check_head(head: str, *, target: Target, digest: str, session: HubSession) -> str:
    """Refuse to commit on top of what was not there before the run, unless it is this very publish, cut off."""
    if head == target.parent:
        return head
    commits = _history(target, revision=head, session=session)
    expected = target.parent or (commits[1].commit_id if len(commits) > 1 else head)
    is_new = target.parent is None and len(commits) <= 1
    if is_new or _says_ours(commits, digest=digest, parent=expected):
        return head
    raise _conflict(target, seen=target.parent or "not there yet", now=head)


def _conflict(target: Target, *, seen: str, now: str) -> ConflictError:
    return ConflictError(
        f"Somebody else committed to {target.repo_id}: {target.revision} was at {seen} and is at {now} now.",
        hint="Nothing was changed. Run the command again to publish on top of it.",
    )


# ---- the commit --------------------------------------------------------------------------------------------------


def _land(change: _Change, *, session: HubSession, reporter: Reporter) -> _Landed | None:
    """Make the commit, or none where nothing changes."""
    if not (change.upload or change.delete):
        return None
    from huggingface_hub.utils.tqdm import disable_progress_bars

    label = f"upload to {change.target.repo_id}"
    with disable_progress_bars(), reporter.progress(label, total=change.upload_bytes, unit="B") as advance:
        counter = ByteCounter(advance, total=change.upload_bytes)
        with observed_uploads(counter):
            landed = _commit(change, session=session, counter=counter)
        counter.finish()
    return landed


def _commit(change: _Change, *, session: HubSession, counter: ByteCounter) -> _Landed:
    """Post the commit; where the answer is an error, look at the Hub before anything is done again."""
    proposals = _pull_requests(change, session=session)
    for attempt in range(1, COMMIT_ATTEMPTS + 1):
        try:
            return _post(change, api=session.api, counter=counter)
        except (OSError, RuntimeError, ValueError, _http_error()) as error:
            landed = _recover(change, known=proposals, session=session)
            if landed:
                return landed
            if attempt == COMMIT_ATTEMPTS or not (is_transient(error) or _is_race(error)):
                raise translate(error, doing=f"commit to {change.target.repo_id}", endpoint=session.endpoint) from error
            time.sleep(wait_seconds(error, attempt=attempt))
    raise HubError(f"Cannot commit to {change.target.repo_id}.")  # pragma: no cover - the loop returns or raises


def _http_error() -> type[Exception]:
    import httpx2

    return httpx2.HTTPError


def _is_race(error: Exception) -> bool:
    """A 412 while the head did not move is a commit of somebody else that was taken back, or a stale answer."""
    return getattr(getattr(error, "response", None), "status_code", None) == 412


def _post(change: _Change, *, api: HfApi, counter: ByteCounter) -> _Landed:
    from huggingface_hub import CommitOperationDelete

    # The client writes into operations, so each attempt gets fresh ones.
    adds = [addition(f.path, source=change.folder / f.path, counter=counter) for f in change.upload]
    deletes = [CommitOperationDelete(path_in_repo=path, is_folder=False) for path in change.delete]
    info = api.create_commit(
        change.target.repo_id,
        [*adds, *deletes],
        commit_message=change.message,
        commit_description=RUN_LINE + change.digest,
        revision=change.target.revision,
        parent_commit=change.parent,
        create_pr=change.target.create_pr,
    )
    return _Landed(commit=info.oid, pull_request_url=info.pr_url)


def _recover(change: _Change, *, known: frozenset[str], session: HubSession) -> _Landed | None:
    """Look at the Hub after an error: None where nothing happened, our commit where only the answer was lost.

    Raises:
        ConflictError: the branch has somebody else's commit.
    """
    target = change.target
    if target.create_pr:
        return _recover_pull_request(change, known=known, session=session)
    head = head_of(target.repo_id, revision=target.revision, session=session)
    if head == change.parent:
        return None
    if head and _is_ours(head, change=change, session=session):
        return _Landed(commit=head)
    raise _conflict(target, seen=change.parent, now=str(head))


def _is_ours(head: str, *, change: _Change, session: HubSession) -> bool:
    commits = _history(change.target, revision=head, session=session)
    return _says_ours(commits, digest=change.digest, parent=change.parent)


def _history(target: Target, *, revision: str, session: HubSession) -> list[GitCommitInfo]:
    """List commits, newest first."""
    return session.ask(
        lambda api: api.list_repo_commits(target.repo_id, revision=revision),
        doing=f"read the history of {target.repo_id}",
    )


def _says_ours(commits: Sequence[GitCommitInfo], *, digest: str, parent: str) -> bool:
    """Return whether the newest commit is this publish's, and on top of the right one."""
    says = f"{commits[0].title}\n{commits[0].message}" if commits else ""
    return RUN_LINE + digest in says and len(commits) > 1 and commits[1].commit_id == parent


def _pull_requests(change: _Change, *, session: HubSession) -> frozenset[str]:
    return frozenset(_pull_request_heads(change, session=session)) if change.target.create_pr else frozenset()


def _pull_request_heads(change: _Change, *, session: HubSession) -> dict[str, str]:
    refs = session.ask(
        lambda api: api.list_repo_refs(change.target.repo_id, include_pull_requests=True),
        doing=f"list the pull requests of {change.target.repo_id}",
    )
    return {ref.ref: ref.target_commit for ref in refs.pull_requests or ()}


def _recover_pull_request(change: _Change, *, known: frozenset[str], session: HubSession) -> _Landed | None:
    heads = _pull_request_heads(change, session=session)
    for ref, head in heads.items():
        if ref not in known and _is_ours(head, change=change, session=session):
            url = f"{session.endpoint}/{change.target.repo_id}/discussions/{ref.rsplit('/', 1)[-1]}"
            return _Landed(commit=head, pull_request_url=url)
    return None


def _tag(tag: str | None, *, target: Target, commit: str, session: HubSession) -> str | None:
    if tag is None or target.create_pr:
        return None
    session.ask(
        lambda api: api.create_tag(target.repo_id, tag=tag, revision=commit, exist_ok=True),
        doing=f"tag {target.repo_id}",
    )
    return tag
