"""Discussions and pull requests: open, list, answer, rename, close, merge.

What becomes of a pull request: what it changes, what is in its way, and its merge into main.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from hubprune.localhub.access import Account
from hubprune.localhub.cards import render
from hubprune.localhub.discussions import (
    TARGET,
    Discussion,
    Discussions,
    Event,
    Status,
    comment,
    difference,
    merge_trees,
    squash,
)
from hubprune.localhub.git import GitRepo, LoggedCommit, RefMove
from hubprune.localhub.hub import Repo
from hubprune.localhub.names import RefusedError, timestamp
from hubprune.localhub.web import REPO, Call, HubRoutes, field, number_of, route, text_field

# ---- proposals -----------------------------------------------------------------------------------------------------


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


# ---- routes discussions --------------------------------------------------------------------------------------------


_PER_PAGE = 30
_MAX_TITLE = 200
_MAX_TEXT = 65_536
_LISTED_AS: dict[str, tuple[Status, ...]] = {"open": ("open", "draft"), "closed": ("closed", "merged")}


class DiscussionRoutes(HubRoutes):
    """Handlers for what people say about a repository, and what they propose."""

    def routes(self) -> list[Route]:
        """Return the routes of this part."""
        one = f"{REPO}/discussions/{{number}}"
        return [
            route(f"{REPO}/discussions", self.listing),
            route(f"{REPO}/discussions", self.open, method="POST"),
            route(one, self.details),
            route(f"{one}/comment", self.comment, method="POST"),
            route(f"{one}/comment/{{event}}/edit", self.edit, method="POST"),
            route(f"{one}/comment/{{event}}/hide", self.hide, method="POST"),
            route(f"{one}/title", self.rename, method="POST"),
            route(f"{one}/status", self.change_status, method="POST"),
            route(f"{one}/merge", self.merge, method="POST"),
        ]

    def listing(self, call: Call) -> Response:
        """List discussions and pull requests, newest first."""
        repo, kind, author = self.repo(call, "see"), call.query.get("type", "all"), call.query.get("author")
        status = call.query.get("status", "all")
        if kind not in ("all", "discussion", "pull_request") or status not in ("all", *_LISTED_AS):
            raise RefusedError(400, "type is discussion or pull_request, status is open or closed")
        page = call.query.get("p", "0")
        start = int(page) * _PER_PAGE if page.isascii() and page.isdigit() and len(page) < 7 else 0
        found = [
            discussion
            for discussion in Discussions(repo.git).all()
            if (kind == "all" or discussion.is_pull_request == (kind == "pull_request"))
            and (status == "all" or discussion.status in _LISTED_AS[status])
            and (not author or discussion.author == author)
        ]
        rows = [_row(repo, discussion) for discussion in found[start : start + _PER_PAGE]]
        return JSONResponse({"discussions": rows, "count": len(found), "start": start})

    def open(self, call: Call) -> Response:
        """Start a discussion, or a pull request that has no commits yet: a draft until its author opens it."""
        repo, account, body = self.repo(call, "propose"), self.known_caller(call), call.json()
        title, text = _title(body), _text(body, "description")
        proposes = field(body, "pullRequest", bool, False)
        head = repo.git.resolve(TARGET) if proposes else None
        made = Discussions(repo.git).open(title, text, author=account.name, head=head, draft=proposes)
        url = f"{call.origin}{repo.web_path()}/discussions/{made.number}"
        return JSONResponse({"num": made.number, "url": url, "pullRequest": proposes})

    def details(self, call: Call) -> Response:
        """Tell everything about a discussion; of a pull request also what it changes and what is in its way."""
        repo = self.repo(call, "read")
        discussion = Discussions(repo.git).get(number_of(call))
        answer = {**_row(repo, discussion), "events": [_event(event) for event in events_of(repo.git, discussion)]}
        if discussion.is_pull_request:
            answer |= _proposal(repo, discussion, with_diff=call.flag("diff"))
        return JSONResponse(answer)

    def comment(self, call: Call) -> Response:
        """Say something."""
        repo, account = self.repo(call, "propose"), self.known_caller(call)
        said = comment(_text(call.json(), "comment"), author=account.name)
        Discussions(repo.git).change(number_of(call), lambda discussion: (discussion.with_event(said), ()))
        return JSONResponse({"newMessage": _event(said)})

    def edit(self, call: Call) -> Response:
        """Replace the text of one's own comment; what it was before is kept."""
        text = _text(call.json(), "content")
        now = timestamp(time.time())

        def edited(event: Event, account: Account) -> Event:
            """Return the comment with the new text."""
            if event.author != account.name:
                raise RefusedError(403, "A comment can be edited by its author only")
            latest = {"raw": text, "updatedAt": now, "author": {"name": account.name}}
            history = [*event.data["history"], event.data["latest"]]
            return replace(event, data={**event.data, "edited": True, "latest": latest, "history": history})

        return self._change_comment(call, edited)

    def hide(self, call: Call) -> Response:
        """Take the text of a comment away for good."""
        repo = self.repo(call, "propose")

        def hidden(event: Event, account: Account) -> Event:
            """Return the comment without its text."""
            if event.author != account.name and not account.may_write(repo.repo_id):
                raise RefusedError(403, "A comment can be hidden by its author and by those who may write only")
            latest = {**event.data["latest"], "raw": ""}
            return replace(event, data={**event.data, "hidden": True, "latest": latest, "history": []})

        return self._change_comment(call, hidden)

    def rename(self, call: Call) -> Response:
        """Change the title."""
        repo, account, title = self.repo(call, "propose"), self.known_caller(call), _title(call.json())
        events: list[Event] = []

        def renamed(discussion: Discussion) -> tuple[Discussion, Sequence[RefMove]]:
            """Return the discussion under its new title."""
            _check_owner(repo, discussion, account)
            data = {"from": discussion.title, "to": title}
            events[:] = [Event(type="title-change", author=account.name, data=data)]
            return discussion.with_event(events[0], title=title), ()

        Discussions(repo.git).change(number_of(call), renamed)
        return JSONResponse({"newTitle": _event(events[0])})

    def change_status(self, call: Call) -> Response:
        """Close a discussion or pull request, or open it (again)."""
        repo, account, body = self.repo(call, "propose"), self.known_caller(call), call.json()
        status = field(body, "status", str)
        if status not in ("open", "closed"):
            raise RefusedError(400, "status is open or closed")
        said = _remark(body, account)
        event = Event(type="status-change", author=account.name, data={"status": status})

        def changed(discussion: Discussion) -> tuple[Discussion, Sequence[RefMove]]:
            """Return the discussion with its new status."""
            _check_owner(repo, discussion, account)
            if discussion.status == "merged":
                raise RefusedError(400, "This pull request is merged, which cannot be undone")
            return _after(discussion, said).with_event(event, status=status), ()

        Discussions(repo.git).change(number_of(call), changed)
        return JSONResponse({"newStatus": _event(event)})

    def merge(self, call: Call) -> Response:
        """Bring the changes of a pull request into main."""
        repo, account = self.repo(call, "write"), self.known_caller(call)
        done = merge(repo.git, number_of(call), author=account.name, remark=_remark(call.json(), account))
        return JSONResponse({"success": True, "mergeCommitId": done.merge_commit})

    def _change_comment(self, call: Call, edit: Callable[[Event, Account], Event]) -> Response:
        repo, account, wanted = self.repo(call, "propose"), self.known_caller(call), call.params["event"]
        result: list[Event] = []

        def changed(discussion: Discussion) -> tuple[Discussion, Sequence[RefMove]]:
            """Return the discussion with the changed comment in the place of the old one."""
            found = [event for event in discussion.events if event.id == wanted and event.type == "comment"]
            if not found:
                raise RefusedError(404, "Comment not found")
            result[:] = [edit(found[0], account)]
            events = (result[0] if event is found[0] else event for event in discussion.events)
            return replace(discussion, events=tuple(events)), ()

        Discussions(repo.git).change(number_of(call), changed)
        return JSONResponse({"updatedComment": _event(result[0])})


