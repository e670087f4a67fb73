"""A server on the loopback interface, and nowhere else."""

import contextlib
import errno
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from hubprune.core.errors import HubpruneError

HOSTS = ("127.0.0.1", "localhost")
"""Names that a server answers to: a web page elsewhere may get a browser to resolve its own name to 127.0.0.1."""

_HOST = HOSTS[0]
_BACKLOG = 256


class LoopbackServer(uvicorn.Server):
    """uvicorn, telling when it is ready, and without a word of its own."""

    def __init__(self, app: ASGIApp, *, on_ready: Callable[[], None]) -> None:
        # h11 and asyncio whatever else is installed: faults reach through to the transport.
        config = uvicorn.Config(
            app,
            http="h11",
            loop="asyncio",
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=3,
        )
        super().__init__(config)
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
    before = {number: signal.signal(number, _ignore) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ignore(number: int, frame: FrameType | None) -> None:
    """Do nothing; unlike SIG_IGN it is not inherited by git."""
