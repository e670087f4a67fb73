"""Git's protocol for large files: where each is to be fetched from, or uploaded to."""

from typing import Any

from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from hubprune.localhub import lfs, names
from hubprune.localhub.refusal import RefusedError
from hubprune.localhub.routes import HubRoutes
from hubprune.localhub.routes_storage import cdn_url
from hubprune.localhub.web import Call, field, refusal_response, route

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
