"""Reading a repository: what it holds, the content, and `git clone` and `git fetch` over smart HTTP.

git's own `upload-pack` does the work; what is written here is who may ask for it. Nothing is taken in this way: a push
would go around what a commit is checked for, so it is refused with the ways that are open.
"""

import asyncio
import re
import tempfile
import zlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, BinaryIO
from urllib.parse import parse_qs, quote

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse

from hubprune.localhub import checks
from hubprune.localhub.checks import RefusedError
from hubprune.localhub.git import Entry, GitRepo
from hubprune.localhub.hub import Repo
from hubprune.localhub.routes_storage import cdn_url
from hubprune.localhub.web import REPO, Call, Handler, HubRoutes, answers, byte_range, field, on_site, page, read_call

_ENTRIES_PER_PAGE = 1000

_NO_PUSH = "This local Hub takes no git push. Use `hf upload`, or HfApi.create_commit, which check what they are given."
_MAX_REQUEST_BYTES = 16 << 20
"""What a client says that it wants and has: some 50 bytes for each commit."""
_BLOCK_BYTES = 1 << 16
_GZIP = 16 + zlib.MAX_WBITS
# Partial clones, and single commits by their hashes. The records of discussions are nobody's branches.
_SETTINGS = (
    "uploadpack.allowFilter=true", "uploadpack.allowAnySHA1InWant=true", "uploadpack.hideRefs=refs/discussions",
)  # fmt: skip
_NOT_TO_BE_KEPT = {"Cache-Control": "no-cache, max-age=0, must-revalidate"}


