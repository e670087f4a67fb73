"""The web application: all routes, and what becomes of errors."""

import re
from typing import cast

from starlette.applications import Starlette
from starlette.convertors import Convertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from hubprune.localhub import names
from hubprune.localhub.hub import Hub
from hubprune.localhub.loopback import HOSTS
from hubprune.localhub.names import RefusedError
from hubprune.localhub.routes_commits import CommitRoutes
from hubprune.localhub.routes_discussions import DiscussionRoutes
from hubprune.localhub.routes_files import FileRoutes, GitRoutes
from hubprune.localhub.routes_jobs import CollectionRoutes, JobRoutes
from hubprune.localhub.routes_listing import ListingRoutes
from hubprune.localhub.routes_pages import DiscussionPageRoutes, PageRoutes
from hubprune.localhub.routes_repos import MovingRoutes, RepoRoutes, TokenRoutes
from hubprune.localhub.routes_storage import LfsRoutes, StorageRoutes
from hubprune.localhub.web import refusal_response

_PARTS = (
    RepoRoutes,
    CommitRoutes,
    DiscussionRoutes,
    FileRoutes,
    GitRoutes,
    LfsRoutes,
    ListingRoutes,
    MovingRoutes,
    StorageRoutes,
    TokenRoutes,
    CollectionRoutes,
    JobRoutes,
)

_PAGES = (DiscussionPageRoutes, PageRoutes)

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")

# The address of a repository without a namespace, such as `gpt2`. This hub has none of these.
_BARE_NAME = re.compile(r"/api/models/[^/]+(/revision/[^/]+)?|/[^/]+/resolve/.*")


class _Kind(Convertor[str]):
    """Matches the plural of a repository type."""

    regex = "|".join(names.KINDS)

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


def build_app(hub: Hub) -> Starlette:
    """Return the application that serves the hub.

    It answers only to this machine's own names: a web page elsewhere that gets a browser to resolve its own name to
    127.0.0.1 is turned away.
    """
    register_url_convertor("kind", _Kind())
    routes: list[BaseRoute] = [route for part in _PARTS for route in part(hub).routes()]
    # A page for people is nothing to answer a program with, so the pages come last and see no such address.
    routes.append(Route("/api/{path:path}", _unknown, methods=_METHODS))
    routes += [page for part in _PAGES for page in part(hub).routes()]
    return Starlette(
        routes=routes,
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS)],
        exception_handlers={
            RefusedError: _on_refusal,
            HTTPException: _on_http_error,
            ClientDisconnect: _on_hang_up,
            Exception: _on_bug,
        },
    )


async def _unknown(request: Request) -> Response:
    raise HTTPException(404)


async def _on_refusal(request: Request, error: Exception) -> Response:
    return refusal_response(cast(RefusedError, error))


async def _on_http_error(request: Request, error: Exception) -> Response:
    """Answer in the Hub's own form when no route takes the request."""
    error = cast(HTTPException, error)
    if error.status_code == 404 and _BARE_NAME.fullmatch(request.url.path):
        return refusal_response(RefusedError(404, "Repository not found", code="RepoNotFound"))
    message = f"The local Hub does not answer to {request.method} {request.url.path}"
    return refusal_response(RefusedError(error.status_code, message, headers=error.headers))


async def _on_hang_up(request: Request, error: Exception) -> Response:
    """End a request whose client has gone in the middle of it; nobody reads the answer."""
    return Response(status_code=400)


async def _on_bug(request: Request, error: Exception) -> Response:
    # Starlette raises the error again after this answer, and the server logs its traceback.
    return JSONResponse({"error": "Internal Server Error"}, 500)
