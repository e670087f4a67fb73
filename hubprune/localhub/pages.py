"""Pages for people: what the Hub shows of a repository, as HTML that runs nothing and loads nothing from elsewhere.

A browser sends no token, so a hub's pages show what everybody may see. The preview shows the card of one folder as the
Hub would show it.
"""

import mimetypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from hubprune.core.console import size
from hubprune.localhub import cards, checks
from hubprune.localhub.cards import AddressOf, render
from hubprune.localhub.checks import RefusedError
from hubprune.localhub.discussions import Discussions, Event
from hubprune.localhub.hub import Repo
from hubprune.localhub.web import HOSTS, Call, Handler, HubRoutes, answers, on_site, read_call

if TYPE_CHECKING:
    from jinja2 import Environment

_FOLDER = Path(__file__).parent / "page_templates"
_STYLE = "/style.css"
_CARD = "README.md"
_ALWAYS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store"}
_PAGE_POLICY = "default-src 'none'; style-src 'self'; img-src 'self'"
_PAGE_POLICY += "; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_FILE_HEADERS = {**_ALWAYS, "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; sandbox"}
"""Under these a browser shows a file of a repo and never lets it do anything."""
_IMAGES = (".gif", ".jpeg", ".jpg", ".png", ".svg", ".webp")
_MAX_DIFF = 200_000
"""Characters of a difference that a page shows; clients get all of it."""
_NOT_FOUND = "There is no such repository, or not everybody may see it. With a token, hubprune card --preview shows it."
_ROWS = {
    "license_name": "Licence", "license": "Licence", "language": "Language", "library_name": "Library",
    "pipeline_tag": "Task", "base_model": "Base model", "base_model_relation": "Relation", "datasets": "Data sets",
    "metrics": "Metrics",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Frame:
    """What all views of a repository share; style and home, the list of repositories, are addresses."""

    title: str
    subtitle: str
    style: str = _STYLE
    tabs: Mapping[str, str] = field(default_factory=dict)
    """The views of a repository: name -> address."""
    current: str | None = None
    """Name of the view that is shown."""
    home: str | None = None


class PageRoutes(HubRoutes):
    """Handlers that answer with HTML; they take what no other group does, so they come last."""

    async def answer(self, handler: Handler, request: Request) -> Response:
        """Answer a call with a page, or with one that says why not."""
        call = await read_call(request)
        try:
            return await run_in_threadpool(handler, call)
        except RefusedError as refusal:
            unknown = refusal.code == "RepoNotFound"
            frame = Frame(title="Local Hub", subtitle=call.path, home="/")
            text = _NOT_FOUND if unknown else refusal.message
            return _page("message", status=404 if unknown else refusal.status, frame=frame, text=text)

    @answers("/")
    def repositories(self, call: Call) -> Response:
        """List what everybody may see."""
        groups = {}
        for kind in checks.KINDS:
            open_to_all = [repo for repo in self.hub.repos(kind) if not repo.settings.private]
            groups[kind.capitalize()] = [(repo.repo_id, repo.web_path()) for repo in open_to_all]
        return _page("list", frame=Frame(title="Local Hub", subtitle=call.origin), groups=groups)

    @answers(_STYLE)
    def style(self, call: Call) -> Response:
        """Send the style sheet of all pages."""
        return _style_sheet()

    @answers(*on_site("/discussions"))
    def discussions(self, call: Call) -> Response:
        """List the discussions and pull requests of a repository, newest first."""
        repo = self.repo(call, "see")
        rows, frame = Discussions(repo.git).all(), _frame(repo, repo.git.resolve("main"), "Discussions")
        return _page("discussions", frame=frame, rows=rows, web=repo.web_path())

    @answers(*on_site("/discussions/{number}"))
    def discussion(self, call: Call) -> Response:
        """Show what was said and done in a discussion, and what a pull request changes."""
        repo = self.repo(call, "read")
        discussions = Discussions(repo.git)
        shown = discussions.get(call.number)
        events = [_event_row(repo, event) for event in discussions.events(shown)]
        diff = discussions.difference(shown) if shown.is_pull_request else ""
        diff = diff if len(diff) <= _MAX_DIFF else f"{diff[:_MAX_DIFF]}\n... and more\n"
        conflicts = discussions.conflicts(shown)
        frame = _frame(repo, repo.git.resolve("main"), "Discussions")
        return _page("discussion", frame=frame, row=shown, events=events, conflicts=conflicts, diff=diff)

    @answers(*on_site(""))
    def card(self, call: Call) -> Response:
        """Show the card of a repository."""
        repo, sha = self.revision(call, "read")
        entry = repo.git.entries(sha, [_CARD]).get(_CARD)
        text = repo.git.blob(entry.oid).decode(errors="replace") if entry and entry.kind == "file" else None
        return _card_page(_frame(repo, sha, "Card"), text, address_of=partial(_media_address, repo, sha))

    @answers(*on_site("/tree/{revision}"))
    def files(self, call: Call) -> Response:
        """List the files at a revision; a large one is not shown but fetched, unless it is a picture."""
        repo, sha = self.revision(call, "see")
        rows = []
        for file in self.hub.files_at(repo, sha):
            path = file.entry.path
            shown = file.pointer is None or path.lower().endswith(_IMAGES)
            fetched = f"{repo.web_path()}/resolve/{sha}/{quote(path, safe='/')}"
            rows.append((path, file.size, _media_address(repo, sha, path) if shown else fetched))
        return _files_page(_frame(repo, sha, "Files"), rows)

    @answers(*on_site("/commits/{revision}"))
    def commits(self, call: Call) -> Response:
        """List the history of a revision, newest first."""
        repo, sha = self.revision(call, "see")
        return _page("commits", frame=_frame(repo, sha, "Commits"), commits=repo.git.log(sha), web=repo.web_path())

    @answers(*on_site("/commit/{revision}"))
    def commit(self, call: Call) -> Response:
        """Lead to a commit in the history, on top of which it stands: clients print this address."""
        repo, sha = self.revision(call, "see")
        return RedirectResponse(f"{repo.web_path()}/commits/{sha}")

    @answers(*on_site("/media/{revision}/{path:path}"))
    def media(self, call: Call) -> Response:
        """Send a file to be looked at: pictures as such, everything else as text."""
        repo, path = self.repo(call, "read"), checks.file_path(call.params["path"])
        sha = repo.git.resolve(call.params["revision"])
        (file,) = self.hub.files(repo, [repo.git.file(sha, path)])
        if file.pointer is not None:
            stored = self.hub.large_file(file.pointer.sha256)
            return FileResponse(stored, headers=_FILE_HEADERS, media_type=_media_type(path))
        return Response(repo.git.blob(file.entry.oid), headers=_FILE_HEADERS, media_type=_media_type(path))


def _frame(repo: Repo, sha: str, current: str) -> Frame:
    web, kind = repo.web_path(), repo.kind.removesuffix("s").capitalize()
    tabs = {"Card": web, "Files": f"{web}/tree/{sha}", "Commits": f"{web}/commits/{sha}"}
    tabs["Discussions"] = f"{web}/discussions"
    return Frame(title=repo.repo_id, subtitle=f"{kind} at {sha}", tabs=tabs, current=current, home="/")


def _media_address(repo: Repo, sha: str, path: str) -> str:
    """Return where a file of a repository is shown in a browser."""
    return f"{repo.web_path()}/media/{sha}/{quote(path, safe='/')}"


def _event_row(repo: Repo, event: Event) -> dict[str, Any]:
    """Say in words what has happened; what was written is rendered as a card is."""
    row = {"author": event.author, "date": event.created_at, "detail": "", "address": None, "body": ""}
    match event.type:
        case "commit":
            sha = event.data["oid"]
            told = {"detail": sha[:8], "address": f"{repo.web_path()}/tree/{sha}"}
            return {**row, "what": event.data["subject"], **told}
        case "title-change":
            return {**row, "what": "changed the title from", "detail": event.data["from"]}
        case "status-change":
            return {**row, "what": "changed the status to", "detail": event.data["status"]}
    what = "comment, taken away" if event.data["hidden"] else "comment"
    text = event.data["latest"]["raw"]
    return {**row, "what": what, "body": render(text, address_of=partial(_media_address, repo, "main"))}


@dataclass(frozen=True, kw_only=True)
class Preview:
    """What is shown: a folder, or as much of a repo as its card needs."""

    title: str
    subtitle: str
    folder: Path
    """Where the card and its pictures lie; read anew for every look."""
    linked: tuple[Path, ...] = ()
    """Where links in the folder may lead beside it: a download's to the cache that holds its files."""
    listed: Mapping[str, int] = field(default_factory=dict)
    """Path -> bytes of what the repo has beside that."""


def build_preview(shown: Preview) -> Starlette:
    """Return the application that shows a card."""
    frame = partial(Frame, title=shown.title, subtitle=shown.subtitle, tabs={"Model card": "/", "Files": "/files"})

    def address(path: str) -> str:
        return f"/file/{quote(path, safe='/')}"

    def card(request: Request) -> Response:
        path = shown.folder / _CARD
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None
        return _card_page(frame(current="Model card"), text, address_of=address)

    def files(request: Request) -> Response:
        """List what is in the folder, and what the repo has beside it."""
        found = [path for path in shown.folder.rglob("*") if path.is_file()]
        here = {path.relative_to(shown.folder).as_posix(): path.stat().st_size for path in found}
        sizes = sorted({**shown.listed, **here}.items())
        rows = [(path, bytes_, address(path) if path in here else None) for path, bytes_ in sizes]
        return _files_page(frame(current="Files"), rows)

    def file(request: Request) -> Response:
        """Serve a file of the folder, and nothing beside it."""
        name = request.path_params["path"]
        parts = name.split("/")
        plain = not ("\0" in name or "\\" in name or any(part in ("", ".", "..") for part in parts))
        path, places = shown.folder.joinpath(*parts), (shown.folder, *shown.linked)
        # A link is followed where it ends in one of the places that are allowed.
        if plain and any(path.resolve().is_relative_to(place.resolve()) for place in places) and path.is_file():
            return FileResponse(path, headers=_FILE_HEADERS, media_type=_media_type(path.name))
        return _page("message", status=404, frame=frame(), text="There is no such file here.")

    routes = [Route("/", card), Route("/files", files), Route("/file/{path:path}", file)]
    routes.append(Route(_STYLE, lambda request: _style_sheet()))
    return Starlette(routes=routes, middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS)])


