"""The storage behind the Hub: where large files go, what would be a content delivery network, and the Xet service.

The storage itself knows no accounts. The Hub hands out stamped addresses and short-lived Xet tokens to those who may
have them.
"""

import re
import time
from typing import Any

from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from hubprune.localhub import checks, large_files
from hubprune.localhub.checks import STAMP, RefusedError
from hubprune.localhub.hub import Hub
from hubprune.localhub.web import REPO, Call, HubRoutes, answers, byte_range, field, on_site, read_call, refused

_MAX_FILE_BYTES = 1 << 40
_LINK_SECONDS = 3600
_XET_TOKEN_SECONDS = 900


def cdn_url(hub: Hub, call: Call, sha256: str, *, action: str = "object", part: int | None = None) -> str:
    """Return the stamped address at which a large file can be fetched or uploaded.

    With `part`, only that part of it is uploaded there. The other actions are at the Hub's own address: `complete`
    joins the parts, and `verify` tells whether the file has arrived.
    """
    stamp = hub.accounts.signer.stamp(f"{action} {sha256}", expires=int(time.time()) + _LINK_SECONDS)
    suffix = f"&part={part}" if part is not None else ""
    origin = call.cdn_origin if action == "object" else call.origin
    return f"{origin}/_lfs/{action}/{sha256}?{STAMP}={stamp}{suffix}"