class FileRoutes(HubRoutes):
    """Handlers that read a repository at a revision."""

    @answers(f"{REPO}/tree/{{revision}}", f"{REPO}/tree/{{revision}}/{{path:path}}")
    def tree(self, call: Call) -> Response:
        """List a folder."""
        repo, sha = self.revision(call, "see")
        path = call.params.get("path", "").strip("/")
        entries = repo.git.tree(sha, checks.file_path(path) if path else "", recursive=call.flag("recursive"))
        rows = partial(self._dated_rows, repo, sha) if call.flag("expand") else partial(self._rows, repo)
        return page(call, entries, size=_ENTRIES_PER_PAGE, describe=rows)

    @answers(f"{REPO}/paths-info/{{revision}}", method="POST")
    def paths_info(self, call: Call) -> Response:
        """Describe some paths, sent as a form or as JSON; those that do not exist are left out."""
        repo, sha = self.revision(call, "see")
        if call.body.lstrip().startswith(b"{"):
            wanted = field(call.json(), "paths", list)
        else:
            wanted = parse_qs(call.body.decode(errors="replace"), keep_blank_values=True).get("paths", [])
        if not all(isinstance(path, str) for path in wanted):
            raise RefusedError(400, "paths has to be a list of strings")
        paths = [path for path in (path.strip("/") for path in wanted) if checks.is_file_path(path)]
        return JSONResponse(self._rows(repo, list(repo.git.entries(sha, paths).values())))

    @answers(*on_site("/resolve/{revision}/{path:path}"))
    def resolve(self, call: Call) -> Response:
        """Send a file's content, or the client to where it is when it is a large one."""
        repo, sha = self.revision(call, "read")
        path = checks.file_path(call.params["path"])
        (file,) = self.hub.files(repo, [repo.git.file(sha, path)])
        headers = {"X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        if file.pointer is not None:
            etag = f'"{file.pointer.sha256}"'
            headers |= {"X-Linked-Size": str(file.pointer.size), "X-Linked-ETag": etag, "ETag": etag}
            if self.hub.announces_xet and file.xet_hash:
                revision = quote(call.params["revision"], safe="")
                token_url = f"{call.origin}/api/{repo.kind}/{repo.repo_id}/xet-read-token/{revision}"
                headers |= {"X-Xet-Hash": file.xet_hash, "Link": f'<{token_url}>; rel="xet-auth"'}
            return RedirectResponse(cdn_url(self.hub, call, file.pointer.sha256), 302, headers=headers)
        headers["ETag"] = f'"{file.entry.oid}"'
        headers["Content-Disposition"] = f"inline; filename*=UTF-8''{quote(path.rsplit('/', 1)[-1])}"
        content = repo.git.blob(file.entry.oid)
        if (wanted := byte_range(call.headers.get("range"), len(content))) is None:
            return Response(content, headers=headers, media_type="text/plain")
        start, end = wanted
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
        return Response(content[start:end], 206, headers=headers, media_type="text/plain")

    def _rows(self, repo: Repo, entries: Sequence[Entry]) -> list[dict[str, Any]]:
        rows = []
        for file in self.hub.files(repo, entries):
            entry = file.entry
            row: dict[str, Any] = {"type": entry.kind, "oid": entry.oid, "size": file.size, "path": entry.path}
            if file.pointer is not None:
                row["lfs"] = {"oid": file.pointer.sha256, "size": file.pointer.size, "pointerSize": entry.size}
            if file.xet_hash is not None:
                row["xetHash"] = file.xet_hash
            rows.append(row)
        return rows

    def _dated_rows(self, repo: Repo, sha: str, entries: Sequence[Entry]) -> list[dict[str, Any]]:
        """Describe entries with the last commit that changed each."""
        changes, commits = repo.git.last_changes(sha), {commit.sha: commit for commit in repo.git.log(sha)}
        rows = self._rows(repo, entries)
        for row in rows:
            last = commits[changes[row["path"]]]
            row["lastCommit"] = {"id": last.sha, "title": last.title, "date": last.date}
        return rows


class GitRoutes(HubRoutes):
    """Handlers for what git itself calls."""

    async def answer(self, handler: Handler, request: Request) -> Response:
        """Answer a call, or say in plain text, which git shows to its user, why not."""
        try:
            call = await read_call(request, limit=_MAX_REQUEST_BYTES)
            call = replace(call, params={**call.params, "name": call.params["name"].removesuffix(".git")})
            return await run_in_threadpool(handler, call)
        except RefusedError as refusal:
            headers, realm = dict(refusal.headers), 'realm="any user name, the access token as password"'
            if refusal.status == 401:  # git asks its user for a name and a password, and comes again
                headers["WWW-Authenticate"] = f'Basic {realm}, charset="UTF-8"'
            return PlainTextResponse(f"{refusal.message}\n", refusal.status, headers=headers)

    @answers(*on_site("/info/refs"))
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

    @answers(*on_site("/git-upload-pack"), method="POST")
    def send_pack(self, call: Call) -> Response:
        """Send the objects that a client wants and does not have."""
        git, body = self.repo(call, "read").git, call.body
        asked = tempfile.TemporaryFile()  # noqa: SIM115 - closed by whoever reads it
        if call.headers.get("content-encoding") in ("gzip", "x-gzip"):  # as git packs it when it is long
            unpacker = zlib.decompressobj(_GZIP)
            try:
                body = unpacker.decompress(body, _MAX_REQUEST_BYTES)
            except zlib.error as error:
                raise RefusedError(400, "The body is not valid gzip") from error
            if unpacker.unconsumed_tail:
                raise RefusedError(413, f"The body exceeds {_MAX_REQUEST_BYTES} bytes")
        asked.write(body)
        asked.seek(0)
        stream = _packed(git, asked, protocol=_protocol(call))
        return StreamingResponse(stream, media_type="application/x-git-upload-pack-result", headers=_NOT_TO_BE_KEPT)

    @answers(*on_site("/git-receive-pack"), method="POST")
    def refuse_push(self, call: Call) -> Response:
        """Say how to write instead; those who may not even see the repository are told only that."""
        self.repo(call, "read")
        raise RefusedError(403, _NO_PUSH)


def _protocol(call: Call) -> str:
    """Return the version that the client asks for, in git's own form; anything else is the oldest."""
    asked = call.headers.get("git-protocol", "")
    return asked if re.fullmatch(r"[a-z0-9=:.-]{1,100}", asked) else ""


def _upload_pack(*options: str) -> list[str]:
    settings = [part for setting in _SETTINGS for part in ("-c", setting)]
    # The folder may belong to somebody else; there is nothing in it that git would run.
    return [*settings, "-c", "safe.directory=*", "upload-pack", "--strict", "--stateless-rpc", *options]


async def _packed(git: GitRepo, asked: BinaryIO, *, protocol: str) -> AsyncIterator[bytes]:
    """Yield what git answers, and end git when nobody listens any more."""
    with asked:
        process = await asyncio.create_subprocess_exec(
            *git.command(*_upload_pack()),
            str(git.path.absolute()),
            stdin=asked,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env={**git.environment(), "GIT_PROTOCOL": protocol},
        )
    try:
        while process.stdout and (block := await process.stdout.read(_BLOCK_BYTES)):
            yield block
    finally:
        if process.returncode is None:
            process.kill()
