"""Which repositories there are, and what each is about: its card, its files, the tensors of its safetensors files."""

import json
import math
import struct
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any

from starlette.responses import JSONResponse, Response

from hubprune.localhub import cards, checks
from hubprune.localhub.checks import Account, RefusedError, timestamp
from hubprune.localhub.hub import Hub, Repo, StoredFile
from hubprune.localhub.web import REPO, Call, HubRoutes, answers, page

_PER_PAGE = 1000
_NO_FILTERS = ("apps", "inference", "inference_provider", "num_parameters", "emissions_thresholds")
"""Filters over what only the real Hub knows."""

_CONFIG_KEYS = ("architectures", "auto_map", "model_type", "quantization_config")
"""What the Hub repeats of a model's config.json."""
_BRIEF = ("createdAt", "downloads", "library_name", "likes", "pipeline_tag", "private", "tags")
_FULL = (*_BRIEF, "author", "disabled", "gated", "lastModified", "sha")
_IN_LISTS = {"models": _BRIEF, "datasets": (*_FULL, "trendingScore")}
"""What a list tells by default, by kind of repository."""
_IN_FULL_LISTS = {"models": (*_FULL, "siblings"), "datasets": (*_FULL, "cardData", "siblings")}
"""What a list tells when all is asked for."""
_BY_ITSELF = (*_FULL, "cardData", "config", "model-index", "safetensors", "siblings", "spaces", "usedStorage")
"""What one repository tells by default."""

_SINGLE_FILE = "model.safetensors"
_INDEX_FILE = "model.safetensors.index.json"
_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 25_000_000
"""Limit of the Hub's own clients."""