def _title(body: dict[str, Any]) -> str:
    title = " ".join(text_field(body, "title").split())
    if not 0 < len(title) <= _MAX_TITLE:
        raise RefusedError(400, f"A title has 1 to {_MAX_TITLE} characters")
    return title


def _text(body: dict[str, Any], name: str) -> str:
    text = text_field(body, name).strip()
    if not 0 < len(text) <= _MAX_TEXT:
        raise RefusedError(400, f"{name} has 1 to {_MAX_TEXT} characters")
    return text


def _remark(body: dict[str, Any], account: Account) -> Event | None:
    """Return the comment that comes along with a change of status."""
    return comment(_text(body, "comment"), author=account.name) if body.get("comment") else None


def _after(discussion: Discussion, said: Event | None) -> Discussion:
    return discussion.with_event(said) if said else discussion


def _check_owner(repo: Repo, discussion: Discussion, account: Account) -> None:
    if discussion.author != account.name and not account.may_write(repo.repo_id):
        raise RefusedError(403, "Only its author and those who may write to the repository can change that")


def _row(repo: Repo, discussion: Discussion) -> dict[str, Any]:
    """Describe a discussion as a list does."""
    return {
        "num": discussion.number,
        "title": discussion.title,
        "author": {"name": discussion.author},
        "createdAt": discussion.created_at,
        "status": discussion.status,
        "isPullRequest": discussion.is_pull_request,
        "numComments": sum(event.type == "comment" for event in discussion.events),
        "repo": {"name": repo.repo_id, "type": repo.kind.removesuffix("s")},
    }


def _proposal(repo: Repo, discussion: Discussion, *, with_diff: bool) -> dict[str, Any]:
    """Describe what a pull request would do to main."""
    changes = {"base": TARGET}
    if discussion.merge_commit:
        changes["mergeCommitId"] = discussion.merge_commit
    answer = {"changes": changes, "filesWithConflicts": conflicts_of(repo.git, discussion)}
    return {**answer, "diff": difference_of(repo.git, discussion)} if with_diff else answer


def _event(event: Event) -> dict[str, Any]:
    """Describe an event as the Hub does; the HTML of a comment is made here, and harmless."""
    data = dict(event.data)
    if event.type == "comment":
        html = render(data["latest"]["raw"], address_of=lambda path: path)
        data["latest"] = {**data["latest"], "html": html}
    row = {"id": event.id, "type": event.type, "author": {"name": event.author}, "createdAt": event.created_at}
    return {**row, "data": data}
