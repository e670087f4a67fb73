"""Pages for people who open the hub's address in a browser: its repositories, their cards, files and histories.

A browser sends no token, so the pages show what everybody may see.

Pages for people who follow the address of a discussion or a pull request, which clients print.
"""

from collections.abc import Callable
from functools import partial, wraps
from typing import TypeVar

from starlette.responses import FileResponse, RedirectResponse, Response
from starlette.routing import Route

from hubprune.localhub import names
from hubprune.localhub.cards import render
from hubprune.localhub.discussions import Discussion, Discussions, Event
from hubprune.localhub.git import LoggedCommit
from hubprune.localhub.hub import Repo, StoredFile
from hubprune.localhub.names import RefusedError
from hubprune.localhub.pages import (
    CommitRow,
    DiscussionRow,
    EventRow,
    FileRow,
    Frame,
    Tab,
    card_page,
    commits_page,
    discussion_page,
    discussions_page,
    file_headers,
    files_page,
    is_image,
    list_page,
    media_type,
    message_page,
    quoted,
    style_response,
)
from hubprune.localhub.routes_discussions import conflicts_of, difference_of, events_of
from hubprune.localhub.web import Call, Handler, HubRoutes, number_of, route

# ---- routes pages --------------------------------------------------------------------------------------------------


_STYLE = "/style.css"
_CARD = "README.md"
_NOT_FOUND = "There is no such repository, or not everybody may see it. With a token, hubprune card --preview shows it."

Part = TypeVar("Part", bound=HubRoutes)


def for_people(handler: Callable[[Part, Call], Response]) -> Callable[[Part, Call], Response]:
    """Turn a refusal into a page."""

    @wraps(handler)
    def answer(self: Part, call: Call) -> Response:
        """Answer a call, or say why not."""
        try:
            return handler(self, call)
        except RefusedError as refusal:
            status = 404 if refusal.code == "RepoNotFound" else refusal.status
            text = _NOT_FOUND if refusal.code == "RepoNotFound" else refusal.message
            frame = Frame(title="Local Hub", subtitle=call.path, style=_STYLE, home="/")
            return message_page(frame, text, status=status)

    return answer


class PageRoutes(HubRoutes):
    """Handlers that answer with HTML."""

    def routes(self) -> list[Route]:
        """Return the routes of this part; they take what no other part does, so they come last."""
        made = [route("/", self.repositories), route(_STYLE, lambda call: style_response())]
        views: dict[str, Handler] = {
            "": self.card,
            "/tree/{revision}": self.files,
            "/commits/{revision}": self.commits,
            "/commit/{revision}": self.commit,
            "/media/{revision}/{path:path}": self.media,
        }
        for prefix in ("/{kind:kind}/{namespace}/{name}", "/{namespace}/{name}"):
            made += [route(prefix + path, handler) for path, handler in views.items()]
        return made

    def repositories(self, call: Call) -> Response:
        """List what everybody may see."""
        groups = {
            kind.capitalize(): [
                (repo.repo_id, repo.web_path()) for repo in self.hub.repos(kind) if not repo.settings.private
            ]
            for kind in names.KINDS
        }
        return list_page(Frame(title="Local Hub", subtitle=call.origin, style=_STYLE), groups)

    @for_people
    def card(self, call: Call) -> Response:
        """Show the card of a repository."""
        repo = self.repo(call, "read")
        sha = repo.git.resolve("main")
        entry = repo.git.entries(sha, [_CARD]).get(_CARD)
        text = repo.git.blob(entry.oid).decode(errors="replace") if entry and entry.kind == "file" else None
        return card_page(frame_of(repo, sha, "Card"), text, address_of=lambda path: media_address(repo, sha, path))

    @for_people
    def files(self, call: Call) -> Response:
        """List the files at a revision."""
        repo = self.repo(call, "see")
        sha = repo.git.resolve(call.params["revision"])
        entries = [entry for entry in repo.git.tree(sha, recursive=True) if entry.kind == "file"]
        rows = [_file_row(repo, sha, file) for file in self.hub.files(repo, entries)]
        return files_page(frame_of(repo, sha, "Files"), rows)

    @for_people
    def commits(self, call: Call) -> Response:
        """List the history of a revision."""
        repo = self.repo(call, "see")
        sha = repo.git.resolve(call.params["revision"])
        return commits_page(frame_of(repo, sha, "Commits"), [_commit_row(repo, commit) for commit in repo.git.log(sha)])

    @for_people
    def commit(self, call: Call) -> Response:
        """Lead to a commit in the history, on top of which it stands: clients print this address."""
        repo = self.repo(call, "see")
        return RedirectResponse(f"{repo.web_path()}/commits/{repo.git.resolve(call.params['revision'])}")

    @for_people
    def media(self, call: Call) -> Response:
        """Send a file to be looked at: pictures as such, everything else as text."""
        repo, path = self.repo(call, "read"), names.file_path(call.params["path"])
        sha = repo.git.resolve(call.params["revision"])
        (file,) = self.hub.files(repo, [repo.git.file(sha, path)])
        if file.pointer is not None:
            stored = self.hub.large_file(file.pointer.sha256)
            return FileResponse(stored, headers=file_headers(), media_type=media_type(path))
        return Response(repo.git.blob(file.entry.oid), headers=file_headers(), media_type=media_type(path))


