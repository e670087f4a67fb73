"""What the safetensors files of a repository say about themselves: the header that each begins with."""

import json
import math
import struct
from collections import Counter
from collections.abc import Mapping
from typing import Any

from hubprune.localhub import cards
from hubprune.localhub.hub import Hub, Repo, StoredFile
from hubprune.localhub.names import is_file_path
from hubprune.localhub.refusal import RefusedError

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