class ListingRoutes(HubRoutes):
    """Handlers that describe repositories, one or many."""

    @answers("/api/{kind:kind}")
    def search(self, call: Call) -> Response:
        """List the repositories that the caller may see and that match, the newest commit first unless sorted."""
        if unknown := [name for name in _NO_FILTERS if name in call.query]:
            raise RefusedError(501, f"The local Hub cannot filter by {', '.join(unknown)}: nobody tells it that")
        order = call.query.get("sort", "lastModified")
        if order not in _ORDERS:
            raise RefusedError(400, f"Invalid sort: use one of {', '.join(_ORDERS)}")
        found = [shown for shown in self._visible(call.kind, self.caller(call)) if _matches(call, shown)]
        found.sort(key=_ORDERS[order], reverse=True)
        if not (asked := _expanded(call)):
            asked += (_IN_FULL_LISTS if call.flag("full") else _IN_LISTS)[call.kind]
            asked += [name for name in ("cardData", "config") if call.flag(name)]
        limit = call.query.get("limit", str(_PER_PAGE))
        if not (limit.isascii() and limit.isdigit() and len(limit) < 10 and int(limit) > 0):
            raise RefusedError(400, "limit is a number above 0")
        size = min(int(limit), _PER_PAGE)
        return page(call, found, size=size, describe=lambda part: [shown.describe(asked) for shown in part])

    @answers("/api/spaces")
    def no_spaces(self, call: Call) -> Response:
        """List nothing, which is what there is."""
        return JSONResponse([])

    @answers("/api/settings/repositories", "/api/organizations/{namespace}/settings/repositories")
    def storage(self, call: Call) -> Response:
        """List the repositories of the caller, or of one of their organizations, with what they take on disk."""
        account = self.known_caller(call)
        namespace = call.params.get("namespace", account.name)
        if not account.belongs_to(namespace):
            raise RefusedError(403, f"You are not a member of {namespace}")
        mine = [shown for kind in checks.KINDS for shown in self._visible(kind, account) if shown.owner == namespace]
        total, rows = sum(shown.storage for shown in mine) or 1, []
        for shown in sorted(mine, key=lambda shown: shown.changed, reverse=True):
            share = round(100 * shown.storage / total, 2)
            row = {"id": shown.repo.repo_id, "type": shown.repo.kind.removesuffix("s"), "updatedAt": shown.changed}
            row["visibility"] = "private" if shown.settings.private else "public"
            rows.append({**row, "storage": shown.storage, "storagePercent": share})
        return page(call, rows, size=_PER_PAGE, describe=list)

    @answers(REPO, f"{REPO}/revision/{{revision}}")
    def info(self, call: Call) -> Response:
        """Describe one repository: its card, its files, its commit."""
        repo, sha = self.revision(call, "see")
        return JSONResponse(Description(self.hub, repo, sha).describe(_expanded(call) or _BY_ITSELF))

    @answers(f"{REPO}/safetensors-metadata/{{path:path}}")
    def tensors(self, call: Call) -> Response:
        """Tell what tensors a sharded model has, from the headers of its files."""
        repo = self.repo(call, "read")
        try:
            path, sha = checks.file_path(call.params["path"]), repo.git.resolve("main")
            metadata, headers = read_headers(self.hub, repo, sha, path)
        except HeaderError as error:
            raise RefusedError(400, str(error)) from error
        return JSONResponse({"index": {"metadata": metadata}, "headers": headers})

    @answers(f"{REPO}/lfs-files")
    def large_files(self, call: Call) -> Response:
        """List the large files of all branches, tags and pull requests, each once."""
        repo, rows = self.repo(call, "see"), dict[str, dict[str, Any]]()
        for ref, sha in repo.git.refs().items():
            for file in self.hub.files_at(repo, sha):
                if file.pointer is not None and file.pointer.sha256 not in rows:
                    sha256, date = file.pointer.sha256, repo.git.log(sha, limit=1)[0].date
                    row = {"fileOid": sha256, "filename": file.entry.path, "oid": sha256, "pushedAt": date}
                    rows[sha256] = {**row, "ref": ref, "size": file.pointer.size}
        return page(call, list(rows.values()), size=_PER_PAGE, describe=list)

    def _visible(self, kind: str, account: Account | None) -> list["Description"]:
        """Describe the repositories that an account may see, each at its main branch."""
        found = []
        for repo in self.hub.repos(kind):
            visible = not repo.settings.private or (account and account.knows(repo.repo_id))
            if visible and (sha := repo.git.refs().get("refs/heads/main")):
                found.append(Description(self.hub, repo, sha))
        return found


def _matches(call: Call, shown: "Description") -> bool:
    """Tell whether a repository is among those that a client looks for; the cheapest questions come first."""
    query = call.query
    if (author := query.get("author")) and author != shown.owner:
        return False
    if (search := query.get("search")) and search.lower() not in shown.repo.repo_id.lower():
        return False
    if (gated := query.get("gated")) and (gated.lower() == "true") != bool(shown.settings.gated):
        return False
    if (task := query.get("pipeline_tag")) and task != shown.of_model("pipeline_tag"):
        return False
    wanted = {tag for value in query.getlist("filter") for tag in value.split(",")}
    return not wanted or wanted <= {*shown.tags, shown.of_model("pipeline_tag")}


def _expanded(call: Call) -> list[str]:
    """Return the properties that a client asks for by name; a name that the Hub does not know is refused."""
    asked = call.query.getlist("expand")
    if unknown := [name for name in asked if name not in _PROPERTIES and name not in _UNKNOWN_HERE]:
        raise RefusedError(400, f"Invalid expand: {', '.join(unknown)}")
    return asked


