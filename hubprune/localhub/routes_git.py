"""`git clone` and `git fetch` over smart HTTP.

git's own `upload-pack` does the work; what is written here is who may ask for it. Nothing is taken in this way: a push
would go around what a commit is checked for, so it is refused with the ways that are open.
"""

import asyncio
import re
import tempfile
import zlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from functools import partial
from typing import BinaryIO

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from hubprune.localhub.git import GitRepo
from hubprune.localhub.refusal import RefusedError
from hubprune.localhub.routes import HubRoutes
from hubprune.localhub.web import Call, read_call

_NO_PUSH = "This local Hub takes no git push. Use `hf upload`, or HfApi.create_commit, which check what they are given."
_MAX_REQUEST_BYTES = 16 << 20
"""What a client says that it wants and has: some 50 bytes for each commit."""
_BLOCK_BYTES = 1 << 16
_GZIP = 16 + zlib.MAX_WBITS

# Partial clones, and single commits by their hashes. The records of discussions are nobody's branches.
_SETTINGS = (
    "uploadpack.allowFilter=true",
    "uploadpack.allowAnySHA1InWant=true",
    "uploadpack.hideRefs=refs/discussions",
)
_NOT_TO_BE_KEPT = {"Cache-Control": "no-cache, max-age=0, must-revalidate"}


class GitRoutes(HubRoutes):
    """Handlers for what git itself calls."""

    def routes(self) -> list[Route]:
        """Return the routes of this part."""
        made = []
        for repo in ("/{kind:kind}/{namespace}/{name}", "/{namespace}/{name}"):
            made += [
                _git_route(f"{repo}/info/refs", self.advertise, method="GET"),
                _git_route(f"{repo}/git-upload-pack", self.send_pack, method="POST"),
                _git_route(f"{repo}/git-receive-pack", self.refuse_push, method="POST"),
            ]
        return made

    def advertise(self, call: Call) -> Response:
        """List the branches, tags and pull requests, or what the protocol can do."""
        service = call.query.get("service")
        if service == "git-receive-pack":
            return self.refuse_push(call)
        if service != "git-upload-pack":
            raise RefusedError(403, "Only git's smart HTTP protocol is spoken here")
        git, protocol = self.repo(call, "read").git, _protocol(call)
        command = _upload_pack("--advertise-refs")
        listing = git.run(*command, str(git.path.absolute()), env={"GIT_PROTOCOL": protocol})
        # From version 2 on, what the protocol can do comes without a word before.
        preface = b"" if "version=2" in protocol.split(":") else b"001e# service=git-upload-pack\n0000"
        kind = "application/x-git-upload-pack-advertisement"
        return Response(preface + listing, media_type=kind, headers=_NOT_TO_BE_KEPT)

    def send_pack(self, call: Call) -> Response:
        """Send the objects that a client wants and does not have."""
        git = self.repo(call, "read").git
        asked = tempfile.TemporaryFile()  # noqa: SIM115 - closed by whoever reads it
        asked.write(_unpacked(call))
        asked.seek(0)
        stream = _packed(git, asked, protocol=_protocol(call))
        return StreamingResponse(stream, media_type="application/x-git-upload-pack-result", headers=_NOT_TO_BE_KEPT)

    def refuse_push(self, call: Call) -> Response:
        """Say how to write instead; those who may not even see the repository are told only that."""
        self.repo(call, "read")
        raise RefusedError(403, _NO_PUSH)


def _git_route(path: str, handler: Callable[[Call], Response], *, method: str) -> Route:
    """Make a route whose refusals git shows to its user."""

    async def endpoint(request: Request) -> Response:
        """Answer a call, or say in plain text why not."""
        try:
            call = await read_call(request, limit=_MAX_REQUEST_BYTES)
            call = replace(call, params={**call.params, "name": call.params["name"].removesuffix(".git")})
            return await run_in_threadpool(handler, call)
        except RefusedError as refusal:
            return _told(refusal)

    return Route(path, endpoint, methods=[method])


def _told(refusal: RefusedError) -> Response:
    headers = dict(refusal.headers)
    if refusal.status == 401:  # git asks its user for a name and a password, and comes again
        headers["WWW-Authenticate"] = 'Basic realm="any user name, the access token as password", charset="UTF-8"'
    return PlainTextResponse(f"{refusal.message}\n", refusal.status, headers=headers)


def _protocol(call: Call) -> str:
    """Return the version that the client asks for, in git's own form; anything else is the oldest."""
    asked = call.headers.get("git-protocol", "")
    return asked if re.fullmatch(r"[a-z0-9=:.-]{1,100}", asked) else ""


def _upload_pack(*options: str) -> list[str]:
    settings = [part for setting in _SETTINGS for part in ("-c", setting)]
    # The folder may belong to somebody else; there is nothing in it that git would run.
    return [*settings, "-c", "safe.directory=*", "upload-pack", "--strict", "--stateless-rpc", *options]


def _unpacked(call: Call) -> bytes:
    """Return the request's body, which git packs when it is long."""
    if call.headers.get("content-encoding") not in ("gzip", "x-gzip"):
        return call.body
    unpacker = zlib.decompressobj(_GZIP)
    try:
        body = unpacker.decompress(call.body, _MAX_REQUEST_BYTES)
    except zlib.error as error:
        raise RefusedError(400, "The body is not valid gzip") from error
    if unpacker.unconsumed_tail:
        raise RefusedError(413, f"The body exceeds {_MAX_REQUEST_BYTES} bytes")
    return body


async def _packed(git: GitRepo, asked: BinaryIO, *, protocol: str) -> AsyncIterator[bytes]:
    """Yield what git answers, and end git when nobody listens any more."""
    environment = {**git.environment(), "GIT_PROTOCOL": protocol}
    with asked:
        process = await asyncio.create_subprocess_exec(
            *git.command(*_upload_pack()),
            str(git.path.absolute()),
            stdin=asked,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=environment,
        )
    try:
        read = partial(process.stdout.read, _BLOCK_BYTES) if process.stdout else None
        while read and (block := await read()):
            yield block
    finally:
        if process.returncode is None:
            process.kill()