class LfsRoutes(HubRoutes):
    """The handler for what `git lfs` and uploading clients ask first."""

    @answers(*on_site(".git/info/lfs/objects/batch"), method="POST")
    def batch(self, call: Call) -> Response:
        """Say for each large file where it can be fetched or uploaded."""
        body = call.json()
        operation = field(body, "operation", str, "upload")
        if operation not in ("download", "upload"):
            raise RefusedError(400, "operation is download or upload")
        try:
            answer = self._downloads(call, body) if operation == "download" else self._uploads(call, body)
        except RefusedError as refusal:
            if refusal.status != 401:
                raise
            response = refused(refusal)
            response.headers["LFS-Authenticate"] = 'Basic realm="any user name, the access token as password"'
            return response
        return JSONResponse(answer, media_type="application/vnd.git-lfs+json")

    def _downloads(self, call: Call, body: dict[str, Any]) -> dict[str, Any]:
        # The store is one for all repositories: a file is given only to those who may read one that has it.
        known = self.hub.large_files(self.repo(call, "read"))
        objects = []
        for sha256, size in _wanted(body):
            row: dict[str, Any] = {"oid": sha256, "size": size}
            if sha256 in known and self.hub.stored_size(sha256) == size:
                row["actions"] = {"download": {"href": cdn_url(self.hub, call, sha256)}}
            else:
                row["error"] = {"code": 404, "message": "This repository has no such file"}
            objects.append(row)
        return {"transfer": "basic", "objects": objects}

    def _uploads(self, call: Call, body: dict[str, Any]) -> dict[str, Any]:
        self.repo(call, "propose")
        multipart = "multipart" in field(body, "transfers", list, ["basic"])
        objects = []
        for sha256, size in _wanted(body):
            row: dict[str, Any] = {"oid": sha256, "size": size}
            if self.hub.stored_size(sha256) is None:
                upload: dict[str, Any] = {"href": cdn_url(self.hub, call, sha256), "header": {}}
                if multipart and size > large_files.PART_BYTES:
                    count = -(-size // large_files.PART_BYTES)
                    parts = {str(part): cdn_url(self.hub, call, sha256, part=part) for part in range(1, count + 1)}
                    upload["href"] = cdn_url(self.hub, call, sha256, action="complete")
                    upload["header"] = {"chunk_size": str(large_files.PART_BYTES), **parts}
                verify = {"href": cdn_url(self.hub, call, sha256, action="verify"), "header": {}}
                row["actions"] = {"upload": upload, "verify": verify}
            objects.append(row)
        return {"transfer": "multipart" if multipart else "basic", "objects": objects}


def _wanted(body: dict[str, Any]) -> list[tuple[str, int]]:
    """Read the files that a client names: SHA-256 and size in bytes."""
    wanted = []
    for item in field(body, "objects", list):
        if not isinstance(item, dict):
            raise RefusedError(400, "An object is not a JSON object")
        sha256, size = checks.digest(field(item, "oid", str)), field(item, "size", int)
        if not 0 <= size <= _MAX_FILE_BYTES:
            raise RefusedError(400, f"A file cannot have {size} bytes")
        wanted.append((sha256, size))
    return wanted


class StorageRoutes(HubRoutes):
    """Handlers for large files and for Xet's content-addressed store."""

    def routes(self) -> list[Route]:
        """Return the routes of all handlers, and of the one that streams what it is sent."""
        return [*super().routes(), Route("/_lfs/object/{sha256}", self.upload, methods=["PUT"])]

    # Large files

    @answers("/_lfs/object/{sha256}")
    def download(self, call: Call) -> Response:
        """Send a large file or a range of it."""
        path = self.hub.large_file(sha256 := self._stamped(call, "object"))
        return FileResponse(path, headers={"ETag": f'"{sha256}"'}, media_type="application/octet-stream")

    async def upload(self, request: Request) -> Response:
        """Take a large file, or one part of it, as it comes in."""
        call = await read_call(request, limit=0)
        sha256, part = self._stamped(call, "object"), call.query.get("part")
        if part is not None and not re.fullmatch("[0-9]{1,5}", part):
            raise RefusedError(400, "Invalid part number")
        etag = await self.hub.lfs.receive(sha256, request.stream(), part=int(part) if part else None)
        return Response(status_code=200, headers={"ETag": etag})

    @answers("/_lfs/complete/{sha256}", method="POST")
    def complete(self, call: Call) -> Response:
        """Join the uploaded parts of a large file."""
        sha256 = self._stamped(call, "complete")
        parts = [part for part in field(call.json(), "parts", list) if isinstance(part, dict)]
        self.hub.lfs.join(sha256, [field(part, "partNumber", int) for part in parts])
        return JSONResponse({})

    @answers("/_lfs/verify/{sha256}", method="POST")
    def verify(self, call: Call) -> Response:
        """Confirm that a large file has arrived with the size that the client expects."""
        sha256, body = self._stamped(call, "verify"), call.json()
        if (field(body, "oid", str), field(body, "size", int)) != (sha256, self.hub.stored_size(sha256)):
            raise RefusedError(404, "No such object, or not of that size")
        return JSONResponse({})

    # Xet

    @answers(f"{REPO}/xet-read-token/{{revision}}")
    def xet_read_token(self, call: Call) -> Response:
        """Let the caller read from the Xet store if it may read the repository."""
        self.repo(call, "read")
        return self._xet_token(call, "xet-read")

    @answers(f"{REPO}/xet-write-token/{{revision}}")
    def xet_write_token(self, call: Call) -> Response:
        """Let the caller add to the Xet store if it may commit, or open a pull request."""
        self.repo_to_change(call)
        return self._xet_token(call, "xet-write")

    @answers("/_xet/v1/xorbs/{prefix}/{hash}", method="POST")
    def put_xorb(self, call: Call) -> Response:
        """Store a xorb."""
        self._check_xet(call, "xet-write")
        return JSONResponse({"was_inserted": self.hub.xet.put_xorb(checks.digest(call.params["hash"]), call.body)})

    @answers("/_xet/v1/shards", method="POST")
    def put_shard(self, call: Call) -> Response:
        """Store a shard, which makes its files known."""
        self._check_xet(call, "xet-write")
        self.hub.xet.put_shard(call.body)
        return JSONResponse({"result": 1})

    @answers("/_xet/v1/chunks/{prefix}/{hash}")
    def find_chunk(self, call: Call) -> Response:
        """Say which xorb holds a chunk, so that the client need not upload it again."""
        self._check_xet(call, "xet-write")
        answer = self.hub.xet.dedup_answer(checks.digest(call.params["hash"]))
        return Response(answer, media_type="application/octet-stream")

    @answers("/_xet/v1/reconstructions/{hash}")
    def reconstruct(self, call: Call) -> Response:
        """Say which chunks make up a file, or a range of it, and where to fetch them."""
        self._check_xet(call, "xet-read")
        recipe = self.hub.xet.by_hash(checks.digest(call.params["hash"]))
        start, end = byte_range(call.headers.get("range"), recipe.size) or (0, recipe.size)
        skip, spans = self.hub.xet.spans(recipe, start, end)
        fetches: dict[str, list[dict[str, object]]] = {}
        for span in spans:
            stamp = self.hub.accounts.signer.stamp(f"xorb {span.xorb}", expires=int(time.time()) + _LINK_SECONDS)
            url = f"{call.origin}/_xet/xorb/{span.xorb}?{STAMP}={stamp}"
            fetches.setdefault(span.xorb, []).append(span.locate(url))
        terms = [span.describe() for span in spans]
        return JSONResponse({"offset_into_first_range": skip, "terms": terms, "fetch_info": fetches})

    @answers("/_xet/xorb/{hash}")
    def xorb_bytes(self, call: Call) -> Response:
        """Send a range of a xorb, as it was packed."""
        xorb = checks.digest(call.params["hash"])
        self._check_stamp(call, f"xorb {xorb}")
        if not (path := self.hub.xet.xorb_path(xorb)).exists():
            raise RefusedError(404, "No xorb of this hash")
        return FileResponse(path, media_type="application/octet-stream")

    def _xet_token(self, call: Call, permission: str) -> Response:
        expires = int(time.time()) + _XET_TOKEN_SECONDS
        token = f"{permission}:{self.hub.accounts.signer.stamp(permission, expires=expires)}"
        url = f"{call.origin}/_xet"
        headers = {"X-Xet-Cas-Url": url, "X-Xet-Access-Token": token, "X-Xet-Token-Expiration": str(expires)}
        return JSONResponse({"casUrl": url, "exp": expires, "accessToken": token}, headers=headers)

    def _check_xet(self, call: Call, permission: str) -> None:
        token = call.headers.get("authorization", "").removeprefix("Bearer ").strip()
        granted, _, stamp = token.partition(":")
        if granted not in (permission, "xet-write") or not self.hub.accounts.signer.holds(granted, stamp):
            raise RefusedError(401, "This Xet token does not allow that, or has run out")

    def _stamped(self, call: Call, action: str) -> str:
        sha256 = checks.digest(call.params["sha256"])
        self._check_stamp(call, f"{action} {sha256}")
        return sha256

    def _check_stamp(self, call: Call, permission: str) -> None:
        if not self.hub.accounts.signer.holds(permission, call.query.get(STAMP, "")):
            raise RefusedError(403, "This address has no valid stamp")