class Description:
    """A repository at one commit; what is not asked for is not looked up."""

    def __init__(self, hub: Hub, repo: Repo, sha: str) -> None:
        self._hub, self.repo, self.sha = hub, repo, sha
        self.settings, self.owner = repo.settings, repo.repo_id.split("/")[0]

    def describe(self, properties: Iterable[str]) -> dict[str, Any]:
        """Return the named properties, without those that the repository does not have."""
        found = {name: _PROPERTIES[name](self) for name in properties if name in _PROPERTIES}
        named = ("_id", "id", *(["modelId"] if self.repo.kind == "models" else []))
        known = dict.fromkeys(named, self.repo.repo_id)
        return {**known, **{name: value for name, value in found.items() if value is not None}}

    @cached_property
    def card(self) -> dict[str, Any]:
        """The metadata of the README.md."""
        try:
            return cards.read_metadata(self._texts.get("README.md", ""))
        except cards.MetadataError:  # the rules were laxer when it was committed
            return {}

    @cached_property
    def config(self) -> dict[str, Any] | None:
        """The part of a model's config.json that the Hub repeats, None where there is none."""
        try:
            config = json.loads(self._texts.get("config.json", "null"))
            known = {key: config[key] for key in _CONFIG_KEYS if key in config} if isinstance(config, dict) else None
            return cards.as_json(known) if known is not None else None
        except (ValueError, RecursionError):  # no JSON, or none that can be written again
            return None

    @cached_property
    def files(self) -> list[StoredFile]:
        """All files, seen through their pointers."""
        return self._hub.files_at(self.repo, self.sha)

    @cached_property
    def tags(self) -> list[str]:
        """What the Hub derives from the card."""
        return cards.tags(self.card)

    @cached_property
    def changed(self) -> str:
        """When the commit was made."""
        return self.repo.git.log(self.sha, limit=1)[0].date

    @property
    def parameters(self) -> dict[str, Any] | None:
        """How many parameters a model has, by dtype and in total."""
        return count_parameters(self._hub, self.repo, self.sha) if self.repo.kind == "models" else None

    @property
    def storage(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def siblings(self) -> list[dict[str, Any]]:
        """All files, as the Hub lists them."""
        rows = []
        for file in self.files:
            row: dict[str, Any] = {"rfilename": file.entry.path, "blobId": file.entry.oid, "size": file.size}
            if (pointer := file.pointer) is not None:
                row["lfs"] = {"sha256": pointer.sha256, "size": pointer.size, "pointerSize": file.entry.size}
            rows.append(row)
        return rows

    @property
    def base_models(self) -> dict[str, Any] | None:
        """The models that a model says it comes from."""
        if not (named := self.of_model("base_model")):
            return None
        models = [{"_id": name, "id": name} for name in (named if isinstance(named, list) else [named])]
        return {"relation": self.card.get("base_model_relation"), "models": models}

    def of_model(self, key: str) -> Any:
        """Return what the card of a model says about something; data sets say it elsewhere."""
        return self.card.get(key) if self.repo.kind == "models" else None

    @cached_property
    def _texts(self) -> dict[str, str]:
        found = self.repo.git.entries(self.sha, ["README.md", "config.json"])
        blobs = self.repo.git.blobs(entry.oid for entry in found.values() if entry.kind == "file")
        return {path: blobs[entry.oid].decode(errors="replace") for path, entry in found.items() if entry.oid in blobs}


_PROPERTIES: dict[str, Callable[[Description], Any]] = {
    "author": lambda shown: shown.owner,
    "baseModels": lambda shown: shown.base_models,
    "cardData": lambda shown: shown.card,
    "config": lambda shown: shown.config if shown.repo.kind == "models" else None,
    "createdAt": lambda shown: timestamp(shown.settings.created),
    "disabled": lambda shown: False,
    "downloads": lambda shown: 0,
    "downloadsAllTime": lambda shown: 0,
    "gated": lambda shown: shown.settings.gated,
    "lastModified": lambda shown: shown.changed,
    "library_name": lambda shown: shown.of_model("library_name"),
    "likes": lambda shown: 0,
    "model-index": lambda shown: shown.of_model("model-index"),
    "pipeline_tag": lambda shown: shown.of_model("pipeline_tag"),
    "private": lambda shown: shown.settings.private,
    "safetensors": lambda shown: shown.parameters,
    "sha": lambda shown: shown.sha,
    "siblings": lambda shown: shown.siblings,
    "spaces": lambda shown: [] if shown.repo.kind == "models" else None,
    "tags": lambda shown: shown.tags,
    "trendingScore": lambda shown: 0,
    "usedStorage": lambda shown: shown.storage,
}

# What the Hub can tell and this one cannot: asked for, it is left out of the answer.
_UNKNOWN_HERE = (
    "childrenModelCount", "citation", "description", "evalResults", "gguf", "inference", "inferenceProviderMapping",
    "mainSize", "mask_token", "paperswithcode_id", "resourceGroup", "securityRepoStatus", "transformersInfo",
    "widgetData", "xetEnabled",
)  # fmt: skip

_ORDERS: dict[str, Callable[[Description], Any]] = {
    "createdAt": lambda shown: shown.settings.created,
    **{name: _PROPERTIES[name] for name in ("lastModified", "downloads", "likes", "trendingScore")},
}


class HeaderError(ValueError):
    """A file is not what its name promises; the text says why."""


def count_parameters(hub: Hub, repo: Repo, sha: str) -> dict[str, Any] | None:
    """Return how many parameters a model has, by dtype and in total; None where its files do not say."""
    try:
        found = repo.git.entries(sha, [_SINGLE_FILE, _INDEX_FILE])
        if _SINGLE_FILE in found:
            (file,) = hub.files(repo, [found[_SINGLE_FILE]])
            headers = [read_header(hub, repo, file)]
        elif _INDEX_FILE in found:
            headers = list(read_headers(hub, repo, sha, _INDEX_FILE)[1].values())
        else:
            return None
    except (HeaderError, RefusedError):
        return None
    counts = Counter[str]()
    try:
        for name, tensor in (item for header in headers for item in header.items()):
            if name != "__metadata__":
                counts[str(tensor["dtype"])] += math.prod(map(int, tensor["shape"]))
    except (TypeError, KeyError, ValueError):  # no dtype, or no shape
        return None
    return {"parameters": dict(counts), "total": sum(counts.values())}


def read_headers(hub: Hub, repo: Repo, sha: str, index_path: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the metadata of an index, and the headers of the files that it names.

    Raises HeaderError where one of them is not what it should be, RefusedError where one is missing.
    """
    try:
        index = json.loads(repo.git.blob(repo.git.file(sha, index_path).oid))
        shards = sorted({str(shard) for shard in index["weight_map"].values()})
        metadata = cards.as_json(index.get("metadata") or {})
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError) as error:
        raise HeaderError(f"{index_path} is not an index of safetensors files") from error
    folder = index_path.rpartition("/")[0]
    paths = {shard: f"{folder}/{shard}".lstrip("/") for shard in shards}
    if not paths or not all(map(checks.is_file_path, paths.values())):
        raise HeaderError(f"{index_path} names no files that can be")
    files = hub.files(repo, [repo.git.file(sha, path) for path in paths.values()])
    return metadata, {shard: read_header(hub, repo, file) for shard, file in zip(paths, files, strict=True)}


def read_header(hub: Hub, repo: Repo, file: StoredFile) -> dict[str, Any]:
    """Return the header of a safetensors file: tensors by name, with dtype, shape and place.

    Raises HeaderError where there is none.
    """
    start = hub.first_bytes(repo, file, _LENGTH_BYTES)
    length = struct.unpack("<Q", start)[0] if len(start) == _LENGTH_BYTES else _MAX_HEADER_BYTES + 1
    if length > _MAX_HEADER_BYTES:
        raise HeaderError(f"{file.entry.path} does not begin as a safetensors file does")
    try:
        header = json.loads(hub.first_bytes(repo, file, _LENGTH_BYTES + length)[_LENGTH_BYTES:])
        return cards.as_json(header if isinstance(header, dict) else {})
    except (ValueError, RecursionError) as error:
        raise HeaderError(f"the header of {file.entry.path} is not JSON") from error
