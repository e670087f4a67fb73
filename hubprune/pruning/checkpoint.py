"""Write a pruned checkpoint by copying byte ranges; no model is built, and only tensors that get narrower are loaded.

A dropped sublayer is a set of tensors that are not copied.  Of an MLP with fewer neurons, the rows and columns of those
that stay are picked, byte for byte.  Shard names, tensor order and metadata stay the base's, since the first chunk of a
file decides how much of an upload the Hub can deduplicate.  What was written is described at the end: files with their
hashes, parameters, bytes, and how fast the KV cache grows.
"""

from __future__ import annotations

import itertools
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from hubprune.core import config as config_json
from hubprune.core import templates
from hubprune.core.architectures import Architecture, architecture_of
from hubprune.core.artifacts import BaseCheckpoint, DropPlan, RepoFile, WrittenCheckpoint
from hubprune.core.errors import CheckpointError
from hubprune.core.files import FileHash, list_files
from hubprune.core.memory import kv_bytes_per_layer
from hubprune.core.privacy import is_carried
from hubprune.core.weights import (
    COPY_BYTES,
    DTYPE_BITS,
    Shard,
    TensorEntry,
    Weights,
    copy_range,
    open_weights,
    write_header,
    write_index,
)
from hubprune.pruning.tokenizer_files import settle_tokenizer
from hubprune.pruning.width import KeptTensor, Neurons, cut_bytes, cuts, neurons_of

NUMBERED_SHARD = re.compile(r"(?P<stem>.+)-\d{5}-of-\d{5}\.safetensors")


def write_checkpoint(base: BaseCheckpoint, plan: DropPlan, folder: Path, *, advance: Callable[[int], None]) -> None:
    """Write the pruned checkpoint into an existing empty folder: weights, config, tokenizer files, modeling file.

    The base has to be downloaded; the caller makes the folder appear atomically, and is told the number of weight
    bytes after each copied piece.

    Raises:
        CheckpointError: a base file is broken or hostile, or does not hold what the plan drops.
    """
    architecture = architecture_of(base.config, name=base.name)
    weights = open_weights(Path(base.folder or "")).used(base.tensor_names)
    write_weights(weights, plan, architecture, folder, advance=advance)
    write_companions(base, plan, folder)


def write_companions(base: BaseCheckpoint, plan: DropPlan, folder: Path) -> None:
    """Write all files of a pruned checkpoint but its weights; those of the base need not be there for that.

    Raises:
        CheckpointError: a file of the base is broken.
    """
    source, architecture = Path(base.folder or ""), architecture_of(base.config, name=base.name)
    carry_files(source, folder)
    config_json.write_config(base, plan, folder)
    if tokenizer_class := settle_tokenizer(source, folder, architecture=architecture):
        config_json.write_config(base, plan, folder, tokenizer_class=tokenizer_class)
    if config_json.needs_modeling_file(plan):
        code = templates.modeling_code(architecture, layout=plan.layout)
        (folder / architecture.modeling_file(plan.layout)).write_text(code, encoding="utf-8")


def carry_files(source: Path, folder: Path) -> None:
    """Copy tokenizer, generation, chat template and licence files byte for byte; see also `settle_tokenizer`.

    Raises:
        CheckpointError: one is a link to somewhere else on this machine.
    """
    for path in carried_files(source):
        copy = folder / path.relative_to(source)
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, copy)


def carried_files(source: Path) -> list[Path]:
    """List the files of a checkpoint that a result carries.

    Raises:
        CheckpointError: one is a link to somewhere else on this machine: what is there is nobody's to publish.
    """
    named = [path for path in sorted(source.rglob("*")) if is_carried(path.relative_to(source).as_posix())]
    inside = [source.resolve()]
    if inside[0].parent.name == "snapshots":  # in the cache of the Hub's client, whose files are links to blobs
        repo = inside[0].parent.parent
        inside += [repo / "blobs", repo.parent / "blobs"]  # the second one is for what comes through Xet
    for path in named:
        if not any(path.resolve().is_relative_to(place) for place in inside):
            raise CheckpointError(
                f"{path} is a link that leads out of its folder.", hint="Put a copy of the file there instead."
            )
    return [path for path in named if path.is_file()]


