"""The storage behind the Hub: what would be a content delivery network, and the Xet service.

Neither knows accounts. The Hub hands out stamped addresses and short-lived Xet tokens to those who may have them.

Git's protocol for large files: where each is to be fetched from, or uploaded to.
"""

import re
import time
from typing import Any

from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from hubprune.localhub import lfs, names
from hubprune.localhub.hub import Hub
from hubprune.localhub.names import RefusedError
from hubprune.localhub.web import REPO, Call, HubRoutes, byte_range, field, read_call, refusal_response, route

# ---- routes lfs ----------------------------------------------------------------------------------------------------


_MAX_FILE_BYTES = 1 << 40
_MEDIA_TYPE = "application/vnd.git-lfs+json"


class LfsRoutes(HubRoutes):
    """Handlers for what `git lfs` and uploading clients ask first."""

    def routes(self) -> list[Route]:
        """Return the routes of this part."""
        address = "/{namespace}/{name}.git/info/lfs/objects/batch"
        return [
            route("/{kind:kind}" + address, self.batch, method="POST"),
            route(address, self.batch, method="POST"),
        ]

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
            refused = refusal_response(refusal)
            refused.headers["LFS-Authenticate"] = 'Basic realm="any user name, the access token as password"'
            return refused
        return JSONResponse(answer, media_type=_MEDIA_TYPE)

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
        objects = [self._upload(call, sha256, size, multipart=multipart) for sha256, size in _wanted(body)]
        return {"transfer": "multipart" if multipart else "basic", "objects": objects}

    def _upload(self, call: Call, sha256: str, size: int, *, multipart: bool) -> dict[str, Any]:
        row: dict[str, Any] = {"oid": sha256, "size": size}
        if self.hub.stored_size(sha256) is None:
            in_parts = multipart and size > lfs.PART_BYTES
            whole = {"href": cdn_url(self.hub, call, sha256), "header": {}}
            upload = self._in_parts(call, sha256, size) if in_parts else whole
            row["actions"] = {
                "upload": upload,
                "verify": {"href": cdn_url(self.hub, call, sha256, action="verify"), "header": {}},
            }
        return row

    def _in_parts(self, call: Call, sha256: str, size: int) -> dict[str, Any]:
        parts = {
            str(number): cdn_url(self.hub, call, sha256, part=number)
            for number in range(1, -(-size // lfs.PART_BYTES) + 1)
        }
        return {
            "href": cdn_url(self.hub, call, sha256, action="complete"),
            "header": {"chunk_size": str(lfs.PART_BYTES), **parts},
        }


def _wanted(body: dict[str, Any]) -> list[tuple[str, int]]:
    """Read the files that a client names: SHA-256 and size in bytes."""
    wanted = []
    for item in field(body, "objects", list):
        if not isinstance(item, dict):
            raise RefusedError(400, "An object is not a JSON object")
        sha256, size = names.digest(field(item, "oid", str)), field(item, "size", int)
        if not 0 <= size <= _MAX_FILE_BYTES:
            raise RefusedError(400, f"A file cannot have {size} bytes")
        wanted.append((sha256, size))
    return wanted


# ---- routes storage ------------------------------------------------------------------------------------------------


STAMP = "stamp"
"""Query parameter that carries a stamp; request logs leave it out."""
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


class StorageRoutes(HubRoutes):
    """Handlers for large files and for Xet's content-addressed store."""

    def routes(self) -> list[Route]:
        """Return the routes of this part."""
        return [
            route("/_lfs/object/{sha256}", self.download),
            Route("/_lfs/object/{sha256}", self.upload, methods=["PUT"]),
            route("/_lfs/complete/{sha256}", self.complete, method="POST"),
            route("/_lfs/verify/{sha256}", self.verify, method="POST"),
            route(f"{REPO}/xet-read-token/{{revision}}", self.xet_read_token),
            route(f"{REPO}/xet-write-token/{{revision}}", self.xet_write_token),
            route("/_xet/v1/xorbs/{prefix}/{hash}", self.put_xorb, method="POST"),
            route("/_xet/v1/shards", self.put_shard, method="POST"),
            route("/_xet/v1/chunks/{prefix}/{hash}", self.find_chunk),
            route("/_xet/v1/reconstructions/{hash}", self.reconstruct),
            route("/_xet/xorb/{hash}", self.xorb_bytes),
        ]

    # Large files

    def download(self, call: Call) -> Response:
        """Send a large file or a range of it."""
        sha256 = self._stamped(call, "object")
        path = self.hub.large_file(sha256)
        return FileResponse(path, headers={"ETag": f'"{sha256}"'}, media_type="application/octet-stream")

    async def upload(self, request: Request) -> Response:
        """Take a large file, or one part of it, as it comes in."""
        call = await read_call(request, limit=0)
        sha256, part = self._stamped(call, "object"), call.query.get("part")
        if part is not None and not re.fullmatch("[0-9]{1,5}", part):
            raise RefusedError(400, "Invalid part number")
        etag = await self.hub.lfs.receive(sha256, request.stream(), part=int(part) if part else None)
        return Response(status_code=200, headers={"ETag": etag})

    def complete(self, call: Call) -> Response:
        """Join the uploaded parts of a large file."""
        sha256 = self._stamped(call, "complete")
        numbers = [
            field(part, "partNumber", int) for part in field(call.json(), "parts", list) if isinstance(part, dict)
        ]
        self.hub.lfs.join(sha256, numbers)
        return JSONResponse({})

    def verify(self, call: Call) -> Response:
        """Confirm that a large file has arrived with the size that the client expects."""
        sha256, body = self._stamped(call, "verify"), call.json()
        if (field(body, "oid", str), field(body, "size", int)) != (sha256, self.hub.stored_size(sha256)):
            raise RefusedError(404, "No such object, or not of that size")
        return JSONResponse({})

    # Xet

    def xet_read_token(self, call: Call) -> Response:
        """Let the caller read from the Xet store if it may read the repository."""
        self.repo(call, "read")
        return self._xet_token(call, "xet-read")

    def xet_write_token(self, call: Call) -> Response:
        """Let the caller add to the Xet store if it may commit, or open a pull request."""
        self.repo_to_change(call)
        return self._xet_token(call, "xet-write")

    def put_xorb(self, call: Call) -> Response:
        """Store a xorb."""
        self._xet_caller(call, "xet-write")
        return JSONResponse({"was_inserted": self.hub.xet.put_xorb(names.digest(call.params["hash"]), call.body)})

    def put_shard(self, call: Call) -> Response:
        """Store a shard, which makes its files known."""
        self._xet_caller(call, "xet-write")
        self.hub.xet.put_shard(call.body)
        return JSONResponse({"result": 1})

    def find_chunk(self, call: Call) -> Response:
        """Say which xorb holds a chunk, so that the client need not upload it again."""
        self._xet_caller(call, "xet-write")
        answer = self.hub.xet.dedup_answer(names.digest(call.params["hash"]))
        return Response(answer, media_type="application/octet-stream")

    def reconstruct(self, call: Call) -> Response:
        """Say which chunks make up a file, or a range of it, and where to fetch them."""
        self._xet_caller(call, "xet-read")
        recipe = self.hub.xet.by_hash(names.digest(call.params["hash"]))
        start, end = byte_range(call.headers.get("range"), recipe.size) or (0, recipe.size)
        skip, spans = self.hub.xet.spans(recipe, start, end)
        fetches: dict[str, list[dict[str, object]]] = {}
        for span in spans:
            fetches.setdefault(span.xorb, []).append(span.locate(self._xorb_url(call, span.xorb)))
        terms = [span.describe() for span in spans]
        return JSONResponse({"offset_into_first_range": skip, "terms": terms, "fetch_info": fetches})

    def xorb_bytes(self, call: Call) -> Response:
        """Send a range of a xorb, as it was packed."""
        xorb = names.digest(call.params["hash"])
        self._check(call, f"xorb {xorb}")
        path = self.hub.xet.xorb_path(xorb)
        if not path.exists():
            raise RefusedError(404, "No xorb of this hash")
        return FileResponse(path, media_type="application/octet-stream")

    def _xorb_url(self, call: Call, xorb: str) -> str:
        stamp = self.hub.accounts.signer.stamp(f"xorb {xorb}", expires=int(time.time()) + _LINK_SECONDS)
        return f"{call.origin}/_xet/xorb/{xorb}?{STAMP}={stamp}"

    def _xet_token(self, call: Call, permission: str) -> Response:
        expires = int(time.time()) + _XET_TOKEN_SECONDS
        token = f"{permission}:{self.hub.accounts.signer.stamp(permission, expires=expires)}"
        url = f"{call.origin}/_xet"
        headers = {"X-Xet-Cas-Url": url, "X-Xet-Access-Token": token, "X-Xet-Token-Expiration": str(expires)}
        return JSONResponse({"casUrl": url, "exp": expires, "accessToken": token}, headers=headers)

    def _xet_caller(self, call: Call, permission: str) -> None:
        token = call.headers.get("authorization", "").removeprefix("Bearer ").strip()
        granted, _, stamp = token.partition(":")
        sufficient = granted == permission or granted == "xet-write"
        if not sufficient or not self.hub.accounts.signer.holds(granted, stamp):
            raise RefusedError(401, "This Xet token does not allow that, or has run out")

    # Stamps

    def _stamped(self, call: Call, action: str) -> str:
        sha256 = names.digest(call.params["sha256"])
        self._check(call, f"{action} {sha256}")
        return sha256

    def _check(self, call: Call, permission: str) -> None:
        if not self.hub.accounts.signer.holds(permission, call.query.get(STAMP, "")):
            raise RefusedError(403, "This address has no valid stamp")
