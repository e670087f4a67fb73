"""What the Hub tells about a repository at one commit: each property by its name in the answer.

What the safetensors files of a repository say about themselves: the header that each begins with.
"""

import json
import math
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any

from hubprune.localhub import cards
from hubprune.localhub.hub import Hub, Repo, StoredFile
from hubprune.localhub.names import RefusedError, is_file_path, timestamp

# ---- tensors -------------------------------------------------------------------------------------------------------


SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 25_000_000
"""Limit of the Hub's own clients."""


class HeaderError(ValueError):
    """A file is not what its name promises; the text says why."""


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
    if not paths or not all(map(is_file_path, paths.values())):
        raise HeaderError(f"{index_path} names no files that can be")
    files = hub.files(repo, [repo.git.file(sha, path) for path in paths.values()])
    return metadata, {shard: read_header(hub, repo, file) for shard, file in zip(paths, files, strict=True)}


def count_parameters(hub: Hub, repo: Repo, sha: str) -> dict[str, Any] | None:
    """Return how many parameters a model has, by dtype and in total; None where its files do not say."""
    try:
        found = repo.git.entries(sha, [SINGLE_FILE, INDEX_FILE])
        if SINGLE_FILE in found:
            (file,) = hub.files(repo, [found[SINGLE_FILE]])
            headers = [read_header(hub, repo, file)]
        elif INDEX_FILE in found:
            headers = list(read_headers(hub, repo, sha, INDEX_FILE)[1].values())
        else:
            return None
        counts = Counter[str]()
        for header in headers:
            counts.update(_sizes(header))
    except (HeaderError, RefusedError):
        return None
    return {"parameters": dict(counts), "total": sum(counts.values())}


def _sizes(header: Mapping[str, Any]) -> Counter[str]:
    sizes = Counter[str]()
    for name, tensor in header.items():
        if name != "__metadata__":
            try:
                sizes[str(tensor["dtype"])] += math.prod(map(int, tensor["shape"]))
            except (TypeError, KeyError, ValueError) as error:
                raise HeaderError(f"{name} has no dtype or shape") from error
    return sizes


# ---- descriptions --------------------------------------------------------------------------------------------------


_CONFIG_KEYS = ("architectures", "auto_map", "model_type", "quantization_config")
"""What the Hub repeats of a model's config.json."""


class Description:
    """A repository at one commit; what is not asked for is not looked up."""

    def __init__(self, hub: Hub, repo: Repo, sha: str) -> None:
        self._hub = hub
        self.repo = repo
        self.sha = sha
        self.settings = repo.settings

    def describe(self, names: Iterable[str]) -> dict[str, Any]:
        """Return the named properties, without those that the repository does not have."""
        answers = {name: _PROPERTIES[name](self) for name in names if name in _PROPERTIES}
        known = {"_id": self.repo.repo_id, "id": self.repo.repo_id}
        if self.repo.kind == "models":
            known["modelId"] = self.repo.repo_id
        return {**known, **{name: answer for name, answer in answers.items() if answer is not None}}

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
        """All files."""
        entries = [entry for entry in self.repo.git.tree(self.sha, recursive=True) if entry.kind == "file"]
        return self._hub.files(self.repo, entries)

    @cached_property
    def tags(self) -> list[str]:
        """What the Hub derives from the card."""
        return cards.tags(self.card)

    @cached_property
    def changed(self) -> str:
        """When the commit was made."""
        return self.repo.git.log(self.sha, limit=1)[0].date

    @cached_property
    def parameters(self) -> dict[str, Any] | None:
        """How many parameters a model has, by dtype and in total."""
        return count_parameters(self._hub, self.repo, self.sha)

    @property
    def storage(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    def of_model(self, key: str) -> Any:
        """Return what the card of a model says about something; data sets say it elsewhere."""
        return self.card.get(key) if self.repo.kind == "models" else None

    @cached_property
    def _texts(self) -> dict[str, str]:
        found = self.repo.git.entries(self.sha, ["README.md", "config.json"])
        blobs = self.repo.git.blobs(entry.oid for entry in found.values() if entry.kind == "file")
        return {path: blobs[entry.oid].decode(errors="replace") for path, entry in found.items() if entry.oid in blobs}


def _base_models(shown: Description) -> dict[str, Any] | None:
    named = shown.of_model("base_model")
    if not named:
        return None
    models = [{"_id": name, "id": name} for name in (named if isinstance(named, list) else [named])]
    return {"relation": shown.card.get("base_model_relation"), "models": models}


def _sibling(file: StoredFile) -> dict[str, Any]:
    row: dict[str, Any] = {"rfilename": file.entry.path, "blobId": file.entry.oid, "size": file.size}
    if file.pointer is not None:
        row["lfs"] = {"sha256": file.pointer.sha256, "size": file.pointer.size, "pointerSize": file.entry.size}
    return row


_PROPERTIES: dict[str, Callable[[Description], Any]] = {
    "author": lambda shown: shown.repo.repo_id.split("/")[0],
    "baseModels": _base_models,
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
    "safetensors": lambda shown: shown.parameters if shown.repo.kind == "models" else None,
    "sha": lambda shown: shown.sha,
    "siblings": lambda shown: [_sibling(file) for file in shown.files],
    "spaces": lambda shown: [] if shown.repo.kind == "models" else None,
    "tags": lambda shown: shown.tags,
    "trendingScore": lambda shown: 0,
    "usedStorage": lambda shown: shown.storage,
}

# What the Hub can tell and this one cannot: asked for, it is left out of the answer.
_UNKNOWN_HERE = (
    *("childrenModelCount", "citation", "description", "evalResults", "gguf", "inference", "inferenceProviderMapping"),
    *("mainSize", "mask_token", "paperswithcode_id", "resourceGroup", "securityRepoStatus"),
    *("transformersInfo", "widgetData", "xetEnabled"),
)

_BRIEF = ("createdAt", "downloads", "library_name", "likes", "pipeline_tag", "private", "tags")
_FULL = (*_BRIEF, "author", "disabled", "gated", "lastModified", "sha")

IN_LISTS = {"models": _BRIEF, "datasets": (*_FULL, "trendingScore")}
"""What a list tells by default, by kind of repository."""
IN_FULL_LISTS = {"models": (*_FULL, "siblings"), "datasets": (*_FULL, "cardData", "siblings")}
"""What a list tells when all is asked for."""
BY_ITSELF = (*_FULL, "cardData", "config", "model-index", "safetensors", "siblings", "spaces", "usedStorage")
"""What one repository tells by default."""


def expanded(names: list[str]) -> list[str]:
    """Return the properties that a client asks for by name; a name that the Hub does not know is refused."""
    unknown = [name for name in names if name not in _PROPERTIES and name not in _UNKNOWN_HERE]
    if unknown:
        raise RefusedError(400, f"Invalid expand: {', '.join(unknown)}")
    return names
