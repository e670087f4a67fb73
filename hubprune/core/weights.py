"""Read and write safetensors files without loading them: headers, byte ranges, a check of all that a header claims.

The format is an 8-byte little-endian header length, a JSON header, and the tensors' bytes back to back
(https://github.com/huggingface/safetensors#format).  Files come from strangers, so nothing in a header or an index is
believed before it was checked against the file's size.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from hubprune.core.errors import CheckpointError, UnsupportedFormatError
from hubprune.core.strict import parse_json

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library
COPY_BYTES = 8 * 2**20
NO_KERNEL_COPY = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF}
SHARD_NAME = re.compile(r"[\w.-]+\.safetensors", re.ASCII)
DTYPE_BITS: Mapping[str, int] = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
    **{"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6},
}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a shard: where its bytes are."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    """Absolute offset of the first byte in the file."""
    end: int
    """Absolute offset behind the last byte."""

    @property
    def parameters(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """Bytes."""
        return self.end - self.begin


@dataclass(frozen=True, slots=True)
class Shard:
    """One safetensors file whose header was checked."""

    path: Path
    metadata: Mapping[str, str] | None
    tensors: tuple[TensorEntry, ...]
    """In the order of their bytes."""


@dataclass(frozen=True, slots=True)
class Weights:
    """All shards of a checkpoint."""

    folder: Path
    shards: tuple[Shard, ...]
    index_metadata: Mapping[str, Any] | None
    """`metadata` of the index file, or None for a single file."""

    def __iter__(self) -> Iterator[tuple[Shard, TensorEntry]]:
        """Yield every tensor with its shard."""
        return ((shard, tensor) for shard in self.shards for tensor in shard.tensors)

    def used(self, names: Mapping[str, str | None]) -> Weights:
        """Return them as a model calls them, without what it does not use.

        Args:
            names: of a tensor in the files -> in the model, None where it is not used; all others keep theirs.
        """

        def used(shard: Shard) -> Shard:
            named = ((tensor, names.get(tensor.name, tensor.name)) for tensor in shard.tensors)
            return replace(shard, tensors=tuple(replace(t, name=name) for t, name in named if name is not None))

        return replace(self, shards=tuple(map(used, self.shards))) if names else self

    def parameters(self) -> int:
        """Number of elements of all stored tensors."""
        return sum(tensor.parameters for _, tensor in self)

    def size(self) -> int:
        """Bytes of all stored tensors."""
        return sum(tensor.size for _, tensor in self)


def open_weights(folder: Path) -> Weights:
    """Read and check the headers of a checkpoint.

    Raises:
        UnsupportedFormatError: the folder has weights, but no safetensors.
        CheckpointError: a file is missing, truncated, inconsistent or hostile.
    """
    if (folder / SINGLE_NAME).is_file():  # where both are there, transformers takes this one
        return Weights(folder, (read_shard(folder / SINGLE_NAME),), None)
    path = folder / INDEX_NAME
    if not path.is_file():
        if pickles := sorted(p.name for p in folder.glob("*.bin")):
            raise pickled_weights(str(folder), pickles[0])
        raise CheckpointError(f"{folder} holds neither {SINGLE_NAME} nor {INDEX_NAME}.")
    index = _read_json(path)
    weight_map = _string_map(path, index.get("weight_map"))
    if not weight_map:
        raise CheckpointError(f"{path} has no weight_map.")
    names = sorted(set(weight_map.values()))
    for name in names:
        # A name is one plain file name: an index must never make us read, and then publish, a file from elsewhere.
        if not SHARD_NAME.fullmatch(name):
            raise CheckpointError(f"{path} names a shard outside its folder or of another kind: {name!r}.")
        if not (folder / name).is_file():
            raise CheckpointError(f"{path} names the shard {name!r}, which does not exist.")
    shards = tuple(read_shard(folder / name) for name in names)
    check_index(weight_map, [(tensor.name, shard.path.name) for shard in shards for tensor in shard.tensors], path)
    metadata = index.get("metadata")
    if not isinstance(metadata, dict):
        raise CheckpointError(
            f"{path} has no metadata, and without it transformers loads none of the shards.",
            hint='Add "metadata": {} beside its weight_map.',
        )
    return Weights(folder, shards, metadata)


def pickled_weights(name: str, file: str) -> UnsupportedFormatError:
    """Make the error for a base that has only pickled weights."""
    return UnsupportedFormatError(
        f"{name} has only pickled weights ({file}), which hubprune never loads.",
        hint="Convert them to safetensors first: https://huggingface.co/spaces/safetensors/convert does it for a repo.",
    )


def merged_headers(
    headers: Mapping[str, Mapping[str, tuple[int, ...]]], *, index: Path, name: str
) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of all tensors in some files, which have to be as the index says.

    Args:
        headers: file -> name -> shape.
        index: where the index is, if there is more than one file.

    Raises:
        CheckpointError: the index is broken or disagrees, or a tensor is in two files.
    """
    if len(headers) > 1 and index.is_file():
        found = [(tensor, file) for file, header in headers.items() for tensor in header]
        weight_map = _string_map(index, _read_json(index).get("weight_map")) or {}
        check_index(weight_map, found, f"{index.name} of {name}")
    return {tensor: shape for header in headers.values() for tensor, shape in header.items()}


