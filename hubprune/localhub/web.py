"""What the groups of handlers share: requests that have been read, checked fields, answers, and routes."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar
from urllib.parse import unquote, urlencode

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, QueryParams
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from hubprune.localhub import checks
from hubprune.localhub.checks import Account, RefusedError
from hubprune.localhub.discussions import Discussions
from hubprune.localhub.hub import Hub, Need, Repo

MAX_BODY_BYTES = 512 << 20
"""No single request is held in memory beyond this; large files are streamed to disk instead."""

HOSTS = ("127.0.0.1", "localhost")
"""Names that a server answers to: a web page elsewhere may get a browser to resolve its own name to 127.0.0.1."""
REPO = "/api/{kind:kind}/{namespace}/{name}"
"""Where the Hub's interface keeps what concerns one repository."""


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
        other = HOSTS[1 - HOSTS.index(host.lower())]
        return f"http://{other}:{port}" if port else f"http://{other}"

    @property
    def repo_id(self) -> str:
        """The repository that the path names."""
        return checks.repo_id(self.params["namespace"], self.params["name"])

    @property
    def kind(self) -> str:
        """`models` or `datasets`; addresses of files leave `models` out."""
        return self.params.get("kind", "models")

    @property
    def number(self) -> int:
        """The number of the discussion that the path names."""
        text = self.params["number"]
        if not (text.isascii() and text.isdigit() and len(text) < 10):
            raise RefusedError(400, "A discussion is named by its number")
        return int(text)

    def json(self) -> dict[str, Any]:
        """Return the body as a JSON object."""
        return json_object(self.body or b"{}")

    def flag(self, name: str) -> bool:
        """Tell whether the query switches something on."""
        return self.query.get(name, "").lower() in ("1", "true")


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


async def read_call(request: Request, *, limit: int | None = None) -> Call:
    """Read a request with a body of up to `limit` bytes; with 0 it is left for the handler to stream."""
    # The path was matched still quoted, so that an encoded slash stays inside its parameter.
    params = {name: unquote(value) for name, value in request.path_params.items()}
    if not all(checks.is_clean(value) for value in params.values()):
        raise RefusedError(400, "The address holds control characters")
    limit, body = MAX_BODY_BYTES if limit is None else limit, bytearray()
    if limit:
        announced = request.headers.get("content-length", "")
        if announced.isascii() and announced.isdigit() and int(announced[:18]) > limit:
            raise RefusedError(413, f"The body exceeds {limit} bytes")
        async for block in request.stream():
            body += block
            if len(body) > limit:
                raise RefusedError(413, f"The body exceeds {limit} bytes")
    return Call(request.method, request.url.path, params, request.query_params, request.headers, bytes(body))


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


def refused(refusal: RefusedError) -> JSONResponse:
    """Turn a refusal into the answer that clients understand: a JSON body, and headers for those that look there."""
    # The message may quote what the client sent, and a header takes only plain ASCII without spaces at its ends.
    line = "".join(char if " " <= char <= "~" else "?" for char in refusal.message).strip()
    headers = {"X-Error-Message": line, **refusal.headers}
    if refusal.code:
        headers["X-Error-Code"] = refusal.code
    return JSONResponse({"error": line}, refusal.status, headers=headers)


Handler = Callable[[Call], Response]
Method = TypeVar("Method", bound=Callable[..., Any])


def answers(*paths: str, method: str = "GET") -> Callable[[Method], Method]:
    """Mark a handler of a group with the addresses that it answers to."""

    def mark(handler: Method) -> Method:
        handler.__dict__["answers"] = (paths, method)  # where `HubRoutes.routes` finds them
        return handler

    return mark


def on_site(path: str) -> tuple[str, str]:
    """Return both addresses of something that is kept beside the interface: those of models leave their kind out."""
    return "/{kind:kind}/{namespace}/{name}" + path, "/{namespace}/{name}" + path


class HubRoutes:
    """A group of handlers for one hub."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub

    def routes(self) -> list[Route]:
        """Return the routes of all handlers, in the order in which they stand."""
        marked = [(name, *handler.answers) for name, handler in vars(type(self)).items() if hasattr(handler, "answers")]
        answer = {name: partial(self.answer, getattr(self, name)) for name, _, _ in marked}
        return [Route(path, answer[name], methods=[method]) for name, paths, method in marked for path in paths]

    async def answer(self, handler: Handler, request: Request) -> Response:
        """Answer a request in a worker thread, so that git and disk do not hold up other requests."""
        return await run_in_threadpool(handler, await read_call(request))

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
            # The same address with the other name in it, relative to the server as clients want it.
            path = re.sub(rf"/{re.escape(call.repo_id)}(?=/|\.git|$)", f"/{moved}", call.path, count=1)
            address = f"{path}?{urlencode(call.query.multi_items())}" if call.query else path
            raise RefusedError(307, f"Moved to {moved}", headers={"Location": address}) from refusal

    def revision(self, call: Call, need: Need) -> tuple[Repo, str]:
        """Return the repository that the address names, and the commit: that of main where it names none."""
        repo = self.repo(call, need)
        return repo, repo.git.resolve(call.params.get("revision", "main"))

    def repo_to_change(self, call: Call) -> Repo:
        """Return the repository that the address names, if the caller may put a commit where it says.

        Everybody with a token that may write proposes, and goes on with what they have proposed.
        """
        if call.flag("create_pr"):
            return self.repo(call, "propose")
        if own := re.fullmatch(r"refs/pr/([1-9][0-9]{0,8})", call.params["revision"]):
            repo = self.repo(call, "propose")
            if Discussions(repo.git).get(int(own[1])).author == self.known_caller(call).name:
                return repo
        return self.repo(call, "write")
