"""Pages for people: what the Hub shows of a repository, as HTML that runs nothing and loads nothing from elsewhere.

Show the card of one folder in a browser as the Hub would show it, for as long as somebody looks at it.
"""

import contextlib
import mimetypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.routing import Route

from hubprune.core.console import size
from hubprune.localhub import cards
from hubprune.localhub.cards import AddressOf, render
from hubprune.localhub.loopback import HOSTS, LoopbackServer, endpoint_of, listen, quiet_signals

if TYPE_CHECKING:
    from jinja2 import Environment


# ---- pages ---------------------------------------------------------------------------------------------------------


_FOLDER = Path(__file__).parent / "page_templates"
_ALWAYS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store"}
_PAGE_POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_FILE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; sandbox"
_IMAGES = (".gif", ".jpeg", ".jpg", ".png", ".svg", ".webp")


@dataclass(frozen=True, kw_only=True)
class Tab:
    """One of the views of a repository."""

    name: str
    address: str
    is_current: bool = False


@dataclass(frozen=True, kw_only=True)
class FileRow:
    """One line of a file list."""

    path: str
    bytes: int
    address: str | None

    @property
    def size(self) -> str:
        """The size in words."""
        return size(self.bytes)


@dataclass(frozen=True, kw_only=True)
class CommitRow:
    """One line of a history."""

    sha: str
    date: str
    author: str
    title: str
    description: str = ""
    address: str | None = None


@dataclass(frozen=True, kw_only=True)
class DiscussionRow:
    """One line of a list of discussions."""

    name: str
    """What it is, with its number."""
    title: str
    status: str
    author: str
    date: str
    address: str


@dataclass(frozen=True, kw_only=True)
class EventRow:
    """One thing that has happened in a discussion."""

    author: str
    date: str
    what: str
    detail: str = ""
    address: str | None = None
    """Where the detail leads to."""
    body: str = ""
    """Harmless HTML of what was written."""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """What all views of a repository share."""

    title: str
    subtitle: str
    style: str
    """Address of the style sheet."""
    tabs: tuple[Tab, ...] = ()
    home: str | None = None
    """Address of the list of repositories; None where there is none."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """The front matter of a card, as the page shows it beside the text."""

    rows: tuple[tuple[str, tuple[str, ...]], ...]
    tags: tuple[str, ...]
    results: tuple[tuple[str, str, str], ...]
    """Data set, metric and value of each evaluation result."""
    problem: str | None = None
    """Why the front matter cannot be read."""


_ROWS = {
    "license_name": "Licence",
    "license": "Licence",
    "language": "Language",
    "library_name": "Library",
    "pipeline_tag": "Task",
    "base_model": "Base model",
    "base_model_relation": "Relation",
    "datasets": "Data sets",
    "metrics": "Metrics",
}


def read_panel(card: str) -> Panel:
    """Read what stands in a card's front matter; what cannot be read is told."""
    try:
        metadata = cards.read_metadata(card)
    except cards.MetadataError as error:
        return Panel(rows=(), tags=(), results=(), problem=str(error))
    rows = {label: _texts(metadata[key]) for key, label in reversed(_ROWS.items()) if metadata.get(key)}
    ordered = tuple((label, rows[label]) for label in dict.fromkeys(_ROWS.values()) if label in rows)
    return Panel(rows=ordered, tags=_texts(metadata.get("tags") or ()), results=tuple(_results(metadata)))


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, (list, tuple)) else (str(value),)