def write_weights(
    weights: Weights, plan: DropPlan, architecture: Architecture, folder: Path, *, advance: Callable[[int], None]
) -> None:
    """Write the safetensors files of a plan, and the index where the base has one."""
    shards, neurons = shard_plans(weights, plan, architecture), neurons_of(weights, plan, architecture)
    for shard in shards:
        _write_shard(shard, folder / shard.name, neurons, advance)
    if weights.index_metadata is None:
        return
    kept = [(tensor, shard.name) for shard in shards for tensor in shard.kept]
    rows, parameters = [(t.name, shard, t.size) for t, shard in kept], sum(t.parameters for t, _ in kept)
    write_index(folder, rows, metadata=weights.index_metadata, parameters=parameters)


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """What of one base shard is copied, and under which names."""

    source: Shard
    name: str
    kept: tuple[KeptTensor, ...]
    """Tensors that stay, in file order."""


def shard_plans(weights: Weights, plan: DropPlan, architecture: Architecture) -> list[ShardPlan]:
    """Decide for every shard which tensors stay and what they are called.

    Raises:
        CheckpointError: a sublayer that the plan drops or makes narrower has no tensors.
    """
    renamed, narrower = new_names(weights, plan, architecture), cuts(weights, plan, architecture)
    plans = []
    for shard in weights.shards:
        named = [(t, name) for t in shard.tensors if (name := renamed[t.name]) is not None]
        if kept := tuple(KeptTensor(t, name, narrower.get(t.name)) for t, name in named):
            plans.append(ShardPlan(shard, shard.path.name, kept))
    if len(plans) < len(weights.shards):
        for number, shard_plan in enumerate(plans):
            if found := NUMBERED_SHARD.fullmatch(shard_plan.name):
                name = f"{found['stem']}-{number + 1:05d}-of-{len(plans):05d}.safetensors"
                plans[number] = replace(shard_plan, name=name)
    return plans


def new_names(weights: Weights, plan: DropPlan, architecture: Architecture) -> dict[str, str | None]:
    """Map every tensor name of the base to its name in the pruned checkpoint, or to None where it goes.

    Raises:
        CheckpointError: a sublayer that the plan drops has no tensors.
    """
    layer_name = re.compile(rf"{re.escape(architecture.layers_prefix)}(\d+)\.((\w+)\..+)")
    dropped_parts = {(row.layer, part) for row in plan.dropped for part in architecture.parts[row.kind]}
    numbers, met, names = plan.published_numbers, set[tuple[int, str]](), dict[str, str | None]()
    for _, tensor in weights:
        names[tensor.name] = tensor.name
        if found := layer_name.fullmatch(tensor.name):
            layer, rest, part = int(found[1]), found[2], found[3]
            met.add((layer, part))
            gone = layer not in numbers or (layer, part) in dropped_parts
            names[tensor.name] = None if gone else f"{architecture.layers_prefix}{numbers[layer]}.{rest}"
    if absent := dropped_parts - met:
        layer, part = min(absent)
        raise CheckpointError(f"{weights.folder} has no {architecture.layers_prefix}{layer}.{part} to drop.")
    return names


def _write_shard(plan: ShardPlan, path: Path, neurons: Neurons | None, advance: Callable[[int], None]) -> None:
    with plan.source.path.open("rb") as source, path.open("wb") as target:
        write_header(target, ((k.name, k.entry.dtype, k.shape) for k in plan.kept), plan.source.metadata)
        for piece in _pieces(plan):
            if isinstance(piece, tuple):
                copy_range(source, target, *piece, advance)
            elif piece.cut and neurons:
                target.write(cut_bytes(plan.source.path, piece.entry, piece.cut, neurons.kept(piece.cut.layer)))
                target.flush()  # the kernel copies to where the file stands, not to where its buffer ends
                advance(piece.size)


def _pieces(plan: ShardPlan) -> Iterator[tuple[int, int] | KeptTensor]:
    """Yield the byte ranges to copy, neighbours joined, and between them the tensors that get narrower."""
    begin = end = plan.kept[0].entry.begin
    for kept in plan.kept:
        if kept.cut or kept.entry.begin != end:
            yield begin, end
            begin = kept.entry.begin
        if kept.cut:
            yield kept
            begin = kept.entry.end
        end = kept.entry.end
    yield begin, end


