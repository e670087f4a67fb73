"""What the handlers share: a request that has been read, answers, and routes.

What the groups of routes have in common.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import unquote, urlencode

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, QueryParams
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from hubprune.localhub import names
from hubprune.localhub.access import Account
from hubprune.localhub.discussions import Discussions
from hubprune.localhub.hub import Hub, Need, Repo
from hubprune.localhub.names import RefusedError

# ---- web -----------------------------------------------------------------------------------------------------------


MAX_BODY_BYTES = 512 << 20
"""No single request is held in memory beyond this; large files are streamed to disk instead."""

_LOOPBACK_NAMES = ("127.0.0.1", "localhost")


@dataclass(frozen=True)
class Call:
    """One request, read to its end, its path parameters decoded."""

    method: str
    path: str
    params: Mapping[str, str]
    query: QueryParams
    headers: Headers
    body: bytes

    @property
    def origin(self) -> str:
        """The address by which the client knows this server."""
        return f"http://{self.headers['host']}"

    @property
    def cdn_origin(self) -> str:
        """The same server by its other name.

        A client drops its token where a redirect leads to another host. Under the same name it would send it along,
        and nobody would notice a client that does so with the Hub's real content network.
        """
        host, _, port = self.headers["host"].partition(":")
        other = _LOOPBACK_NAMES[1 - _LOOPBACK_NAMES.index(host.lower())]
        return f"http://{other}:{port}" if port else f"http://{other}"

    @property
    def repo_id(self) -> str:
        """The repository that the path names."""
        return names.repo_id(self.params["namespace"], self.params["name"])

    @property
    def kind(self) -> str:
        """`models` or `datasets`; addresses of files leave `models` out."""
        return self.params.get("kind", "models")

    def json(self) -> dict[str, Any]:
        """Return the body as a JSON object."""
        return json_object(self.body or b"{}")

    def flag(self, name: str) -> bool:
        """Tell whether the query switches something on."""
        return self.query.get(name, "").lower() in ("1", "true")


Handler = Callable[[Call], Response]


def json_object(text: bytes) -> dict[str, Any]:
    """Parse a JSON object, refusing anything else."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RefusedError(400, "The body is not valid JSON") from error
    if not isinstance(value, dict):
        raise RefusedError(400, "The body is not a JSON object")
    return value


def field(record: Mapping[str, Any], name: str, kind: type | tuple[type, ...], default: Any = ...) -> Any:
    """Return a field of a JSON object if it is of the kind; without a default it has to be there."""
    value = record.get(name, default)
    if value is ...:
        raise RefusedError(400, f"The field {name!r} is missing")
    if value is not default and not isinstance(value, kind):
        raise RefusedError(400, f"The field {name!r} has the wrong type")
    return value


def text_field(record: Mapping[str, Any], name: str, default: Any = ...) -> str:
    """Return a text of a JSON object, halves of surrogate pairs replaced: JSON can hold them and UTF-8 cannot."""
    return str(field(record, name, str, default)).encode(errors="replace").decode()


def wants_private(body: Mapping[str, Any]) -> bool | None:
    """Return the visibility asked for, None if nothing is said; clients have two ways to say it."""
    visibility = field(body, "visibility", str, None)
    if visibility is None:
        return bool(body["private"]) if "private" in body else None
    if visibility not in ("public", "private"):
        raise RefusedError(400, "visibility is one of public and private")
    return bool(visibility == "private")


def route(path: str, handler: Handler, *, method: str = "GET") -> Route:
    """Make a route whose handler runs in a worker thread, so that git and disk do not hold up other requests."""

    async def endpoint(request: Request) -> Response:
        return await run_in_threadpool(handler, await read_call(request))

    return Route(path, endpoint, methods=[method])


async def read_call(request: Request, *, limit: int | None = None) -> Call:
    """Read a request with a body of up to `limit` bytes; with 0 it is left for the handler to stream."""
    limit = MAX_BODY_BYTES if limit is None else limit
    # The path was matched still quoted, so that an encoded slash stays inside its parameter.
    params = {name: unquote(value) for name, value in request.path_params.items()}
    if not all(names.is_clean(value) for value in params.values()):
        raise RefusedError(400, "The address holds control characters")
    body = await _read_body(request, limit) if limit else b""
    return Call(request.method, request.url.path, params, request.query_params, request.headers, body)


async def _read_body(request: Request, limit: int) -> bytes:
    announced = request.headers.get("content-length", "")
    if announced.isascii() and announced.isdigit() and int(announced[:18]) > limit:
        raise RefusedError(413, f"The body exceeds {limit} bytes")
    body = bytearray()
    async for block in request.stream():
        body += block
        if len(body) > limit:
            raise RefusedError(413, f"The body exceeds {limit} bytes")
    return bytes(body)