def _results(metadata: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    return [
        (str(result["dataset"]["name"]), str(metric.get("name") or metric["type"]), str(metric["value"]))
        for model in metadata.get("model-index", ())
        for result in model["results"]
        for metric in result["metrics"]
    ]


def card_page(frame: Frame, card: str | None, *, address_of: AddressOf, status: int = 200) -> Response:
    """Show a card: its Markdown rendered, its front matter in a panel beside it; None where a repo has none."""
    body = render(cards.without_metadata(card), address_of=address_of) if card is not None else None
    panel = read_panel(card) if card is not None else None
    return _page("card.html.jinja", status=status, frame=frame, body=body, panel=panel)


def files_page(frame: Frame, files: Sequence[FileRow]) -> Response:
    """List the files of a repository."""
    total = size(sum(file.bytes for file in files))
    return _page("files.html.jinja", frame=frame, files=files, total=total)


def commits_page(frame: Frame, commits: Sequence[CommitRow]) -> Response:
    """List the history of a repository, newest first."""
    return _page("commits.html.jinja", frame=frame, commits=commits)


def discussions_page(frame: Frame, rows: Sequence[DiscussionRow]) -> Response:
    """List the discussions of a repository, newest first."""
    return _page("discussions.html.jinja", frame=frame, rows=rows)


def discussion_page(
    frame: Frame, row: DiscussionRow, *, events: Sequence[EventRow], conflicts: Sequence[str], diff: str
) -> Response:
    """Show a discussion: what was said and done, and what a pull request changes."""
    return _page("discussion.html.jinja", frame=frame, row=row, events=events, conflicts=conflicts, diff=diff)


def list_page(frame: Frame, groups: Mapping[str, Sequence[tuple[str, str]]]) -> Response:
    """List repositories, by kind: name and address."""
    return _page("list.html.jinja", frame=frame, groups=groups)


def message_page(frame: Frame, text: str, *, status: int) -> Response:
    """Say why there is nothing to see."""
    return _page("message.html.jinja", status=status, frame=frame, text=text)


def style_response() -> Response:
    """Send the style sheet of all pages."""
    return Response((_FOLDER / "style.css").read_bytes(), media_type="text/css", headers=_ALWAYS)


def file_headers() -> dict[str, str]:
    """Return headers under which a browser shows a file of a repo and never lets it do anything."""
    return {**_ALWAYS, "Content-Security-Policy": _FILE_POLICY}


def media_type(path: str) -> str:
    """Return the type under which a file is shown: images as such, everything else as text."""
    known = mimetypes.guess_type(path)[0] if is_image(path) else None
    return known or "text/plain"


def is_image(path: str) -> bool:
    """Tell whether a file is a picture, by its name."""
    return path.lower().endswith(_IMAGES)


def quoted(path: str) -> str:
    """Quote a path for an address, its slashes kept."""
    return quote(path, safe="/")


def _page(template: str, *, status: int = 200, **values: object) -> Response:
    made = _templates().get_template(template).render(**values)
    # Half a surrogate pair, which a file name or a card may hold, is nothing that can be sent.
    html = made.encode(errors="replace")
    return HTMLResponse(html, status, headers={**_ALWAYS, "Content-Security-Policy": _PAGE_POLICY})


@cache
def _templates() -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(str(_FOLDER))
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


# ---- preview -------------------------------------------------------------------------------------------------------


_CARD = "README.md"
_VIEWS = (("Model card", "/"), ("Files", "/files"))


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

    def card(request: Request) -> Response:
        path = shown.folder / _CARD
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None
        return card_page(_frame(shown, current="/"), text, address_of=_address)

    def files(request: Request) -> Response:
        return files_page(_frame(shown, current="/files"), _rows(shown))

    def file(request: Request) -> Response:
        path = _inside(shown.folder, request.path_params["path"], places=(shown.folder, *shown.linked))
        if path is None:
            return message_page(_frame(shown), "There is no such file here.", status=404)
        return FileResponse(path, headers=file_headers(), media_type=media_type(path.name))

    return Starlette(
        routes=[
            Route("/", card),
            Route("/files", files),
            Route("/file/{path:path}", file),
            Route("/style.css", lambda request: style_response()),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS)],
    )


def serve_preview(shown: Preview, *, port: int = 0, announce: Callable[[str], None] = print) -> None:
    """Show a card on 127.0.0.1 until Ctrl-C or SIGTERM.

    Args:
        shown: what to show.
        port: 0 for a free one.
        announce: told the address once it answers.

    Raises:
        HubpruneError: the port is in use.
    """
    with contextlib.closing(listen(port)) as listener, quiet_signals():
        server = LoopbackServer(build_preview(shown), on_ready=lambda: announce(endpoint_of(listener)))
        server.run(sockets=[listener])


def _frame(shown: Preview, *, current: str | None = None) -> Frame:
    tabs = tuple(Tab(name=name, address=address, is_current=address == current) for name, address in _VIEWS)
    return Frame(title=shown.title, subtitle=shown.subtitle, style="/style.css", tabs=tabs)


def _address(path: str) -> str:
    return f"/file/{quoted(path)}"


def _rows(shown: Preview) -> Sequence[FileRow]:
    here = {
        path.relative_to(shown.folder).as_posix(): path.stat().st_size
        for path in shown.folder.rglob("*")
        if path.is_file()
    }
    sizes = {**shown.listed, **here}
    return [
        FileRow(path=path, bytes=sizes[path], address=_address(path) if path in here else None)
        for path in sorted(sizes)
    ]


def _inside(folder: Path, name: str, *, places: Sequence[Path]) -> Path | None:
    """Return a file of the folder; a link is followed where it ends in one of the places."""
    parts = name.split("/")
    if "\0" in name or "\\" in name or any(part in ("", ".", "..") for part in parts):
        return None
    path = folder.joinpath(*parts)
    within = any(path.resolve().is_relative_to(place.resolve()) for place in places)
    return path if within and path.is_file() else None
