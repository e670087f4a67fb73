"""Read tensors of a checkpoint a few rows at a time and encode them for a GGUF file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from hubprune.core.errors import CheckpointError, UnsupportedFormatError
from hubprune.core.weights import Shard, TensorEntry
from hubprune.exporting.tensors import GgufTensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Block = NDArray[np.float32]

BLOCK_VALUES = 4 * 2**20
"""Values read at a time."""
LARGEST_F16 = 65504.0
SOURCE_BYTES = {"F32": 4, "F16": 2, "BF16": 2}


def encoded_blocks(tensor: GgufTensor) -> Iterator[bytes]:
    """Yield the bytes of a tensor, a few rows at a time.

    Raises:
        CheckpointError: the source holds NaN or infinity, or became shorter.
        UnsupportedFormatError: a value does not fit the type.
    """
    for block in _blocks(tensor):
        yield _encode(block, tensor)


def _blocks(tensor: GgufTensor) -> Iterator[Block]:
    """Yield the values as float32, [rows, columns]; a vector has one column."""
    import numpy as np

    columns = tensor.shape[1] if len(tensor.shape) == 2 else 1
    unit = tensor.head_dim or 1
    step = max(1, BLOCK_VALUES // (columns * unit)) * unit
    for first in range(0, tensor.shape[0], step):
        rows = min(step, tensor.shape[0] - first)
        if tensor.source is not None:
            block = _read(*tensor.source, first=first * columns, count=rows * columns).reshape(rows, columns)
            yield _ggml_order(block, tensor.head_dim) if tensor.head_dim else block
        elif tensor.values is not None:
            yield np.array(tensor.values[first : first + rows], dtype=np.float32).reshape(rows, columns)
        else:
            yield np.zeros((rows, columns), dtype=np.float32)


def _ggml_order(block: Block, head_dim: int) -> Block:
    """Reorder the rows of each head: transformers rotates row i with i + d/2, GGML's Llama row 2i with 2i + 1."""
    rows, columns = block.shape
    halves = block.reshape(rows // head_dim, 2, head_dim // 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns)


def _read(shard: Shard, entry: TensorEntry, *, first: int, count: int) -> Block:
    import numpy as np

    size = SOURCE_BYTES[entry.dtype]
    with shard.path.open("rb") as file:
        file.seek(entry.begin + first * size)
        data = file.read(count * size)
    if len(data) != count * size:
        raise CheckpointError(f"{shard.path} became shorter while it was read.")
    if entry.dtype == "BF16":  # the upper half of a float32
        widened: Any = np.frombuffer(data, dtype="<u2").astype(np.uint32) << 16
        values: Block = widened.view(np.float32)
    else:
        values = np.frombuffer(data, dtype="<f4" if entry.dtype == "F32" else "<f2").astype(np.float32)
    if not np.isfinite(values).all():
        raise CheckpointError(f"{shard.path}: tensor {entry.name!r} holds NaN or infinity.")
    return values


def _encode(block: Block, tensor: GgufTensor) -> bytes:
    import numpy as np
    from gguf import GGMLQuantizationType, quants

    if tensor.encoding == "F16" and block.size and float(np.abs(block).max()) > LARGEST_F16:
        raise UnsupportedFormatError(
            f"{tensor.name} has values above {LARGEST_F16:g}, which f16 does not hold.",
            hint="Export with --outtype bf16.",
        )
    block = np.ascontiguousarray(block)
    return bytes(quants.quantize(block, GGMLQuantizationType[tensor.encoding]).tobytes())