def check_index(weight_map: Mapping[str, str], found: Sequence[tuple[str, str]], where: Path | str) -> None:
    """Compare an index, tensor -> shard, with the tensors that were found in the shards.

    Raises:
        CheckpointError: they disagree, or a tensor is in two shards.
    """
    if len(dict(found)) != len(found):
        raise CheckpointError(f"The shards of {where} hold the same tensor twice.")
    if differing := set(found) ^ set(weight_map.items()):
        name, shard = min(differing)
        raise CheckpointError(
            f"{where} and the shards disagree, first about {name!r} in {shard!r}.",
            hint="Save the base again: `save_pretrained` of transformers writes an index that fits.",
        )


def read_shard(path: Path) -> Shard:
    """Read and check one file's header.

    Raises:
        CheckpointError: the header does not describe this file.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(LENGTH_BYTES)
            if len(prefix) < LENGTH_BYTES:
                raise CheckpointError(f"{path} is no safetensors file: it has {size} bytes.")
            length = int(struct.unpack("<Q", prefix)[0])
            if length > min(MAX_HEADER_BYTES, size - LENGTH_BYTES):
                what = f"header of {length} bytes, file of {size}"
                raise CheckpointError(f"{path} is truncated or no safetensors file: {what}.")
            text = file.read(length)
    except OSError as error:
        raise CheckpointError(f"Cannot read {path}: {error.strerror}.") from error
    header = parse_json(text, where=f"the header of {path}")
    metadata, position = header.pop("__metadata__", None), LENGTH_BYTES + length
    entries = [_entry(path, name, value, data_begin=position) for name, value in header.items()]
    tensors = tuple(sorted(entries, key=lambda t: (t.begin, t.end)))
    for tensor in tensors:
        if tensor.begin != position:
            what = "overlaps another tensor" if tensor.begin < position else "leaves a hole before it"
            raise CheckpointError(f"{path}: tensor {tensor.name!r} {what}.")
        position = tensor.end
    if position > size:
        raise CheckpointError(f"{path} is truncated: its header describes {position} bytes, the file has {size}.")
    if position < size:
        raise CheckpointError(f"{path} has {size - position} bytes that its header does not describe.")
    return Shard(path, _string_map(path, metadata), tensors)


def _entry(path: Path, name: str, value: Any, *, data_begin: int) -> TensorEntry:
    def broken(what: str) -> CheckpointError:
        return CheckpointError(f"{path}: tensor {name!r} has {what}.")

    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise broken("a header entry of unknown form")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise broken(f"the unknown dtype {dtype!r}")
    if not _naturals(shape):
        raise broken(f"the shape {shape!r}")
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise broken(f"the offsets {offsets!r}")
    if (offsets[1] - offsets[0]) * 8 != math.prod(shape) * DTYPE_BITS[dtype]:
        raise broken(f"{offsets[1] - offsets[0]} bytes for shape {shape} in {dtype}")
    return TensorEntry(name, dtype, tuple(shape), data_begin + offsets[0], data_begin + offsets[1])


def _naturals(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 2**63 for v in values)


def _string_map(path: Path, value: Any) -> Mapping[str, str] | None:
    if value is None:
        return None
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise CheckpointError(f"{path} has a weight_map or __metadata__ that is not a map of strings.")
    return value


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return parse_json(path.read_bytes(), where=str(path))
    except OSError as error:
        raise CheckpointError(f"Cannot read {path}: {error.strerror}.") from error


# ---- writing ---------------------------------------------------------------------------------------------------------


def write_header(
    target: BinaryIO, tensors: Iterable[tuple[str, str, Sequence[int]]], metadata: Mapping[str, str] | None
) -> None:
    """Write what stands before the tensors' bytes: names, dtypes and shapes in the order in which these will follow."""
    header: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    offset = 0
    for name, dtype, shape in tensors:
        end = offset + math.prod(shape) * DTYPE_BITS[dtype] // 8
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(LENGTH_BYTES + len(text)) % 8)  # the format aligns the data to 8 bytes
    target.write(struct.pack("<Q", len(text)) + text)
    target.flush()  # the kernel copies to where the file stands, not to where its buffer ends


def copy_range(source: BinaryIO, target: BinaryIO, begin: int, end: int, advance: Callable[[int], None]) -> None:
    """Copy some bytes of a file to where another one stands, by the kernel where it can, and tell of each piece.

    Raises:
        CheckpointError: the file became shorter.
    """
    by_kernel = hasattr(os, "copy_file_range")
    while begin < end:
        count = min(COPY_BYTES, end - begin)
        try:
            if by_kernel:
                copied = os.copy_file_range(source.fileno(), target.fileno(), count, offset_src=begin)
            else:
                copied = os.write(target.fileno(), os.pread(source.fileno(), count, begin))
        except OSError as error:
            if not by_kernel or error.errno not in NO_KERNEL_COPY:
                raise
            by_kernel = False
            continue
        if not copied:
            raise CheckpointError(f"{source.name} became shorter while it was read.")
        begin += copied
        advance(copied)


def write_index(
    folder: Path, tensors: Iterable[tuple[str, str, int]], *, metadata: Mapping[str, Any], parameters: int
) -> None:
    """Write the index of several shards.

    Args:
        tensors: name, shard and bytes of each.
        metadata: of the index before, whose totals are replaced.
        parameters: numbers in all tensors, written where the one before said how many it had.
    """
    rows = sorted(tensors)
    totals: dict[str, object] = {"total_size": sum(size for *_, size in rows)}
    if "total_parameters" in metadata:
        totals["total_parameters"] = parameters
    index = {"metadata": {**metadata, **totals}, "weight_map": {name: shard for name, shard, _ in rows}}
    (folder / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
