"""Discussions and pull requests: open, list, answer, rename, close, merge."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from starlette.responses import JSONResponse, Response

from hubprune.localhub.access import Account
from hubprune.localhub.cards import render
from hubprune.localhub.discussions import TARGET, Discussion, Discussions, Event, Status, comment
from hubprune.localhub.git import RefMove
from hubprune.localhub.hub import Repo
from hubprune.localhub.names import RefusedError, timestamp
from hubprune.localhub.web import REPO, Call, HubRoutes, answers, field, text_field

_ONE = f"{REPO}/discussions/{{number}}"
_PER_PAGE = 30
_MAX_TITLE = 200
_MAX_TEXT = 65_536
_LISTED_AS: dict[str, tuple[Status, ...]] = {"open": ("open", "draft"), "closed": ("closed", "merged")}


class DiscussionRoutes(HubRoutes):
    """Handlers for what people say about a repository, and what they propose."""

    @answers(f"{REPO}/discussions")
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

    @answers(f"{REPO}/discussions", method="POST")
    def open(self, call: Call) -> Response:
        """Start a discussion, or a pull request that has no commits yet: a draft until its author opens it."""
        repo, account, body = self.repo(call, "propose"), self.known_caller(call), call.json()
        title, text = _title(body), _text(body, "description")
        proposes = field(body, "pullRequest", bool, False)
        head = repo.git.resolve(TARGET) if proposes else None
        made = Discussions(repo.git).open(title, text, author=account.name, head=head, draft=proposes)
        url = f"{call.origin}{repo.web_path()}/discussions/{made.number}"
        return JSONResponse({"num": made.number, "url": url, "pullRequest": proposes})

    @answers(_ONE)
    def details(self, call: Call) -> Response:
        """Tell everything about a discussion; of a pull request also what it changes and what is in its way."""
        repo = self.repo(call, "read")
        discussions = Discussions(repo.git)
        discussion = discussions.get(call.number)
        answer = {**_row(repo, discussion), "events": [_event(event) for event in discussions.events(discussion)]}
        if discussion.is_pull_request:
            merged = {"mergeCommitId": discussion.merge_commit} if discussion.merge_commit else {}
            answer |= {"changes": {"base": TARGET, **merged}, "filesWithConflicts": discussions.conflicts(discussion)}
            if call.flag("diff"):
                answer["diff"] = discussions.difference(discussion)
        return JSONResponse(answer)

    @answers(f"{_ONE}/comment", method="POST")
    def comment(self, call: Call) -> Response:
        """Say something."""
        repo, account = self.repo(call, "propose"), self.known_caller(call)
        said = comment(_text(call.json(), "comment"), author=account.name)
        Discussions(repo.git).change(call.number, lambda discussion: (discussion.with_event(said), ()))
        return JSONResponse({"newMessage": _event(said)})

    @answers(f"{_ONE}/comment/{{event}}/edit", method="POST")
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

    @answers(f"{_ONE}/comment/{{event}}/hide", method="POST")
    def hide(self, call: Call) -> Response:
        """Take the text of a comment away for good."""
        repo = self.repo(call, "propose")

        def hidden(event: Event, account: Account) -> Event:
            if event.author != account.name and not account.may_write(repo.repo_id):
                raise RefusedError(403, "A comment can be hidden by its author and by those who may write only")
            latest = {**event.data["latest"], "raw": ""}
            return replace(event, data={**event.data, "hidden": True, "latest": latest, "history": []})

        return self._change_comment(call, hidden)

    @answers(f"{_ONE}/title", method="POST")
    def rename(self, call: Call) -> Response:
        """Change the title."""
        repo, account, title = self.repo(call, "propose"), self.known_caller(call), _title(call.json())

        def renamed(discussion: Discussion) -> tuple[Discussion, Sequence[RefMove]]:
            _check_owner(repo, discussion, account)
            data = {"from": discussion.title, "to": title}
            event = Event(type="title-change", author=account.name, data=data)
            return discussion.with_event(event, title=title), ()

        done = Discussions(repo.git).change(call.number, renamed)
        return JSONResponse({"newTitle": _event(done.events[-1])})

    @answers(f"{_ONE}/status", method="POST")
    def change_status(self, call: Call) -> Response:
        """Close a discussion or pull request, or open it (again)."""
        repo, account, body = self.repo(call, "propose"), self.known_caller(call), call.json()
        status = field(body, "status", str)
        if status not in ("open", "closed"):
            raise RefusedError(400, "status is open or closed")
        said = _remark(body, account)
        event = Event(type="status-change", author=account.name, data={"status": status})

        def changed(discussion: Discussion) -> tuple[Discussion, Sequence[RefMove]]:
            _check_owner(repo, discussion, account)
            if discussion.status == "merged":
                raise RefusedError(400, "This pull request is merged, which cannot be undone")
            return (discussion.with_event(said) if said else discussion).with_event(event, status=status), ()

        Discussions(repo.git).change(call.number, changed)
        return JSONResponse({"newStatus": _event(event)})

    @answers(f"{_ONE}/merge", method="POST")
    def merge(self, call: Call) -> Response:
        """Bring the changes of a pull request into main."""
        repo, account = self.repo(call, "write"), self.known_caller(call)
        done = Discussions(repo.git).merge(call.number, author=account.name, remark=_remark(call.json(), account))
        return JSONResponse({"success": True, "mergeCommitId": done.merge_commit})

    def _change_comment(self, call: Call, edit: Callable[[Event, Account], Event]) -> Response:
        repo, account, wanted = self.repo(call, "propose"), self.known_caller(call), call.params["event"]

        def changed(discussion: Discussion) -> tuple[Discussion, Sequence[RefMove]]:
            """Return the discussion with the changed comment in the place of the old one."""
            events = {event.id: event for event in discussion.events}
            if wanted not in events or events[wanted].type != "comment":
                raise RefusedError(404, "Comment not found")
            events[wanted] = edit(events[wanted], account)
            return replace(discussion, events=tuple(events.values())), ()

        done = Discussions(repo.git).change(call.number, changed)
        return JSONResponse({"updatedComment": _event(next(event for event in done.events if event.id == wanted))})


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


def _event(event: Event) -> dict[str, Any]:
    """Describe an event as the Hub does; the HTML of a comment is made here, and harmless."""
    data = dict(event.data)
    if event.type == "comment":
        html = render(data["latest"]["raw"], address_of=lambda path: path)
        data["latest"] = {**data["latest"], "html": html}
    row = {"id": event.id, "type": event.type, "author": {"name": event.author}, "createdAt": event.created_at}
    return {**row, "data": data}