def frame_of(repo: Repo, sha: str, current: str) -> Frame:
    """Return what all pages of a repository share, with the current one marked."""
    web = repo.web_path()
    views = {"Card": web, "Files": f"{web}/tree/{sha}", "Commits": f"{web}/commits/{sha}"}
    views["Discussions"] = f"{web}/discussions"
    tabs = tuple(Tab(name=name, address=address, is_current=name == current) for name, address in views.items())
    kind = repo.kind.removesuffix("s").capitalize()
    return Frame(title=repo.repo_id, subtitle=f"{kind} at {sha}", style=_STYLE, tabs=tabs, home="/")


def media_address(repo: Repo, sha: str, path: str) -> str:
    """Return where a file of a repository is shown in a browser."""
    return f"{repo.web_path()}/media/{sha}/{quoted(path)}"


def _file_row(repo: Repo, sha: str, file: StoredFile) -> FileRow:
    path = file.entry.path
    shown = file.pointer is None or is_image(path)
    address = media_address(repo, sha, path) if shown else f"{repo.web_path()}/resolve/{sha}/{quoted(path)}"
    return FileRow(path=path, bytes=file.size, address=address)


def _commit_row(repo: Repo, commit: LoggedCommit) -> CommitRow:
    return CommitRow(
        sha=commit.sha,
        date=commit.date,
        author=commit.author,
        title=commit.title,
        description=commit.description,
        address=f"{repo.web_path()}/tree/{commit.sha}",
    )


# ---- routes discussion pages ---------------------------------------------------------------------------------------


_MAX_DIFF = 200_000
"""Characters of a difference that a page shows; clients get all of it."""


class DiscussionPageRoutes(HubRoutes):
    """Handlers that answer with HTML about discussions."""

    def routes(self) -> list[Route]:
        """Return the routes of this part."""
        made = []
        for prefix in ("/{kind:kind}/{namespace}/{name}", "/{namespace}/{name}"):
            made.append(route(f"{prefix}/discussions", self.listing))
            made.append(route(f"{prefix}/discussions/{{number}}", self.one))
        return made

    @for_people
    def listing(self, call: Call) -> Response:
        """List the discussions and pull requests of a repository."""
        repo = self.repo(call, "see")
        rows = [_row(repo, discussion) for discussion in Discussions(repo.git).all()]
        return discussions_page(_frame(repo), rows)

    @for_people
    def one(self, call: Call) -> Response:
        """Show one of them, with the changes that a pull request proposes."""
        repo = self.repo(call, "read")
        discussion = Discussions(repo.git).get(number_of(call))
        events = [_event_row(repo, event) for event in events_of(repo.git, discussion)]
        diff = difference_of(repo.git, discussion) if discussion.is_pull_request else ""
        shown = diff if len(diff) <= _MAX_DIFF else f"{diff[:_MAX_DIFF]}\n... and more\n"
        conflicts = conflicts_of(repo.git, discussion)
        return discussion_page(_frame(repo), _row(repo, discussion), events=events, conflicts=conflicts, diff=shown)


def _frame(repo: Repo) -> Frame:
    return frame_of(repo, repo.git.resolve("main"), "Discussions")


def _row(repo: Repo, discussion: Discussion) -> DiscussionRow:
    kind = "pull request" if discussion.is_pull_request else "discussion"
    return DiscussionRow(
        name=f"{kind} #{discussion.number}",
        title=discussion.title,
        status=discussion.status,
        author=discussion.author,
        date=discussion.created_at,
        address=f"{repo.web_path()}/discussions/{discussion.number}",
    )


def _event_row(repo: Repo, event: Event) -> EventRow:
    """Say in words what has happened; what was written is rendered as a card is."""
    row = partial(EventRow, author=event.author, date=event.created_at)
    match event.type:
        case "commit":
            sha = event.data["oid"]
            address = f"{repo.web_path()}/tree/{sha}"
            return row(what=event.data["subject"], detail=sha[:8], address=address)
        case "title-change":
            return row(what="changed the title from", detail=event.data["from"])
        case "status-change":
            return row(what="changed the status to", detail=event.data["status"])
    text = event.data["latest"]["raw"]
    body = render(text, address_of=partial(media_address, repo, "main"))
    return row(what="comment, taken away" if event.data["hidden"] else "comment", body=body)
