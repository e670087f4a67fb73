"""Serve on the loopback interface: the hub in the foreground or in a thread, or one card's preview.

A hub answers only to this machine's own names: a web page elsewhere that gets a browser to resolve its own name to
127.0.0.1 is turned away.
"""

import contextlib
import errno
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from filelock import FileLock, Timeout
from starlette.applications import Starlette
from starlette.convertors import Convertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from hubprune.core.errors import HubpruneError
from hubprune.localhub import checks
from hubprune.localhub.checks import RefusedError, account_of
from hubprune.localhub.faults import Fault, RequestRecord, Wire
from hubprune.localhub.git import require_git
from hubprune.localhub.hub import Hub, StoredBytes
from hubprune.localhub.jobs import CollectionRoutes, JobRecord, JobRoutes, JobScript, JobStore
from hubprune.localhub.pages import PageRoutes, Preview, build_preview
from hubprune.localhub.routes_changes import CommitRoutes, DiscussionRoutes
from hubprune.localhub.routes_files import FileRoutes, GitRoutes
from hubprune.localhub.routes_listing import ListingRoutes
from hubprune.localhub.routes_repos import RepoRoutes
from hubprune.localhub.routes_storage import LfsRoutes, StorageRoutes
from hubprune.localhub.web import HOSTS, refused

_HOST = HOSTS[0]
_BACKLOG = 256
_PARTS = (
    RepoRoutes, CommitRoutes, DiscussionRoutes, FileRoutes, GitRoutes, LfsRoutes, ListingRoutes, StorageRoutes,
    CollectionRoutes,
)  # fmt: skip
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")

# The address of a repository without a namespace, such as `gpt2`. This hub has none of these.
_BARE_NAME = re.compile(r"/api/models/[^/]+(/revision/[^/]+)?|/[^/]+/resolve/.*")


def serve(directory: Path, *, port: int = 0, xet: bool = True, announce: Callable[[str], None] = print) -> None:
    """Serve the hub that lives in `directory` until Ctrl-C or SIGTERM.

    It listens on 127.0.0.1 only, on a free port when `port` is 0. As soon as it accepts connections it announces two
    lines that a shell can take over: HF_ENDPOINT, and HF_TOKEN with a token that may write to every namespace. With
    `xet` off, downloads take the LFS path.

    Raises:
        MissingDependencyError: there is no git program.
        HubpruneError: the port is in use, or another server has the directory open.
    """
    with _alone(Path(directory)), contextlib.closing(listen(port)) as listener:
        hub = Hub(Path(directory), xet=xet)

        def say_where() -> None:
            announce(f"HF_ENDPOINT={endpoint_of(listener)}")
            announce(f"HF_TOKEN={hub.accounts.admin_token}")
            sys.stdout.flush()  # whoever reads from a pipe is waiting for these lines

        with quiet_signals():
            LoopbackServer(Wire(build_app(hub, JobStore())), on_ready=say_where).run(sockets=[listener])


@dataclass(frozen=True)
class RunningHub:
    """A hub that serves from a thread of this process."""

    endpoint: str
    """Its address, for HF_ENDPOINT or `HfApi(endpoint=...)`."""
    token: str = field(repr=False)
    """A token that may write to every namespace."""
    _hub: Hub = field(repr=False)
    _wire: Wire = field(repr=False)
    _jobs: JobStore = field(repr=False)

    def add_user(self, name: str, **rights: Any) -> str:
        """Make a token for a user and return it.

        `rights` are fields of `Account`: `role`, `orgs`, `granted`, `writable`, `creatable`, `reads_gated`, `proposes`
        and `expired`.
        """
        return self._hub.accounts.add(account_of({"name": name, **rights}))

    def trust(self, resource: str) -> str:
        """List a job as a trusted publisher of a repository, or of a user, and return the token of its identity."""
        return self._hub.accounts.trust(resource)

    def expire(self, token: str) -> None:
        """End the life of a token, or of the token of an identity, as time would."""
        self._hub.accounts.expire(token)

    @property
    def stored_bytes(self) -> StoredBytes:
        """What all large files take up now; what it grows by during an upload was new to the Hub."""
        return self._hub.stored_bytes()

    @property
    def log(self) -> list[RequestRecord]:
        """The requests so far, oldest first; the last 20,000 are kept."""
        return list(self._wire.log)

    def clear_log(self) -> None:
        """Forget the requests so far."""
        self._wire.log.clear()

    @property
    def jobs(self) -> list[JobRecord]:
        """The jobs that were asked for, oldest first, secrets included."""
        return list(self._jobs.records.values())

    def script_job(self, script: JobScript) -> None:
        """Say what becomes of the next job; one without a script says that nothing is run here, and completes."""
        self._jobs.scripts.append(script)

    def set_faults(self, faults: Iterable[Fault | Mapping[str, Any]]) -> None:
        """Replace the faults that are set; each is a `Fault`, or the fields of one. An empty list removes them."""
        self._wire.set_faults([fault if isinstance(fault, Fault) else Fault(**fault) for fault in faults])


