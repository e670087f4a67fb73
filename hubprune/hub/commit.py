"""One publish is one commit: all of it or nothing, whatever the network does."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hubprune.cards.manifest import files_digest
from hubprune.core.artifacts import BaseCheckpoint, PublishedCommit, RepoFile
from hubprune.core.console import Reporter
from hubprune.core.errors import ConflictError, HubError
from hubprune.core.extras import client_library
from hubprune.core.files import list_files

# fmt: off
# isort: off
from hubprune.hub.remote import (
    RECENT_PULL_REQUESTS, RUN_LINE, Overwrite, check_is_ours, check_remote, head_of, history, missing, number_of,
    pull_request, pull_request_heads, read_remote, stale, without_restated,
)
# isort: on
# fmt: on
from hubprune.hub.retry import advising, is_transient, status_of, translate, wait_seconds
from hubprune.hub.session import HubSession
from hubprune.hub.target import Target, branch_of
from hubprune.hub.transfer import ByteCounter, addition, observed_uploads
from hubprune.hub.upload_plan import prime, shards_to_show

if TYPE_CHECKING:
    from huggingface_hub import GitCommitInfo, HfApi

COMMIT_ATTEMPTS = 4


@dataclass(frozen=True, kw_only=True)
class _Change:
    """The one commit to make."""

    target: Target
    parent: str
    folder: Path
    before: Mapping[str, RepoFile]
    """All files of the parent, by path."""
    files: tuple[RepoFile, ...]
    """What the repo is to hold of this publish; files that were only restated are left out."""
    upload: tuple[RepoFile, ...]
    """Those of the files that are not there."""
    delete: tuple[str, ...]
    base: BaseCheckpoint | None
    """By which the Hub is asked, before the upload, for the chunks that it has; None to leave that out."""
    message: str
    digest: str
    word: str = field(default_factory=lambda: secrets.token_hex(4))
    """Tells this commit from one that another publisher makes of the same files."""


@dataclass(frozen=True, kw_only=True)
class _Landed:
    """A commit that is on the Hub."""

    commit: str
    pull_request_url: str | None = None
    is_new: bool = True
    """False for one that an earlier run made, or another publisher of the same files."""


def publish(
    folder: Path,
    *,
    target: Target,
    message: str,
    session: HubSession,
    reporter: Reporter,
    files: tuple[RepoFile, ...] | None = None,
    base: BaseCheckpoint | None = None,
    tag: str | None = None,
    overwrite: Overwrite = "nothing",
) -> PublishedCommit:
    """Put a folder into its repo with one commit, compare what arrived, and tag it.

    Files that are there already are not sent, and where all are, no commit is made.  Files that the publish before
    owned and this one does not have are deleted in the same commit; nobody else's are touched.

    Args:
        files: from `write_manifest`, so that the folder is not hashed again; None to hash it.
        base: of which the weights are a part, so that the Hub is asked first which of its chunks it has; None to leave
            that out.
        tag: name to give the commit, unless it is a pull request; a tag that exists stays where it is.
        overwrite: what may be replaced of what people changed there.

    Raises:
        EditedError: somebody changed files of the publish before, or has others that are in the way.
        ConflictError: somebody else committed meanwhile.
        RemoteMismatchError: what arrived is not what was sent.
        RecipeError: the repo is public by now, and the result is to be private.
    """
    files = list_files(folder) if files is None else files
    digest, repo_id = files_digest(files), target.repo_id
    with branch_of(target, session=session) as parent:
        _check_head(parent, target=target, digest=digest, session=session)
        remote = read_remote(repo_id, commit=parent, session=session)
        check_is_ours(remote, session=session, overwrite=overwrite, coming=files)
        files = files if overwrite != "nothing" else without_restated(files, folder=folder, remote=remote)
        change = _Change(
            target=target, parent=parent, folder=folder, message=message, digest=digest, files=files, base=base,
            upload=missing(files, remote=remote), before=remote.files, delete=stale(files, remote=remote),
        )  # fmt: skip
        change, landed = _land(change, session=session, reporter=reporter)
    commit, is_new = (landed.commit, landed.is_new) if landed else (parent, False)
    # A pull request gets its name when it is merged; where its files are there already, nothing will be.
    wanted = tag if not target.create_pr or (target.staged and landed is None) else None
    with advising(f"The commit {commit[:8]} is on {repo_id}; the same command does what is left."):
        arrived = check_remote(change.files, gone=change.delete, repo_id=repo_id, commit=commit, session=session)
        given = tag_commit(wanted, repo_id=repo_id, commit=commit, session=session)
    return PublishedCommit(
        repo_id=repo_id, commit=commit, parent=parent if is_new else None, created=is_new, tag=given,
        url=f"{session.endpoint}/{repo_id}/commit/{commit}", files=arrived,
        pull_request_url=landed.pull_request_url if landed else None,
    )  # fmt: skip


def tag_commit(tag: str | None, *, repo_id: str, commit: str, session: HubSession) -> str | None:
    """Give a commit a name, and return it; a tag that exists stays where it is."""
    if tag is not None:
        doing = f"tag {repo_id}"
        session.ask(lambda api: api.create_tag(repo_id, tag=tag, revision=commit, exist_ok=True), doing=doing)
    return tag


# ---- whose commit it is ------------------------------------------------------------------------------------------


def _check_head(head: str, *, target: Target, digest: str, session: HubSession) -> None:
    """Refuse to commit on top of what was not there before the run, unless it is this very publish, cut off."""
    if head == target.parent:
        return
    commits = history(target.repo_id, revision=head, session=session)
    expected = target.parent or (commits[1].commit_id if len(commits) > 1 else head)
    is_new = target.parent is None and len(commits) <= 1
    if not is_new and not _says_ours(commits, digest=digest, parent=expected):
        raise _conflict(target, seen=target.parent or "not there yet", now=head)


def _conflict(target: Target, *, seen: str, now: str) -> ConflictError:
    return ConflictError(
        f"Somebody else committed to {target.repo_id}: {target.revision} was at {seen} and is at {now} now.",
        hint="Nothing was changed. Run the command again to publish on top of it.",
    )


def _says_ours(commits: Sequence[GitCommitInfo], *, digest: str, parent: str) -> bool:
    """Return whether the newest commit is this publish's, and on top of the right one; "" is any publish's digest."""
    says = f"{commits[0].title}\n{commits[0].message}" if commits else ""
    return RUN_LINE + digest in says and len(commits) > 1 and commits[1].commit_id == parent


# ---- the commit --------------------------------------------------------------------------------------------------


def _land(change: _Change, *, session: HubSession, reporter: Reporter) -> tuple[_Change, _Landed | None]:
    """Make the commit, or none where nothing changes or an earlier run proposed the same; say what it holds."""
    from huggingface_hub.utils.tqdm import disable_progress_bars

    target = change.target
    if not (change.upload or change.delete):
        return change, None
    if target.create_pr and (proposed := _proposed(change, session=session)):
        return proposed
    total = sum(f.size for f in change.upload)
    with disable_progress_bars():
        if base := change.base:
            shown = shards_to_show(base, upload=change.upload)
            prime(shown, base=base, target=target, session=session, reporter=reporter)
        with reporter.progress(f"upload to {target.repo_id}", total=total, unit="B") as advance:
            counter = ByteCounter(advance, total=total)
            with observed_uploads(counter):
                landed = _commit(change, session=session, counter=counter)
            counter.finish()
    return change, landed


def _commit(change: _Change, *, session: HubSession, counter: ByteCounter) -> _Landed:
    """Post the commit; where the answer is an error, look at the Hub before anything is done again."""
    repo_id = change.target.repo_id
    unseen = f"Whether {repo_id} has the commit could not be seen: the same command finds out."
    proposals = frozenset(pull_request_heads(repo_id, session=session)) if change.target.create_pr else frozenset()
    for attempt in range(1, COMMIT_ATTEMPTS + 1):
        api = session.api
        try:
            sent = _post(change, api=api, counter=counter)
            # Where the branch has all files by now, the client sends nothing and names its head, whosever that is.
            commits = history(repo_id, revision=sent.commit, session=session)
            if not _says_ours(commits, digest=change.digest, parent=change.parent):
                raise _conflict(change.target, seen=change.parent, now=sent.commit)
            return replace(sent, is_new=change.word in commits[0].message)
        except (OSError, RuntimeError, ValueError, client_library().HTTPError) as error:
            with advising(unseen, but=(ConflictError,)):
                landed = _recover(change, known=proposals, session=session)
            if landed:
                return landed
            # An upload may take longer than a short-lived token lasts; what has arrived is not sent again.
            renewed = session.api.token != api.token
            # A 412 while the head did not move is a commit of somebody else that was taken back, or a stale answer.
            again = renewed or is_transient(error) or status_of(error) == 412
            if attempt == COMMIT_ATTEMPTS or not again:
                raise translate(error, doing=f"commit to {repo_id}", endpoint=session.endpoint) from error
            time.sleep(wait_seconds(error, attempt=attempt))
    raise HubError(f"Cannot commit to {repo_id}.")  # pragma: no cover - the loop returns or raises


def _post(change: _Change, *, api: HfApi, counter: ByteCounter) -> _Landed:
    from huggingface_hub import CommitOperationDelete

    # The client writes into operations, so each attempt gets fresh ones.
    adds = [addition(f.path, source=change.folder / f.path, counter=counter) for f in change.upload]
    deletes = [CommitOperationDelete(path_in_repo=path, is_folder=False) for path in change.delete]
    info = api.create_commit(
        change.target.repo_id, [*adds, *deletes], commit_message=change.message,
        commit_description=f"{RUN_LINE}{change.digest} {change.word}", revision=change.target.revision,
        parent_commit=change.parent, create_pr=change.target.create_pr,
    )  # fmt: skip
    return _Landed(commit=info.oid, pull_request_url=info.pr_url)


def _recover(change: _Change, *, known: frozenset[str], session: HubSession) -> _Landed | None:
    """Look at the Hub after an error: None where nothing happened, our commit where only the answer was lost.

    The same files on top of the same parent are no conflict either, whoever was faster.

    Raises:
        ConflictError: the branch has somebody else's commit.
    """
    target = change.target
    if target.create_pr:
        heads = pull_request_heads(target.repo_id, session=session)
        for ref in (ref for ref in heads if ref not in known):
            commits = history(target.repo_id, revision=heads[ref], session=session)
            is_ours = _says_ours(commits, digest=change.digest, parent=change.parent)
            if is_ours and change.word in commits[0].message:
                url = f"{session.endpoint}/{target.repo_id}/discussions/{number_of(ref)}"
                return _Landed(commit=heads[ref], pull_request_url=url)
        return None
    head = head_of(target.repo_id, branch=target.revision, session=session)
    if head == change.parent:
        return None
    commits = history(target.repo_id, revision=head, session=session) if head else []
    if head and _says_ours(commits, digest=change.digest, parent=change.parent):
        return _Landed(commit=head, is_new=change.word in commits[0].message)
    raise _conflict(target, seen=change.parent, now=str(head))


def _proposed(change: _Change, *, session: HubSession) -> tuple[_Change, _Landed] | None:
    """Find an open pull request of an earlier run that changes the same parent to the same files."""
    repo_id = change.target.repo_id
    heads = pull_request_heads(repo_id, session=session)
    for ref, head in list(heads.items())[:RECENT_PULL_REQUESTS]:
        commits = history(repo_id, revision=head, session=session)
        if not _says_ours(commits, digest="", parent=change.parent):
            continue
        remote = read_remote(repo_id, commit=head, session=session)
        files = without_restated(change.files, folder=change.folder, remote=remote)
        # Anybody can propose ours, with something beside them: all other files have to be the parent's.
        ours, gone = {file.path for file in change.files} | set(change.delete), set(change.delete)
        kept = {path: file.git_oid for path, file in change.before.items() if path not in ours}
        others = {path: file.git_oid for path, file in remote.files.items() if path not in ours}
        if missing(files, remote=remote) or kept != others or gone & set(remote.files):
            continue
        if pull_request(repo_id, number_of(ref), session=session).status in ("open", "draft"):
            url = f"{session.endpoint}/{repo_id}/discussions/{number_of(ref)}"
            return replace(change, files=files), _Landed(commit=head, pull_request_url=url, is_new=False)
    return None
