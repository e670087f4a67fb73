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
from contextlib import contextmanager
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
from hubprune.core.weights import TensorEntry, open_weights

TORCH_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
READ_BYTES = 2**30
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
        with _parameters_without_data():
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
        if not numbers:
            return
        with ThreadPoolExecutor(max_workers=1) as reader:
            # One buffer is read into while the layer in the other runs; fresh memory for every layer would cost as
            # much time as the reading.
            largest = max(self._reader.layer_bytes(self._prefix(number)) for number in range(len(self)))
            buffers = [torch.empty(largest, dtype=torch.uint8) for _ in range(2)]
            following: Future[dict[str, torch.Tensor]] = reader.submit(self._read, numbers[0], buffers[0])
            for place, number in enumerate(numbers):
                tensors, layer = following.result(), self._layers[number]
                if place + 1 < len(numbers):
                    following = reader.submit(self._read, numbers[place + 1], buffers[(place + 1) % 2])
                self._fill(layer, tensors, number)
                del tensors
                yield layer
                # The weights go, and nothing that is computed: it may be filled again.
                for module in layer.modules():
                    for name, parameter in module.named_parameters(recurse=False):
                        setattr(module, name, nn.Parameter(parameter.to("meta"), requires_grad=False))

    def _read(self, number: int, buffer: torch.Tensor) -> dict[str, torch.Tensor]:
        gone = [part for kind, layer in self._bypassed if layer == number for part in self._architecture.parts[kind]]
        return self._reader.layer(self._prefix(number), buffer, without=[f"{part}." for part in gone])

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
def _parameters_without_data() -> Iterator[None]:
    """Build modules whose parameters have a shape and no data; buffers are computed as always."""
    register = nn.Module.register_parameter

    def register_empty(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        empty = None if parameter is None else nn.Parameter(parameter.to("meta"), parameter.requires_grad)
        register(module, name, empty)

    with patch.object(nn.Module, "register_parameter", register_empty):
        yield


class WeightReader:
    """Reads tensors of a checkpoint into memory, by name."""

    def __init__(self, folder: Path, names: Mapping[str, str | None]) -> None:
        self._where = {tensor.name: (shard.path, tensor) for shard, tensor in open_weights(folder).used(names)}
        self._folder = folder

    @property
    def names(self) -> frozenset[str]:
        """Names of all tensors."""
        return frozenset(self._where)

    def entry(self, name: str) -> tuple[Path, TensorEntry]:
        """Return the file and the place of a tensor.

        Raises:
            CheckpointError: there is no such tensor, or its dtype is not one that models compute in.
        """
        if name not in self._where:
            raise CheckpointError(f"{self._folder} has no tensor {name!r}.")
        path, entry = self._where[name]
        if entry.dtype not in TORCH_DTYPES:
            raise CheckpointError(f"{path}: tensor {name!r} has dtype {entry.dtype}, which cannot be scored.")
        return path, entry

    def layer(self, prefix: str, buffer: torch.Tensor, *, without: Sequence[str] = ()) -> dict[str, torch.Tensor]:
        """Read all tensors below a prefix into a buffer of uint8, at least `layer_bytes` long.

        The names that come back are without the prefix; those whose rest begins as `without` says are passed over.
        """
        passed_over = tuple(prefix + part for part in without)
        tensors, rest = {}, buffer
        for name in self._where:
            if name.startswith(prefix) and not name.startswith(passed_over):
                path, entry = self.entry(name)
                data = rest[: entry.size]
                with path.open("rb", buffering=0) as file:
                    _read_into(file.fileno(), data, entry.begin)
                tensors[name.removeprefix(prefix)] = data.view(TORCH_DTYPES[entry.dtype]).view(entry.shape)
                rest = rest[_aligned(entry.size) :]
        return tensors

    def layer_bytes(self, prefix: str) -> int:
        """Return how long a buffer has to be that holds all tensors below a prefix."""
        return sum(_aligned(self.entry(name)[1].size) for name in self._where if name.startswith(prefix))

    def rows(self, name: str, numbers: Sequence[int]) -> torch.Tensor:
        """Read some rows of a matrix, in the given order, as [len(numbers), columns].

        Raises:
            CheckpointError: a row that does not exist.
        """
        path, entry = self.entry(name)
        if len(entry.shape) != 2 or max(numbers) >= entry.shape[0]:
            raise CheckpointError(f"{path}: {name!r} of shape {list(entry.shape)} has no row {max(numbers)}.")
        row_bytes = entry.size // entry.shape[0]
        data = torch.empty(len(numbers), row_bytes, dtype=torch.uint8)
        with path.open("rb", buffering=0) as file:
            for target, number in zip(data, numbers, strict=True):
                _read_into(file.fileno(), target, entry.begin + number * row_bytes)
        return data.view(TORCH_DTYPES[entry.dtype])


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _read_into(descriptor: int, target: torch.Tensor, offset: int) -> None:
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