Row = TypeVar("Row")


def page(
    call: Call, rows: Sequence[Row], *, size: int, describe: Callable[[Sequence[Row]], list[dict[str, Any]]]
) -> JSONResponse:
    """Answer with one page of the rows, and with a link to the next if there is one."""
    cursor = call.query.get("cursor", "0")
    if not re.fullmatch(r"[0-9]{1,9}", cursor):
        raise RefusedError(400, "Invalid cursor")
    start, headers = int(cursor), {}
    if start + size < len(rows):
        query = {**dict(call.query), "cursor": str(start + size)}
        headers["Link"] = f'<{call.origin}{call.path}?{urlencode(query)}>; rel="next"'
    return JSONResponse(describe(rows[start : start + size]), headers=headers)


def byte_range(header: str | None, size: int) -> tuple[int, int] | None:
    """Return the wanted bytes as start and end (excluded), None for all of them.

    Only a single range is understood; anything else asks for all, as the standard allows. Raises a 416 refusal when
    the range begins behind the end.
    """
    match = re.fullmatch(r"bytes=([0-9]{0,15})-([0-9]{0,15})", header or "")
    if match is None or match.group(1, 2) == ("", ""):
        return None
    first, last = match.groups()
    start = int(first) if first else max(0, size - int(last))
    end = min(int(last) + 1, size) if first and last else size
    if start >= size or start >= end:
        raise RefusedError(416, "Range not satisfiable", headers={"Content-Range": f"bytes */{size}"})
    return start, end


def refusal_response(refusal: RefusedError) -> JSONResponse:
    """Turn a refusal into the answer that clients understand: a JSON body, and headers for those that look there."""
    # The message may quote what the client sent, and a header takes only plain ASCII without spaces at its ends.
    line = "".join(char if " " <= char <= "~" else "?" for char in refusal.message).strip()
    headers = {"X-Error-Message": line, **refusal.headers}
    if refusal.code:
        headers["X-Error-Code"] = refusal.code
    return JSONResponse({"error": line}, refusal.status, headers=headers)


# ---- routes --------------------------------------------------------------------------------------------------------


REPO = "/api/{kind:kind}/{namespace}/{name}"
"""Where the Hub's interface keeps what concerns one repository."""


class HubRoutes:
    """A group of handlers for one hub."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub

    def caller(self, call: Call) -> Account | None:
        """Return whose token came with the request, None without one."""
        return self.hub.accounts.identify(call.headers.get("authorization"))

    def known_caller(self, call: Call) -> Account:
        """Return whose token came with the request, which needs one."""
        account = self.caller(call)
        if account is None:
            raise RefusedError(401, "Invalid username or password.")
        return account

    def repo(self, call: Call, need: Need) -> Repo:
        """Return the repository that the address names, if the caller may do with it what it needs to.

        Who asks for a repository by the name that it had before is sent to the new one.
        """
        account = self.caller(call)
        try:
            return self.hub.open(account, call.kind, call.repo_id, need)
        except RefusedError as refusal:
            moved = self.hub.moved_to(call.kind, call.repo_id) if refusal.code == "RepoNotFound" else None
            if moved is None:
                raise
            self.hub.open(account, call.kind, moved, "see")  # or else it does not exist under any name
            raise RefusedError(307, f"Moved to {moved}", headers={"Location": _renamed(call, moved)}) from refusal

    def repo_to_change(self, call: Call) -> Repo:
        """Return the repository that the address names, if the caller may put a commit where it says.

        Everybody with a token that may write proposes, and goes on with what they have proposed.
        """
        revision = call.params["revision"]
        own = re.fullmatch(r"refs/pr/([1-9][0-9]{0,8})", revision)
        if call.flag("create_pr"):
            return self.repo(call, "propose")
        if own:
            repo = self.repo(call, "propose")
            if Discussions(repo.git).get(int(own[1])).author == self.known_caller(call).name:
                return repo
        return self.repo(call, "write")


def number_of(call: Call) -> int:
    """Return the number of the discussion that the address names."""
    text = call.params["number"]
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise RefusedError(400, "A discussion is named by its number")
    return int(text)


def _renamed(call: Call, repo_id: str) -> str:
    """Return the address of a call with another repository in it, relative to the server as clients want it."""
    path = re.sub(rf"/{re.escape(call.repo_id)}(?=/|\.git|$)", f"/{repo_id}", call.path, count=1)
    return f"{path}?{urlencode(call.query.multi_items())}" if call.query else path
