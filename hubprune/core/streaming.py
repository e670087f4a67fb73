"""Run a model layer by layer, straight from its safetensors files.

Each layer's weights are read once, used on all batches, and let go.  What is in memory is one layer, the next one that
a thread is reading, and the hidden states of all batches; where those are too many, they are in a mapped file.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from hubprune.core.architectures import Architecture
from hubprune.core.artifacts import SublayerKind
from hubprune.core.console import size
from hubprune.core.errors import CheckpointError, DiskSpaceError
from hubprune.core.files import scratch_prefix
from hubprune.core.memory import available_bytes, device_bytes
from hubprune.core.neutral import ATTENTION, neutral_config, recorder_of
from hubprune.core.templates import published_code
from hubprune.core.weights import open_weights

TORCH_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
READ_BYTES, PIECE_BYTES = 2**30, 2**20
"""Bytes that are read at a time into a buffer, and of a tensor that is only compared."""
ALIGNMENT = 64  # whole cache lines
STATES_SHARE = 0.5
"""Share of the free memory that hidden states may take; the rest is for two layers and what they compute."""


class StreamedModel:
    """A base whose decoder layers exist one at a time."""

    def __init__(
        self,
        folder: Path,
        *,
        architecture: Architecture,
        dtype: str,
        device: str,
        own_code: bool = False,
        tensor_names: Mapping[str, str | None] | None = None,
    ) -> None:
        from transformers import AutoModel

        config = neutral_config(folder, own_code=own_code)
        self._architecture, self._reader = architecture, WeightReader(folder, tensor_names or {})
        self._dtype, self.device = getattr(torch, dtype), torch.device(device)
        with parameters_without_data():
            self._model = AutoModel.from_config(
                config, dtype=self._dtype, attn_implementation=ATTENTION, trust_remote_code=own_code
            )
        self._model.eval().requires_grad_(False)
        self._layers = self._model.layers
        self._model.norm = nn.Identity()
        self._recorders = nn.ModuleList(recorder_of(layer) for layer in self._layers)
        self._model.layers = self._recorders
        self._model.embed_tokens.weight = nn.Parameter(torch.empty(0), requires_grad=False)
        self._model.to(self.device)
        self._arguments: dict[int, list[dict[str, Any]]] = {}
        self._bypassed: set[tuple[SublayerKind, int]] = set()

    def __len__(self) -> int:
        return len(self._layers)

    @property
    def dtype(self) -> torch.dtype:
        """What the layers compute in."""
        return self._dtype

    @property
    def hidden_size(self) -> int:
        """Numbers in the state of a token."""
        return int(self._model.config.hidden_size)

    def bypass(self, kind: SublayerKind, layer: int) -> None:
        """Let a sublayer add nothing from now on; its weights are not read any more."""
        family, code, place = self._architecture, published_code(self._architecture), self._layers[layer]
        if kind == "attn":
            stand_in = code["NoAttn"](place.get_submodule(family.attn_module))
            code["drop_sublayer"](place, family.attn_module, stand_in, family.attn_norms)
        else:
            code["drop_sublayer"](place, family.mlp_module, code["NoMLP"](), family.mlp_norms)
        self._bypassed.add((kind, layer))

    def does_nothing(self, layer: int) -> bool:
        """Tell whether both sublayers of a layer are bypassed, so that it hands on what enters it."""
        return {("attn", layer), ("mlp", layer)} <= self._bypassed

    def embed(self, batches: Sequence[torch.Tensor], *, rooms: int = 1) -> list[list[torch.Tensor]]:
        """Turn token ids, int64 [documents, tokens] per batch, into the hidden states that enter layer 0.

        Room is made for them so often as `rooms` says, and the first of the rooms is filled.

        Returns:
            For each room one tensor of shape [documents, tokens, hidden_size] per batch; not on the device where they
            do not fit.

        Raises:
            DiskSpaceError: they fit neither into memory nor into the temporary folder.
        """
        used = torch.unique(torch.cat([ids.flatten() for ids in batches]))
        embedding, recorders = self._model.embed_tokens, self._recorders
        rows = self._reader.rows(self._architecture.embedding, used.tolist()).to(self.device, self._dtype)
        embedding.weight = nn.Parameter(rows, requires_grad=False)
        # Its number for padding is one of the whole table.
        embedding.num_embeddings, embedding.padding_idx = len(rows), None
        # The model itself looks the tokens up, since families scale what they find; every token is a row of its own,
        # which takes no mask worth mentioning.  No family here adds the position to it.
        self._model(input_ids=torch.arange(len(rows), device=self.device)[:, None], use_cache=False)
        embedding.weight = nn.Parameter(torch.empty(0), requires_grad=False)
        table = recorders[0].states[:, 0].cpu()  # [used, hidden_size]
        for recorder in recorders:
            recorder.forget()
        shapes = [(*ids.shape, table.shape[1]) for ids in batches]
        states = empty_states(shapes * rooms, self._dtype, self.device)
        found = [states[start : start + len(batches)] for start in range(0, len(states), len(batches))]
        for target, ids in zip(found[0], batches, strict=True):
            target.copy_(table[torch.searchsorted(used, ids)])
        return found

    def layers(self, numbers: Sequence[int]) -> Generator[nn.Module]:
        """Yield some decoder layers in this order; each loses its weights when the next is asked for."""
        places = [self._places(number) for number in numbers]
        with closing(read_ahead([Load(tuple(found.values())) for found in places])) as loads:
            for number, found, tensors in zip(numbers, places, loads, strict=True):
                layer = self._layers[number]
                self._fill(layer, dict(zip(found, tensors, strict=True)), number)
                del tensors
                yield layer
                empty(layer)

    def _places(self, number: int) -> dict[str, Stored]:
        gone = [part for kind, layer in self._bypassed if layer == number for part in self._architecture.parts[kind]]
        return self._reader.layer(self._prefix(number), without=[f"{part}." for part in gone])

    def _prefix(self, number: int) -> str:
        return f"{self._architecture.layers_prefix}{number}."

    def _fill(self, layer: nn.Module, tensors: dict[str, torch.Tensor], number: int) -> None:
        computed = self._architecture.computed
        ready = {name: t.to(self.device, self._dtype) for name, t in tensors.items() if name not in computed}
        try:
            layer.load_state_dict(ready, strict=True, assign=True)
        except RuntimeError as error:
            raise CheckpointError(f"Layer {number} does not have the tensors that its config says: {error}") from error
        layer.requires_grad_(requires_grad=False)

    def arguments(self, layer: int, tokens: int) -> dict[str, Any]:
        """Return what the model hands to a layer besides the hidden states: masks, positions, rotary embeddings.

        They are what transformers itself computes for one unpadded row of that length, and fit any number of rows.
        Padding on the right needs no mask: a causal attention never looks there.
        """
        if tokens not in self._arguments:
            row = torch.zeros(1, tokens, self._model.config.hidden_size, dtype=self._dtype, device=self.device)
            self._model(inputs_embeds=row, use_cache=False)
            self._arguments[tokens] = [recorder.calls for recorder in self._recorders]
        return self._arguments[tokens][layer]


@contextmanager
def parameters_without_data() -> Iterator[None]:
    """Build modules whose parameters have a shape and no data; buffers are computed as always."""
    from transformers import PreTrainedModel

    register = nn.Module.register_parameter

    def register_empty(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        empty = None if parameter is None else nn.Parameter(parameter.to("meta"), parameter.requires_grad)
        register(module, name, empty)

    # What the weights begin with in a training is half the time of building a model.
    no_weights = patch.object(PreTrainedModel, "initialize_weights", lambda model: None)
    with patch.object(nn.Module, "register_parameter", register_empty), no_weights:
        yield


def empty(layer: nn.Module) -> None:
    """Let the weights of a module go, and nothing that it computed: it may be filled again."""
    for module in layer.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(parameter.to("meta"), requires_grad=False))


# ---- reading ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Stored:
    """Where a tensor lies in a file."""

    path: Path
    begin: int
    """Offset of its first byte."""
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * int(self.dtype.itemsize)

    def rows(self, start: int, stop: int) -> Stored:
        """Return where some of its rows lie, as many as there are."""
        row = self.size // max(1, self.shape[0])
        count = len(range(*slice(start, stop).indices(self.shape[0])))
        return replace(self, begin=self.begin + start * row, shape=(count, *self.shape[1:]))


@dataclass(frozen=True)
class Load:
    """Tensors that are read together."""

    tensors: tuple[Stored, ...]
    twins: tuple[tuple[int, Stored], ...] = ()
    """Tensors of other files that are to hold the same bytes, each behind the number of the one that is read."""

    @property
    def size(self) -> int:
        """Bytes of a buffer that it fits into."""
        return sum(_aligned(stored.size) for stored in self.tensors)


class OtherBytesError(Exception):
    """A tensor does not hold what its twin does; `stored` says where it lies."""

    def __init__(self, stored: Stored) -> None:
        super().__init__(f"{stored.path} at byte {stored.begin}")
        self.stored = stored


def read_ahead(loads: Sequence[Load], *, buffers: int = 2) -> Generator[list[torch.Tensor]]:
    """Yield the tensors of one load after the other; those of one are gone when the next is asked for.

    With two buffers, a thread reads into one of them while what is in the other is used; with a single one, it takes
    turns, which costs less memory.  Fresh memory for every load would cost as much time as the reading.

    Raises:
        OtherBytesError: a twin holds other bytes.
        CheckpointError: a file became shorter.
    """
    if not loads:
        return
    room = max(load.size for load in loads)
    rooms = [torch.empty(room, dtype=torch.uint8) for _ in range(min(buffers, len(loads)))]
    with ThreadPoolExecutor(max_workers=1) as reader:
        waiting: dict[int, Future[list[torch.Tensor]]] = {}
        for number in range(len(loads)):
            for coming in range(number, min(number + len(rooms), len(loads))):
                if coming not in waiting:
                    waiting[coming] = reader.submit(_read, loads[coming], rooms[coming % len(rooms)])
            yield waiting[number].result()
            del waiting[number]


def _read(load: Load, buffer: torch.Tensor) -> list[torch.Tensor]:
    tensors, rest = [], buffer
    for stored in load.tensors:
        data = rest[: stored.size]
        read_into(stored.path, data, stored.begin)
        tensors.append(data.view(stored.dtype).view(stored.shape))
        rest = rest[_aligned(stored.size) :]
    for number, twin in load.twins:
        if not holds(twin, tensors[number]):
            raise OtherBytesError(twin)
    return tensors


def holds(stored: Stored, tensor: torch.Tensor) -> bool:
    """Tell whether a file holds the bytes of a tensor in memory; a piece is read at a time."""
    data = tensor.flatten().view(torch.uint8)
    piece = torch.empty(min(PIECE_BYTES, len(data)), dtype=torch.uint8)
    for part in data.split(PIECE_BYTES):
        offset = part.storage_offset() - data.storage_offset()
        read_into(stored.path, piece[: len(part)], stored.begin + offset)
        if not torch.equal(piece[: len(part)], part):
            return False
    return len(data) == stored.size


class WeightReader:
    """Finds and reads tensors of a checkpoint by name."""

    def __init__(self, folder: Path, names: Mapping[str, str | None]) -> None:
        self._where = {tensor.name: (shard.path, tensor) for shard, tensor in open_weights(folder).used(names)}
        self._folder = folder

    @property
    def names(self) -> frozenset[str]:
        """Names of all tensors."""
        return frozenset(self._where)

    def place(self, name: str) -> Stored:
        """Return where a tensor lies.

        Raises:
            CheckpointError: there is no such tensor, or its dtype is not one that models compute in.
        """
        if name not in self._where:
            raise CheckpointError(f"{self._folder} has no tensor {name!r}.")
        path, entry = self._where[name]
        if entry.dtype not in TORCH_DTYPES:
            raise CheckpointError(f"{path}: tensor {name!r} has dtype {entry.dtype}, which no model computes in.")
        return Stored(path, entry.begin, TORCH_DTYPES[entry.dtype], entry.shape)

    def layer(self, prefix: str, *, without: Sequence[str] = ()) -> dict[str, Stored]:
        """Return where all tensors below a prefix lie, by their names without it.

        Those whose rest of a name begins as `without` says are passed over.
        """
        passed_over = tuple(prefix + part for part in without)
        names = (name for name in self._where if name.startswith(prefix) and not name.startswith(passed_over))
        return {name.removeprefix(prefix): self.place(name) for name in names}

    def rows(self, name: str, numbers: Sequence[int]) -> torch.Tensor:
        """Read some rows of a matrix, in the given order, as [len(numbers), columns].

        Raises:
            CheckpointError: a row that does not exist.
        """
        stored = self.place(name)
        if len(stored.shape) != 2 or max(numbers) >= stored.shape[0]:
            raise CheckpointError(f"{stored.path}: {name!r} of shape {list(stored.shape)} has no row {max(numbers)}.")
        return read_rows(stored, numbers)


def read_rows(stored: Stored, numbers: Sequence[int]) -> torch.Tensor:
    """Read some rows of a matrix that has them, in the given order, as [len(numbers), columns]."""
    row_bytes = stored.size // stored.shape[0]
    data = torch.empty(len(numbers), row_bytes, dtype=torch.uint8)
    with stored.path.open("rb", buffering=0) as file:
        for target, number in zip(data, numbers, strict=True):
            _fill_from(file.fileno(), target, stored.begin + number * row_bytes)
    return data.view(stored.dtype)


def read_tensor(stored: Stored) -> torch.Tensor:
    """Read one tensor into memory of its own."""
    return _read(Load((stored,)), torch.empty(stored.size, dtype=torch.uint8))[0]


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def read_into(path: Path, target: torch.Tensor, offset: int) -> None:
    """Fill a tensor of uint8 with the bytes of a file from an offset on."""
    with path.open("rb", buffering=0) as file:
        _fill_from(file.fileno(), target, offset)


def _fill_from(descriptor: int, target: torch.Tensor, offset: int) -> None:
    view, done = memoryview(target.numpy()), 0
    while done < len(view):
        count = os.preadv(descriptor, [view[done : done + READ_BYTES]], offset + done)
        if not count:
            raise CheckpointError("A weight file became shorter while it was read.")
        done += count


def empty_states(shapes: Sequence[Sequence[int]], dtype: torch.dtype, device: torch.device) -> list[torch.Tensor]:
    """Make room for hidden states: on the device, or where it has too little memory in the machine's, or in a file.

    Raises:
        DiskSpaceError: none of them has room.
    """
    counts = [math.prod(shape) for shape in shapes]
    needed_bytes = sum(counts) * dtype.itemsize
    for place in dict.fromkeys((device, torch.device("cpu"))):
        free = device_bytes(str(place)) if place.type == "cuda" else available_bytes()
        if needed_bytes <= STATES_SHARE * free:
            return [torch.empty(shape, dtype=dtype, device=place) for shape in shapes]
    # A mapped file on a full disk ends the process with a signal, so the room has to be there before.
    folder = tempfile.gettempdir()
    if needed_bytes > shutil.disk_usage(folder).free:
        raise DiskSpaceError(
            f"The hidden states take {size(needed_bytes)}, which neither memory nor {folder} has free.",
            hint="Set TMPDIR to a folder with more room, or lower --num-samples or --max-tokens.",
        )
    with tempfile.NamedTemporaryFile(prefix=scratch_prefix("hubprune-states")) as file:
        # Once mapped, it needs no name any more.
        mapped = torch.from_file(file.name, shared=True, size=sum(counts), dtype=dtype)
    return [part.view(shape) for part, shape in zip(mapped.split(counts), shapes, strict=True)]
