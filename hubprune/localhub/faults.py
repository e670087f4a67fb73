"""What goes over the wire: a log of the requests, and faults put in their way.

Both sit outside of the application, so that a fault looks to the client like a broken network or an overloaded Hub.
"""

import asyncio
import json
import os
import re
import socket
import struct
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args
from urllib.parse import parse_qsl, unquote, urlencode

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hubprune.localhub.checks import STAMP

Mishap = Literal["status", "reset", "cut", "lose", "truncate", "slow", "stall", "withhold"]

_LOG_LENGTH = 20_000


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Something that goes wrong with the requests that match.

    status: answer with that status instead of doing the work · reset: break the connection before any work · cut: hand
    the handler the first bytes of the request's body, then break the connection, the rest never to come · lose: do the
    work, then break the connection instead of answering · truncate: answer, but stop after some bytes of the body ·
    slow: wait before doing anything · stall: do nothing and say nothing until the client has gone · withhold: do the
    work, and say nothing until the client has gone.
    """

    match: str
    """Regular expression, searched in `METHOD /path`."""
    do: Mishap
    times: int = 1
    """How many matching requests are hit."""
    skip: int = 0
    """How many matching requests are let through first."""
    status: int = 503
    headers: Mapping[str, str] = field(default_factory=dict)
    """Headers of the answer that `status` gives, such as Retry-After."""
    bytes: int = 1000
    """Bytes of the request's body that `cut` lets through, or of the answer's that `truncate` does."""
    seconds: float = 1.0
    """How long `slow` waits."""

    def __post_init__(self) -> None:
        """Raise for a fault that could not happen, here and not in the middle of a request."""
        if self.do not in get_args(Mishap):
            raise ValueError(f"Unknown fault {self.do!r}: use one of {', '.join(get_args(Mishap))}")
        re.compile(self.match)


@dataclass
class RequestRecord:
    """One request as the server saw it. Its headers are not kept, so the log holds no token."""

    method: str
    path: str
    query: str
    host: str
    """The name by which the client addressed the server, with the port."""
    range: str
    authorized: bool
    """Whether an Authorization header came along; a client must not send one to the content network."""
    status: int | None = None
    """None when no answer began."""
    bytes_in: int = 0
    bytes_out: int = 0
    fault: str | None = None

    @property
    def line(self) -> str:
        """`METHOD /path`, which is what faults match."""
        return f"{self.method} {self.path}"


class Wire:
    """ASGI middleware that logs every request and spoils some."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.log: deque[RequestRecord] = deque(maxlen=_LOG_LENGTH)
        self.set_faults([])

    def set_faults(self, faults: Iterable[Fault]) -> None:
        """Replace the faults that are set."""
        self._faults, self._matched = list(faults), Counter[int]()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        query = parse_qsl(scope["query_string"].decode("latin-1"))
        record = RequestRecord(
            method=scope["method"],
            path=unquote(scope["path"]),
            query=urlencode([(name, value) for name, value in query if name != STAMP]),
            host=headers.get(b"host", ""),
            range=headers.get(b"range", ""),
            authorized=b"authorization" in headers,
        )
        self.log.append(record)
        # The routes are matched against the path as it was sent: a decoded %2F would split a parameter in two.
        scope = {**scope, "path": scope["raw_path"].decode("latin-1")}
        counted_receive, counted_send = _counting(record, receive, send)
        fault = self._next_fault(record.line)
        if fault is None:
            await self._app(scope, counted_receive, counted_send)
            return
        record.fault = fault.do
        await _Spoiler(fault, self._app, scope, counted_receive, counted_send, _Connection(receive)).run()

    def _next_fault(self, line: str) -> Fault | None:
        for number, fault in enumerate(self._faults):
            if re.search(fault.match, line):
                self._matched[number] += 1
                if fault.skip < self._matched[number] <= fault.skip + fault.times:
                    return fault
        return None


def _counting(record: RequestRecord, receive: Receive, send: Send) -> tuple[Receive, Send]:
    async def counted_receive() -> Message:
        message = await receive()
        record.bytes_in += len(message.get("body", b""))
        return message

    async def counted_send(message: Message) -> None:
        if message["type"] == "http.response.start":
            record.status = message["status"]
        record.bytes_out += len(message.get("body", b""))
        await send(message)

    return counted_receive, counted_send


class _Connection:
    """The connection under a request, which ASGI keeps out of sight; uvicorn's `receive` is bound to its owner."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._transport: Any = getattr(receive, "__self__").transport  # noqa: B009 - not part of the type

    async def reset(self) -> None:
        """Drop the connection with a reset, as a machine does that went down or a middle box that forgot."""
        # To linger for no time at all is how one asks for a reset in place of an orderly end.
        linger = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)
        self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        await self.break_off()

    async def break_off(self) -> None:
        """Drop the connection at once, with nothing more said."""
        self._transport.abort()
        await _until_gone(self._receive)

    async def close(self) -> None:  # once what was written is sent
        self._transport.close()
        await _until_gone(self._receive)


@dataclass(frozen=True)
class _Spoiler:
    """One request that a fault has hit."""

    fault: Fault
    app: ASGIApp
    scope: Scope
    receive: Receive
    send: Send
    connection: _Connection

    async def run(self) -> None:
        """Answer, or break off, as the fault says."""
        match self.fault.do:
            case "status":
                while (await self.receive()).get("more_body"):
                    pass
                headers = {"Content-Type": "application/json", **self.fault.headers}
                answer = Response(json.dumps({"error": "injected fault"}), self.fault.status, headers=headers)
                await answer(self.scope, self.receive, self.send)
            case "reset":
                await self.connection.reset()
            case "cut":
                await self._cut()
            case "lose":
                await self.app(self.scope, self.receive, _swallow)
                await self.connection.break_off()
            case "truncate":
                await self._truncate()
            case "slow":
                await asyncio.sleep(self.fault.seconds)
                await self.app(self.scope, self.receive, self.send)
            case "stall":
                await _until_gone(self.receive)
            case "withhold":
                await self.app(self.scope, self.receive, _swallow)
                await _until_gone(self.receive)

    async def _cut(self) -> None:
        left = self.fault.bytes

        async def receive_a_part() -> Message:
            """Pass on the first bytes of the body, and never its end."""
            nonlocal left
            message = await self.receive() if left > 0 else {}
            if message.get("type") != "http.request":
                await self.connection.reset()
                return {"type": "http.disconnect"}
            body = message.get("body", b"")[:left]
            left = left - len(body) if message.get("more_body") else 0
            return {"type": "http.request", "body": body, "more_body": True}

        await self.app(self.scope, receive_a_part, _swallow)
        await self.connection.reset()

    async def _truncate(self) -> None:
        left = self.fault.bytes

        async def send_a_part(message: Message) -> None:
            """Pass the answer on until its share of the body is used up, and leave it open."""
            nonlocal left
            if message["type"] == "http.response.body":
                message = {**message, "body": message.get("body", b"")[:left], "more_body": True}
                left -= len(message["body"])
            await self.send(message)

        await self.app(self.scope, self.receive, send_a_part)
        await self.connection.close()


async def _until_gone(receive: Receive) -> None:
    # To return before the server has noticed would make it report an application that forgot to answer.
    while (await receive())["type"] != "http.disconnect":
        pass


async def _swallow(message: Message) -> None:
    """Take an answer that nobody is to get."""