def _card_page(frame: Frame, card: str | None, *, address_of: AddressOf) -> Response:
    """Show a card: its Markdown rendered, its front matter in a panel beside it; None where a repo has none."""
    body = render(cards.without_metadata(card), address_of=address_of) if card is not None else None
    return _page("card", frame=frame, body=body, panel=_panel(card) if card is not None else None)


def _panel(card: str) -> dict[str, Any]:
    """Read what stands in a card's front matter; why it cannot be read is told."""
    try:
        metadata = cards.read_metadata(card)
    except cards.MetadataError as error:
        return {"rows": (), "tags": (), "results": (), "problem": str(error)}
    rows = {label: _texts(metadata[key]) for key, label in reversed(_ROWS.items()) if metadata.get(key)}
    results = [
        (str(result["dataset"]["name"]), str(metric.get("name") or metric["type"]), str(metric["value"]))
        for model in metadata.get("model-index", ())
        for result in model["results"]
        for metric in result["metrics"]
    ]
    ordered = [(label, rows[label]) for label in dict.fromkeys(_ROWS.values()) if label in rows]
    return {"rows": ordered, "tags": _texts(metadata.get("tags") or ()), "results": results, "problem": None}


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, (list, tuple)) else (str(value),)


def _files_page(frame: Frame, rows: Sequence[tuple[str, int, str | None]]) -> Response:
    """List files: path, bytes and address of each."""
    shown = [(path, size(bytes_), address) for path, bytes_, address in rows]
    return _page("files", frame=frame, files=shown, total=size(sum(bytes_ for _, bytes_, _ in rows)))


def _media_type(path: str) -> str:
    """Return the type under which a file is shown: images as such, everything else as text."""
    known = mimetypes.guess_type(path)[0] if path.lower().endswith(_IMAGES) else None
    return known or "text/plain"


def _style_sheet() -> Response:
    return Response((_FOLDER / "style.css").read_bytes(), media_type="text/css", headers=_ALWAYS)


def _page(template: str, *, status: int = 200, **values: object) -> Response:
    made = _templates().get_template(f"{template}.html.jinja").render(**values)
    # Half a surrogate pair, which a file name or a card may hold, is nothing that can be sent.
    html = made.encode(errors="replace")
    return HTMLResponse(html, status, headers={**_ALWAYS, "Content-Security-Policy": _PAGE_POLICY})


@cache
def _templates() -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(str(_FOLDER))
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
