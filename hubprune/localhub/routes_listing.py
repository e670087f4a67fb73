"""Which repositories there are, and what each is about."""

from collections.abc import Callable, Sequence
from typing import Any

from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from hubprune.localhub import names
from hubprune.localhub.access import Account
from hubprune.localhub.descriptions import (
    BY_ITSELF,
    IN_FULL_LISTS,
    IN_LISTS,
    Description,
    HeaderError,
    expanded,
    read_headers,
)
from hubprune.localhub.hub import Repo, StoredFile
from hubprune.localhub.names import RefusedError
from hubprune.localhub.web import REPO, Call, HubRoutes, page, route

_PER_PAGE = 1000
_UNKNOWN_HERE = ("apps", "inference", "inference_provider", "num_parameters", "emissions_thresholds")
"""Filters over what only the real Hub knows."""

_ORDERS: dict[str, Callable[[Description], Any]] = {
    "createdAt": lambda shown: shown.settings.created,
    "lastModified": lambda shown: shown.changed,
    "downloads": lambda shown: 0,
    "likes": lambda shown: 0,
    "trendingScore": lambda shown: 0,
}


class ListingRoutes(HubRoutes):
    """Handlers that describe repositories, one or many."""

    def routes(self) -> list[Route]:
        """Return the routes of this part."""
        return [
            route("/api/{kind:kind}", self.search),
            route("/api/spaces", self.no_spaces),
            route("/api/settings/repositories", self.storage),
            route("/api/organizations/{namespace}/settings/repositories", self.storage),
            route(REPO, self.info),
            route(f"{REPO}/revision/{{revision}}", self.info),
            route(f"{REPO}/safetensors-metadata/{{path:path}}", self.tensors),
            route(f"{REPO}/lfs-files", self.large_files),
        ]

    def info(self, call: Call) -> Response:
        """Describe one repository: its card, its files, its commit."""
        repo = self.repo(call, "see")
        sha = repo.git.resolve(call.params.get("revision", "main"))
        asked = expanded(call.query.getlist("expand"))
        return JSONResponse(Description(self.hub, repo, sha).describe(asked or BY_ITSELF))

    def tensors(self, call: Call) -> Response:
        """Tell what tensors a sharded model has, from the headers of its files."""
        repo = self.repo(call, "read")
        try:
            path, sha = names.file_path(call.params["path"]), repo.git.resolve("main")
            metadata, headers = read_headers(self.hub, repo, sha, path)
        except HeaderError as error:
            raise RefusedError(400, str(error)) from error
        return JSONResponse({"index": {"metadata": metadata}, "headers": headers})

    def large_files(self, call: Call) -> Response:
        """List the large files of all branches, tags and pull requests, each once."""
        repo, rows = self.repo(call, "see"), dict[str, dict[str, Any]]()
        for ref, sha in repo.git.refs().items():
            entries = [entry for entry in repo.git.tree(sha, recursive=True) if entry.kind == "file"]
            for file in self.hub.files(repo, entries):
                if file.pointer is not None:
                    rows.setdefault(file.pointer.sha256, _large_file_row(file, ref, repo.git.log(sha, limit=1)[0].date))
        return page(call, list(rows.values()), size=_PER_PAGE, describe=list)

    def search(self, call: Call) -> Response:
        """List the repositories that the caller may see and that match, the newest commit first unless sorted."""
        if unknown := [name for name in _UNKNOWN_HERE if name in call.query]:
            raise RefusedError(501, f"The local Hub cannot filter by {', '.join(unknown)}: nobody tells it that")
        order = call.query.get("sort", "lastModified")
        if order not in _ORDERS:
            raise RefusedError(400, f"Invalid sort: use one of {', '.join(_ORDERS)}")
        visible = self._visible(call.kind, self.caller(call))
        found = [shown for shown in visible if _matches(call, shown)]
        found.sort(key=_ORDERS[order], reverse=True)
        asked = _asked(call)
        return page(call, found, size=_page_size(call), describe=lambda part: [shown.describe(asked) for shown in part])

    def no_spaces(self, call: Call) -> Response:
        """List nothing, which is what there is."""
        return JSONResponse([])

    def storage(self, call: Call) -> Response:
        """List the repositories of the caller, or of one of their organizations, with what they take on disk."""
        account = self.known_caller(call)
        namespace = call.params.get("namespace", account.name)
        if not account.belongs_to(namespace):
            raise RefusedError(403, f"You are not a member of {namespace}")
        mine = [shown for kind in names.KINDS for shown in self._visible(kind, account) if _in(namespace, shown.repo)]
        total = sum(shown.storage for shown in mine) or 1
        rows = [_storage_row(shown, total) for shown in sorted(mine, key=lambda shown: shown.changed, reverse=True)]
        return page(call, rows, size=_PER_PAGE, describe=list)

    def _visible(self, kind: str, account: Account | None) -> list[Description]:
        """Describe the repositories that an account may see, each at its main branch."""
        visible = [
            (repo, repo.git.refs().get("refs/heads/main"))
            for repo in self.hub.repos(kind)
            if not repo.settings.private or (account and account.knows(repo.repo_id))
        ]
        return [Description(self.hub, repo, sha) for repo, sha in visible if sha]


def _in(namespace: str, repo: Repo) -> bool:
    return repo.repo_id.split("/")[0] == namespace


def _matches(call: Call, shown: Description) -> bool:
    """Tell whether a repository is among those that a client looks for; the cheapest questions come first."""
    query = call.query
    if (author := query.get("author")) and not _in(author, shown.repo):
        return False
    if (search := query.get("search")) and search.lower() not in shown.repo.repo_id.lower():
        return False
    if (gated := query.get("gated")) and (gated.lower() == "true") != bool(shown.settings.gated):
        return False
    if (task := query.get("pipeline_tag")) and task != shown.of_model("pipeline_tag"):
        return False
    wanted = {tag for value in query.getlist("filter") for tag in value.split(",")}
    return not wanted or wanted <= {*shown.tags, shown.of_model("pipeline_tag")}


def _asked(call: Call) -> Sequence[str]:
    """Return the properties that a list is to tell of each repository."""
    if asked := expanded(call.query.getlist("expand")):
        return asked
    listed = IN_FULL_LISTS[call.kind] if call.flag("full") else IN_LISTS[call.kind]
    return [*listed, *(["cardData"] if call.flag("cardData") else []), *(["config"] if call.flag("config") else [])]


def _page_size(call: Call) -> int:
    limit = call.query.get("limit", str(_PER_PAGE))
    if not (limit.isascii() and limit.isdigit() and len(limit) < 10 and int(limit) > 0):
        raise RefusedError(400, "limit is a number above 0")
    return min(int(limit), _PER_PAGE)


def _large_file_row(file: StoredFile, ref: str, date: str) -> dict[str, Any]:
    sha256, size = (file.pointer.sha256, file.pointer.size) if file.pointer else (file.entry.oid, file.entry.size)
    path = file.entry.path
    return {"fileOid": sha256, "filename": path, "oid": sha256, "pushedAt": date, "ref": ref, "size": size}


def _storage_row(shown: Description, total: int) -> dict[str, Any]:
    return {
        "id": shown.repo.repo_id,
        "type": shown.repo.kind.removesuffix("s"),
        "updatedAt": shown.changed,
        "visibility": "private" if shown.settings.private else "public",
        "storage": shown.storage,
        "storagePercent": round(100 * shown.storage / total, 2),
    }
