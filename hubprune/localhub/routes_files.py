"""Reading a repository: what it holds, and the content."""

from collections.abc import Sequence
from functools import partial
from typing import Any
from urllib.parse import parse_qs, quote

from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from hubprune.localhub import names
from hubprune.localhub.git import Entry
from hubprune.localhub.hub import Repo, StoredFile
from hubprune.localhub.refusal import RefusedError
from hubprune.localhub.routes import REPO, HubRoutes
from hubprune.localhub.routes_storage import cdn_url
from hubprune.localhub.web import Call, byte_range, field, page, route

_ENTRIES_PER_PAGE = 1000


class FileRoutes(HubRoutes):
    """Handlers that read a repository at a revision."""

    def routes(self) -> list[Route]:
        """Return the routes of this part."""
        resolve = "/{namespace}/{name}/resolve/{revision}/{path:path}"
        return [
            route(f"{REPO}/tree/{{revision}}", self.tree),
            route(f"{REPO}/tree/{{revision}}/{{path:path}}", self.tree),
            route(f"{REPO}/paths-info/{{revision}}", self.paths_info, method="POST"),
            route("/{kind:kind}" + resolve, self.resolve),
            route(resolve, self.resolve),
        ]

    def tree(self, call: Call) -> Response:
        """List a folder."""
        repo = self.repo(call, "see")
        path = call.params.get("path", "").strip("/")
        sha = repo.git.resolve(call.params["revision"])
        entries = repo.git.tree(sha, names.file_path(path) if path else "", recursive=call.flag("recursive"))
        rows = partial(self._dated_rows, repo, sha) if call.flag("expand") else partial(self._rows, repo)
        return page(call, entries, size=_ENTRIES_PER_PAGE, describe=rows)

    def paths_info(self, call: Call) -> Response:
        """Describe some paths; those that do not exist are left out."""
        repo = self.repo(call, "see")
        sha = repo.git.resolve(call.params["revision"])
        paths = [path for path in map(_valid_path, _wanted_paths(call)) if path]
        return JSONResponse(self._rows(repo, list(repo.git.entries(sha, paths).values())))

    def resolve(self, call: Call) -> Response:
        """Send a file's content, or the client to where it is when it is a large one."""
        repo = self.repo(call, "read")
        sha, path = repo.git.resolve(call.params["revision"]), names.file_path(call.params["path"])
        (file,) = self.hub.files(repo, [repo.git.file(sha, path)])
        headers = {"X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        if file.pointer is not None:
            headers |= self._large_file_headers(call, repo, file)
            target = cdn_url(self.hub, call, file.pointer.sha256)
            return RedirectResponse(target, 302, headers=headers)
        headers["ETag"] = f'"{file.entry.oid}"'
        headers["Content-Disposition"] = f"inline; filename*=UTF-8''{quote(path.rsplit('/', 1)[-1])}"
        content = repo.git.blob(file.entry.oid)
        if (wanted := byte_range(call.headers.get("range"), len(content))) is None:
            return Response(content, headers=headers, media_type="text/plain")
        start, end = wanted
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
        return Response(content[start:end], 206, headers=headers, media_type="text/plain")

    def _rows(self, repo: Repo, entries: Sequence[Entry]) -> list[dict[str, Any]]:
        return [_row(file) for file in self.hub.files(repo, entries)]

    def _dated_rows(self, repo: Repo, sha: str, entries: Sequence[Entry]) -> list[dict[str, Any]]:
        """Describe entries with the last commit that changed each."""
        changes, commits = repo.git.last_changes(sha), {commit.sha: commit for commit in repo.git.log(sha)}
        rows = self._rows(repo, entries)
        for row in rows:
            last = commits[changes[row["path"]]]
            row["lastCommit"] = {"id": last.sha, "title": last.title, "date": last.date}
        return rows

    def _large_file_headers(self, call: Call, repo: Repo, file: StoredFile) -> dict[str, str]:
        if file.pointer is None:
            return {}
        etag = f'"{file.pointer.sha256}"'
        headers = {"X-Linked-Size": str(file.pointer.size), "X-Linked-ETag": etag, "ETag": etag}
        if self.hub.announces_xet and file.xet_hash:
            revision = quote(call.params["revision"], safe="")
            token_url = f"{call.origin}/api/{repo.kind}/{repo.repo_id}/xet-read-token/{revision}"
            headers["X-Xet-Hash"] = file.xet_hash
            headers["Link"] = f'<{token_url}>; rel="xet-auth"'
        return headers


def _row(file: StoredFile) -> dict[str, Any]:
    """Describe an entry as `tree` and `paths-info` do."""
    entry = file.entry
    row: dict[str, Any] = {"type": entry.kind, "oid": entry.oid, "size": file.size, "path": entry.path}
    if file.pointer is not None:
        row["lfs"] = {"oid": file.pointer.sha256, "size": file.pointer.size, "pointerSize": entry.size}
    if file.xet_hash is not None:
        row["xetHash"] = file.xet_hash
    return row


def _wanted_paths(call: Call) -> list[str]:
    """Read the paths that a client asks for, sent as a form or as JSON."""
    if call.body.lstrip().startswith(b"{"):
        paths = field(call.json(), "paths", list)
    else:
        paths = parse_qs(call.body.decode(errors="replace"), keep_blank_values=True).get("paths", [])
    if not all(isinstance(path, str) for path in paths):
        raise RefusedError(400, "paths has to be a list of strings")
    return [path.strip("/") for path in paths]


def _valid_path(path: str) -> str | None:
    try:
        return names.file_path(path)
    except RefusedError:
        return None