@contextlib.contextmanager
def running_hub(directory: Path, *, port: int = 0, xet: bool = True) -> Iterator[RunningHub]:
    """Serve the hub that lives in `directory` from a thread until the block ends.

    Arguments and errors are those of `serve`.
    """
    with _alone(Path(directory)), contextlib.closing(listen(port)) as listener:
        hub = Hub(Path(directory), xet=xet)
        jobs, ready = JobStore(), threading.Event()
        wire = Wire(build_app(hub, jobs))
        server = LoopbackServer(wire, on_ready=ready.set)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="localhub", daemon=True)
        thread.start()
        try:
            while not ready.wait(timeout=0.1):
                if not thread.is_alive():
                    raise RuntimeError("the local Hub did not start")
            yield RunningHub(endpoint_of(listener), hub.accounts.admin_token, hub, wire, jobs)
        finally:
            server.should_exit = True
            thread.join()


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Hold a directory for one server: two would not see each other's tokens and uploads."""
    require_git()
    directory.mkdir(parents=True, exist_ok=True)
    lock = FileLock(directory / "serving.lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        said = f"Another server has {directory} open already."
        raise HubpruneError(said, hint="Use that Hub, or another --dir.") from None
    try:
        yield
    finally:
        lock.release()


def serve_preview(shown: Preview, *, port: int = 0, announce: Callable[[str], None] = print) -> None:
    """Show a card on 127.0.0.1 until Ctrl-C or SIGTERM, and announce the address once it answers.

    Raises:
        HubpruneError: the port is in use.
    """
    with contextlib.closing(listen(port)) as listener, quiet_signals():
        server = LoopbackServer(build_preview(shown), on_ready=lambda: announce(endpoint_of(listener)))
        server.run(sockets=[listener])


class _Kind(Convertor[str]):
    """Matches the plural of a repository type."""

    regex = "|".join(checks.KINDS)

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


def build_app(hub: Hub, jobs: JobStore) -> Starlette:
    """Return the application that serves the hub: all routes, and what becomes of errors."""
    register_url_convertor("kind", _Kind())
    groups = [*(part(hub) for part in _PARTS), JobRoutes(hub, jobs)]
    routes: list[BaseRoute] = [route for group in groups for route in group.routes()]
    # A page for people is nothing to answer a program with, so the pages come last and see no such address.
    routes.append(Route("/api/{path:path}", _unknown, methods=_METHODS))
    routes += PageRoutes(hub).routes()
    return Starlette(
        routes=routes,
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS)],
        exception_handlers=dict.fromkeys((RefusedError, HTTPException, ClientDisconnect, Exception), _on_error),
    )


async def _unknown(request: Request) -> Response:
    raise HTTPException(404)


async def _on_error(request: Request, error: Exception) -> Response:
    """Answer in the Hub's own form, whatever has gone wrong."""
    if isinstance(error, HTTPException):  # no route takes the request
        message = f"The local Hub does not answer to {request.method} {request.url.path}"
        refusal = RefusedError(error.status_code, message, headers=error.headers)
        if error.status_code == 404 and _BARE_NAME.fullmatch(request.url.path):
            refusal = RefusedError(404, "Repository not found", code="RepoNotFound")
        return refused(refusal)
    if isinstance(error, ClientDisconnect):  # its client has gone in the middle of it; nobody reads the answer
        return Response(status_code=400)
    if isinstance(error, RefusedError):
        return refused(error)
    # Starlette raises the error again after this answer, and the server logs its traceback.
    return JSONResponse({"error": "Internal Server Error"}, 500)


class LoopbackServer(uvicorn.Server):
    """uvicorn, telling when it is ready, and without a word of its own."""

    def __init__(self, app: ASGIApp, *, on_ready: Callable[[], None]) -> None:
        # h11 and asyncio whatever else is installed: faults reach through to the transport.
        how: dict[str, Any] = {"http": "h11", "loop": "asyncio", "lifespan": "off", "timeout_graceful_shutdown": 3}
        silent: dict[str, Any] = {"log_config": None, "log_level": "warning", "access_log": False}
        super().__init__(uvicorn.Config(app, **how, **silent, server_header=False))
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to serve, then say so."""
        await super().startup(sockets=sockets)
        self._on_ready()


def listen(port: int) -> socket.socket:
    """Return a socket that listens on the loopback interface.

    Raises:
        HubpruneError: the port is in use.
    """
    # With the protocol left open, asyncio would not switch Nagle's algorithm off: 40 ms more for every request.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    if os.name == "posix":  # elsewhere the option would let two servers share a port
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((_HOST, port))
        listener.listen(_BACKLOG)
    except (OSError, OverflowError) as error:
        listener.close()
        in_use = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        reason = "it is already in use" if in_use else str(error)
        raise HubpruneError(
            f"Cannot serve on {_HOST}, port {port}: {reason}.", hint="choose another port, or 0 for a free one"
        ) from error
    return listener


def endpoint_of(listener: socket.socket) -> str:
    """Return the address of a listening socket."""
    return f"http://{_HOST}:{listener.getsockname()[1]}"


@contextlib.contextmanager
def quiet_signals() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end the server and nothing more.

    uvicorn raises a signal that it has handled once again when it is done, which would end the process as if nobody
    had been there to handle it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # Unlike SIG_IGN, a handler that does nothing is not inherited by git.
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