@dataclass(frozen=True, slots=True)
class ReadBack:
    """What was read in the weight files of a written checkpoint, once for all that has to be known of their bytes."""

    files: tuple[RepoFile, ...]
    """With their hashes."""
    compared: int
    """Number of tensors that ought to be there."""
    differing: tuple[str, ...]
    """Names, of the result, of those that are not the base's, byte for byte, or are missing."""


def read_back(
    base: Weights,
    folder: Path,
    *,
    plan: DropPlan,
    architecture: Architecture,
    advance: Callable[[int], None] = lambda _: None,
) -> ReadBack:
    """Hash the weight files of a checkpoint, and compare each tensor on the way with what the plan says of the base's.

    `advance` is told the number of bytes after each piece of the written files.
    """
    neurons = neurons_of(base, plan, architecture)
    kept = {t.name: (shard.source.path, t) for shard in shard_plans(base, plan, architecture) for t in shard.kept}
    differing, files = set(kept), []
    for shard in open_weights(folder).shards:
        hashed = FileHash(shard.path.name, shard.path.stat().st_size)
        with shard.path.open("rb") as file:
            hashed.update(file.read(shard.tensors[0].begin if shard.tensors else -1))
            for tensor in shard.tensors:
                equal = tensor.name in kept and _is_planned(kept[tensor.name][1], tensor)
                expected = _bytes_of(*kept[tensor.name], neurons) if equal else itertools.repeat(None)
                # Both sides end where the tensor does: its size is the planned one, or nothing is expected.
                for piece, other in zip(_in_pieces(file, tensor.size), expected, strict=False):
                    hashed.update(piece)
                    equal = equal and piece == other
                    advance(len(piece))
                if equal:
                    differing.discard(tensor.name)
        files.append(hashed.file())
    return ReadBack(tuple(files), len(kept), tuple(name for name in kept if name in differing))


def _is_planned(kept: KeptTensor, written: TensorEntry) -> bool:
    return (kept.entry.dtype, kept.shape) == (written.dtype, written.shape)


def _in_pieces(file: BinaryIO, size: int) -> Iterator[bytes]:
    for done in range(0, size, COPY_BYTES):
        yield file.read(min(COPY_BYTES, size - done))


def _bytes_of(path: Path, kept: KeptTensor, neurons: Neurons | None) -> Iterator[bytes | memoryview]:
    """Yield what ought to be written of a tensor of the base, in pieces of the same length as `_in_pieces` has."""
    if kept.cut and neurons:
        left = cut_bytes(path, kept.entry, kept.cut, neurons.kept(kept.cut.layer))
        yield from (left[begin : begin + COPY_BYTES] for begin in range(0, kept.size, COPY_BYTES))
        return
    with path.open("rb") as file:
        file.seek(kept.entry.begin)
        yield from _in_pieces(file, kept.size)


def take_inventory(
    base: Weights,
    folder: Path,
    *,
    plan: DropPlan,
    config: Mapping[str, Any],
    architecture: Architecture,
    advance: Callable[[int], None] = lambda _: None,
    known: Collection[RepoFile] = (),
) -> WrittenCheckpoint:
    """Describe a written checkpoint beside its base, whose weights are as its model uses them, and whose config it is.

    The number of bytes is told after each piece that was hashed; files that are known are not read.
    """
    pruned, per_layer, layers = open_weights(folder), kv_bytes_per_layer(config), plan.num_hidden_layers
    return WrittenCheckpoint(
        files=list_files(folder, advance=advance, known=known),
        parameters=count_parameters(pruned, config, architecture),
        base_parameters=count_parameters(base, config, architecture),
        weight_bytes=pruned.size(),
        base_weight_bytes=base.size(),
        dtypes=tuple(sorted({tensor.dtype for _, tensor in pruned}, key=lambda d: (-DTYPE_BITS[d], d))),
        kv_bytes_per_token=per_layer * (layers - len(plan.gone("attn"))),
        base_kv_bytes_per_token=per_layer * (layers - len(plan.absent_layers["attn"])),
    )


def count_parameters(weights: Weights, config: Mapping[str, Any], architecture: Architecture) -> int:
    """Count a model's parameters as transformers does: a tied head that the files hold as well counts once."""
    stored = {tensor.name: tensor.parameters for _, tensor in weights if architecture.is_parameter(tensor.name)}
    if config.get("tie_word_embeddings") and architecture.embedding in stored:
        stored.pop(architecture.head, None)
    return sum(stored.values())
