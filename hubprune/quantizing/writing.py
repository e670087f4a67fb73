"""Write a quantized checkpoint: matrices in fewer bits, all other tensors byte for byte, in the shards of before.

Nothing is loaded: bytes are copied out of the source's shards and out of what the layers became.  Inside a shard the
tensors keep their order, those of wider numbers before those of narrower ones: as the safetensors library writes them,
since it maps them into memory where each has to begin at a multiple of its own numbers' size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hubprune.core.artifacts import QuantizationRecord
from hubprune.core.config import write_json
from hubprune.core.specs import QuantizationSpec
from hubprune.core.weights import (
    DTYPE_BITS,
    TensorEntry,
    Weights,
    copy_range,
    open_weights,
    read_shard,
    write_header,
    write_index,
)
from hubprune.quantizing.packing import decode, read_parts, stored_shapes
from hubprune.quantizing.schemes import Matrix, quantization_config

QUANTIZATION = "quantization_config"


@dataclass(frozen=True, slots=True)
class Piece:
    """A tensor of a written shard, and where its bytes come from."""

    name: str
    path: Path
    entry: TensorEntry


def write_weights(
    weights: Weights, matrices: Mapping[str, Matrix], spec: QuantizationSpec, *, layers: Sequence[Path], folder: Path,
    advance: Callable[[int], None],
) -> None:  # fmt: skip
    """Write the shards of a quantized checkpoint, and their index where there was one.

    Args:
        weights: of the checkpoint before, as its model calls them.
        layers: files with what the layers became.
        folder: where to write; `advance` is told the bytes after each piece.
    """
    made = {tensor.name: (path, tensor) for path in layers for tensor in read_shard(path).tensors}
    listed, parameters = list[tuple[str, str, int]](), weights.parameters()
    for shard in weights.shards:
        pieces: list[Piece] = []
        for tensor in shard.tensors:
            if tensor.name in matrices:
                names = stored_shapes(matrices[tensor.name], spec, dtype=tensor.dtype)
                pieces += [Piece(name, *made[name]) for name in names]
            else:
                pieces.append(Piece(tensor.name, shard.path, tensor))
        pieces.sort(key=lambda piece: -DTYPE_BITS[piece.entry.dtype])
        with (folder / shard.path.name).open("wb") as target:
            write_header(target, ((p.name, p.entry.dtype, p.entry.shape) for p in pieces), shard.metadata)
            for piece in pieces:
                with piece.path.open("rb") as source:
                    copy_range(source, target, piece.entry.begin, piece.entry.end, advance)
        listed += [(piece.name, shard.path.name, piece.entry.size) for piece in pieces]
    if weights.index_metadata is not None:
        write_index(folder, listed, metadata=weights.index_metadata, parameters=parameters)


def write_config(
    config: Mapping[str, Any], spec: QuantizationSpec, record: QuantizationRecord | None, folder: Path
) -> None:
    """Write config.json: that of the checkpoint before, with one key more."""
    write_json({**config, QUANTIZATION: quantization_config(spec, record)}, folder)


def write_decoded(
    weights: Weights, matrices: Mapping[str, Matrix], spec: QuantizationSpec, *, quantized: Path, folder: Path,
    dtype: str | None,
) -> None:  # fmt: skip
    """Write the weights of a checkpoint with what its quantized matrices stand for, as floats.

    Args:
        weights: of the checkpoint before.
        quantized: folder of the quantized one.
        dtype: of the decoded matrices, a name of torch's; None for the one that each had.
    """
    import torch

    from hubprune.core.streaming import TORCH_DTYPES

    spelled = {kind: name for name, kind in TORCH_DTYPES.items()}
    made = {tensor.name: shard.path for shard, tensor in open_weights(quantized)}
    for shard in weights.shards:
        rows = []
        for tensor in shard.tensors:
            kind = getattr(torch, dtype) if dtype and tensor.name in matrices else TORCH_DTYPES[tensor.dtype]
            rows.append((tensor, kind))
        rows.sort(key=lambda row: -row[1].itemsize)
        with (folder / shard.path.name).open("wb") as target, shard.path.open("rb") as source:
            write_header(target, ((t.name, spelled[kind], t.shape) for t, kind in rows), shard.metadata)
            for tensor, kind in rows:
                if tensor.name not in matrices:
                    copy_range(source, target, tensor.begin, tensor.end, lambda _: None)
                    continue
                matrix = matrices[tensor.name]
                values = decode(read_parts(matrix, spec, made), spec, module=matrix.module, dtype=kind)
                target.write(values.contiguous().view(torch.uint8).numpy().tobytes())
                target.flush()
    if weights.index_metadata is not None:
        sizes = [(t.name, s.path.name, t.size) for s, t in weights]
        write_index(folder, sizes, metadata=weights.index_metadata, parameters=weights.parameters())
