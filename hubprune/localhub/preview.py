"""Show the card of one folder in a browser as the Hub would show it, for as long as somebody looks at it."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from hubprune.localhub.loopback import HOSTS, LoopbackServer, endpoint_of, listen, quiet_signals
from hubprune.localhub.pages import (
    FileRow,
    Frame,
    Tab,
    card_page,
    file_headers,
    files_page,
    media_type,
    message_page,
    quoted,
    style_response,
)

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
