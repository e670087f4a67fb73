"""What becomes of a pull request: what it changes, what is in its way, and its merge into main."""

from collections.abc import Sequence

from hubprune.localhub.discussions import TARGET, Discussion, Discussions, Event
from hubprune.localhub.git import GitRepo, LoggedCommit, RefMove
from hubprune.localhub.merging import difference, merge_trees, squash
from hubprune.localhub.refusal import RefusedError


def events_of(git: GitRepo, discussion: Discussion) -> list[Event]:
    """List what has happened in a discussion, the commits of a pull request among it, oldest first."""
    commits = [_commit_event(commit) for commit in Discussions(git).commits(discussion)]
    opened, *later = discussion.events
    # To the second, as git keeps time; a commit comes before what was said in the same second.
    return [opened, *sorted([*commits, *later], key=lambda event: event.created_at[:19])]


def conflicts_of(git: GitRepo, discussion: Discussion) -> list[str]:
    """List the files that keep a pull request from being merged; none for what needs no merge."""
    if discussion.is_closed or not discussion.is_pull_request:
        return []
    return list(merge_trees(git, git.resolve(TARGET), git.resolve(discussion.ref)).conflicts)


def difference_of(git: GitRepo, discussion: Discussion) -> str:
    """Return what a pull request changes, as git writes it."""
    return difference(git, discussion.base or TARGET, git.resolve(discussion.ref))


def merge(git: GitRepo, number: int, *, author: str, remark: Event | None) -> Discussion:
    """Bring the changes of a pull request into main as one commit, in one step with its new status."""
    discussions = Discussions(git)

    def merged(discussion: Discussion) -> tuple[Discussion, Sequence[RefMove]]:
        """Return the merged pull request, and the move of main."""
        _check_open(discussion)
        old, commits = git.resolve(TARGET), discussions.commits(discussion)
        outcome = merge_trees(git, old, git.resolve(discussion.ref))
        if outcome.conflicts:
            raise RefusedError(409, f"This pull request has conflicts with main: {', '.join(outcome.conflicts)}")
        new = squash(git, outcome.tree, parent=old, message=_message(discussion, commits), author=author)
        event = Event(type="status-change", author=author, data={"status": "merged"})
        said = discussion.with_event(remark) if remark else discussion
        return said.with_event(event, status="merged", merge_commit=new), [RefMove(TARGET, new, old)]

    return discussions.change(number, merged)


def _check_open(discussion: Discussion) -> None:
    if not discussion.is_pull_request:
        raise RefusedError(400, "Only a pull request can be merged")
    if discussion.status != "open":
        raise RefusedError(400, f"Only an open pull request can be merged, and this one is {discussion.status}")


def _message(discussion: Discussion, commits: Sequence[LoggedCommit]) -> str:
    """Name the pull request, and its commits with their hashes."""
    lines = "".join(f"- {commit.title} ({commit.sha})\n" for commit in commits)
    return f"{discussion.title} (#{discussion.number})\n\n{lines}"


def _commit_event(commit: LoggedCommit) -> Event:
    data = {"subject": commit.title, "oid": commit.sha}
    return Event(id=commit.sha[:24], type="commit", author=commit.author, created_at=commit.date, data=data)
