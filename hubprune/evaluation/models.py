"""Load a model folder for measuring, put it where it fits, run it in batches that fit, and let go of it again.

A model goes onto one device, or where it is larger, by accelerate's device map over all there are.  A pruned model
uses the base's tensors where its files hold the same ones, proved number by number: that halves the memory of the two,
and tells the layer tree which layers are the same.
"""

from __future__ import annotations

import ctypes
import gc
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import AutoTokenizer, GenerationConfig

from hubprune.core import devices, memory
from hubprune.core.artifacts import PerplexityAnswers
from hubprune.core.errors import EvaluationError
from hubprune.core.files import scratch_prefix
from hubprune.core.neutral import fresh_generation, load_causal_lm
from hubprune.core.streaming import Stored, read_into
from hubprune.core.strict import parse_json
from hubprune.evaluation import quantized
from hubprune.evaluation.skeletons import LAYER, fill, skeleton, slots

NO_MEMORY = (
    "DefaultCPUAllocator", "MPS backend out of memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED",
)  # fmt: skip
"""What torch says in a plain RuntimeError where memory ran out."""
GPU_SHARE, CPU_SHARE = 0.85, 0.6
"""Share of the free memory that weights may take; the rest is for what is computed."""
SAMPLES = 32
"""Numbers at a tensor's beginning, middle and end that are looked at before all are compared."""
PIECE_BYTES = 2**22
"""Bytes of a file that are compared at a time."""
Result = TypeVar("Result")
Batch = tuple[int, ...]
"""Indices of rows that are run together."""
Batches = tuple[Batch, ...]


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode with its tokenizer."""

    model: Any
    tokenizer: Any
    device: str
    """What token ids go to: `cpu`, `cuda:0`, ..."""
    dtype: str
    """dtype of the weights by its short name: `bfloat16`."""

    @property
    def max_positions(self) -> int | None:
        """Tokens that the model has positions for, or None where its config gives no limit."""
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return int(limit) if limit else None


def load_model(folder: Path, *, device: str, dtype: str, trust_remote_code: bool) -> LoadedModel:
    """Load the causal language model and the tokenizer of a folder.

    `device` is a torch device, or `auto` for the first one, and for others as well where the model is larger; `dtype`
    is `auto` for the checkpoint's own, or a torch dtype by name.  `trust_remote_code` runs the modeling file in the
    folder: for folders that this package wrote.  Code that comes with a tokenizer is never run, since a pruned folder
    has its tokenizer files from the base, and neither are pickles read.

    Raises:
        EvaluationError: the device's memory is too small.
        RecipeError: this machine has no such device.
    """
    offload = tempfile.TemporaryDirectory(prefix=scratch_prefix("hubprune-offload"))
    link = Path(offload.name, "model")  # a folder's name becomes part of a module's, which is too long for some
    link.symlink_to(folder.resolve(), target_is_directory=True)
    with memory_errors(f"while loading {folder}", hint="Pass --dtype bfloat16, or --device cpu."):
        place = placement(folder, device=device, dtype=dtype, offload_folder=str(Path(offload.name, "weights")))
        cast = dtype if dtype == "auto" else getattr(torch, dtype)
        model = load_causal_lm(link, dtype=cast, own_code=trust_remote_code, **place)
        quantized.expand(model, folder)
    model.offload_folder = offload  # deleted with the model, which may read its weights from there
    return LoadedModel(model, tokenizer_of(model, link), input_device(model), str(model.dtype).removeprefix("torch."))


def tokenizer_of(model: Any, folder: Path) -> Any:
    """Load the tokenizer of a model from its folder; code that comes with it is never run."""
    # With the config at hand, it does not look for one whose code it may not run, and complain.
    tokenizer = AutoTokenizer.from_pretrained(folder, config=model.config, trust_remote_code=False)
    if (tokenizer.pad_token_id or 0) >= model.get_input_embeddings().num_embeddings:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)  # rows are filled with it, and it had no embedding
    return tokenizer


@contextmanager
def memory_errors(when: str, *, hint: str) -> Iterator[None]:
    """Raise EvaluationError, with a hint, where memory runs out while the block runs."""
    try:
        yield
    except RuntimeError as error:
        if not is_memory_error(error):
            raise
        raise EvaluationError(f"The device ran out of memory {when}.", hint=hint) from error


def is_memory_error(error: RuntimeError) -> bool:
    """Tell whether an error of torch says that memory ran out."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in NO_MEMORY)


def release_memory() -> None:
    """Give the memory of models that nobody refers to any more back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.mps.is_available():
        torch.mps.empty_cache()
    give_back()


def give_back() -> None:
    """Return what was freed to the system: the C library of Linux keeps it, a few hundred MB after a model was run."""
    with suppress(AttributeError, OSError, TypeError):  # others have no such function, or no library by that name
        ctypes.CDLL(None).malloc_trim(0)


def own_device(device: str) -> str:
    """Return the device of this process; each of several on a machine takes a GPU of its own."""
    found = devices.resolve_device(device)
    return f"cuda:{devices.local_rank()}" if found == "cuda" and devices.world_size() > 1 else found


def free_bytes(device: str) -> int:
    """Return the memory that a device has free; `auto` may be one.

    Raises:
        RecipeError: this machine has no such device.
    """
    place = own_device(device)
    return memory.device_bytes(place) if place.startswith("cuda") else _own_memory()


def share_of(device: str) -> float:
    """Return the share of its free memory that weights may take on a device."""
    return GPU_SHARE if own_device(device).startswith("cuda") else CPU_SHARE


def _own_memory() -> int:  # of several processes on a machine, each may take its share
    return memory.available_bytes() // devices.local_world_size()


def placement(folder: Path, *, device: str, dtype: str, offload_folder: str) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` that say where a model goes.

    A device that was named is taken, `auto` is the first one, where the weights fit into its memory; else they go to
    it, and for `auto` to all other GPUs, then to memory, and what is left to `offload_folder`, which has to be there as
    long as the model.
    """
    place = own_device(device)
    if place == "mps" or weight_bytes(folder, dtype=dtype) <= share_of(device) * free_bytes(device):
        return {"device_map": {"": place}}
    limits: dict[int | str, int] = {"cpu": int(CPU_SHARE * _own_memory())}
    limits.update(gpu_limits(device))
    return {"device_map": "auto", "max_memory": limits, "offload_folder": offload_folder}


def gpu_limits(device: str) -> dict[int | str, int]:
    """Return the bytes that weights may take of each GPU: those that `auto` stands for, or the one that was named."""
    place = own_device(device)
    if not place.startswith("cuda"):
        return {}
    several = device == "auto" and devices.world_size() == 1
    gpus = range(torch.cuda.device_count()) if several else [int(place.partition(":")[2] or 0)]
    return {number: int(GPU_SHARE * memory.device_bytes(f"cuda:{number}")) for number in gpus}


def weight_bytes(folder: Path, *, dtype: str) -> int:
    """Return the memory that the weights of a folder take once they are cast; `auto` casts nothing."""
    config = folder / "config.json"
    own = devices.resolve_dtype("auto", devices.with_dtype(parse_json(config.read_bytes(), where=str(config)), folder))
    sizes: Mapping[str, int] = {name: getattr(torch, name).itemsize for name in {own, dtype} - {"auto"}}
    return quantized.expanded(folder, itemsize=sizes[own]) * sizes.get(dtype, sizes[own]) // sizes[own]


def text_tokens(model: Any, *, most: int) -> int:
    """Return how many tokens of prompts and texts are in memory at once: keys and values take half of what is free."""
    config = model.config.get_text_config()
    each = memory.kv_bytes_per_layer(config.to_dict()) * int(config.num_hidden_layers)
    return max(1, min(most, free_bytes(input_device(model)) // (2 * each)))


def pass_seconds(model: Any) -> float:
    """Return how long a loaded model takes for one token, which is what the weights of one on disk take to be read."""
    start = time.monotonic()
    with torch.inference_mode():
        model(torch.zeros(1, 1, dtype=torch.int64, device=input_device(model)), use_cache=False)
    return time.monotonic() - start


def placed_on(model: Any) -> str:
    """Name the devices that a loaded model is on: `cuda:0`, or `cuda:0, cpu and disk`."""
    *others, last = _places(model) or [str(model.device)]
    return f"{', '.join(others)} and {last}" if others else last


def is_on_disk(model: Any) -> bool:
    """Tell whether some of a model is read from disk for every pass."""
    return "disk" in _places(model)


def input_device(model: Any) -> str:
    """Name the device that a model takes token ids on."""
    places = [place for place in _places(model) if place != "disk"]
    return places[0] if places else str(model.device) if model.device.type != "meta" else "cpu"


def _places(model: Any) -> list[str]:
    places = getattr(model, "hf_device_map", {}).values()
    return list(dict.fromkeys(f"cuda:{place}" if isinstance(place, int) else str(place) for place in places))


# ---- two models that share their tensors -----------------------------------------------------------------------------


def load_beside(base: LoadedModel, folder: Path, *, own_code: bool) -> LoadedModel:
    """Load a model that uses the tensors of one in memory wherever its files hold the same numbers.

    All of them are compared, a piece at a time, and only what differs is read and kept: so the second model costs no
    more memory than what it has of its own, at no time.  A tensor may be found in another layer, since those behind a
    dropped one are renumbered.

    Raises:
        CheckpointError: its files call tensors otherwise than the model does, or its layers cannot be told apart.
    """
    model = skeleton(folder, own_code=own_code, dtype=base.dtype, device=base.device)
    known: dict[object, dict[str, torch.Tensor]] = {}
    for name, parameter in base.model.named_parameters():
        known.setdefault(_look(name, parameter.shape, _glance(parameter.data)), {})[name] = parameter.data
    places, tensors = list(slots(model)), dict[Stored, torch.Tensor]()
    with memory_errors(f"while loading {folder}", hint="Pass --dtype bfloat16, or --device cpu."):
        for name, *_, stored in places:
            if stored not in tensors:
                found = known.get(_look(name, stored.shape, _glance_at(stored, model.dtype)), {})
                # That of the same name comes first: norms of several layers may be equal, and a layer is known by all.
                ordered = (tensor for _, tensor in sorted(found.items(), key=lambda item: item[0] != name))
                equal = next((tensor for tensor in ordered if holds_numbers(stored, tensor)), None)
                tensors[stored] = _read(stored).to(base.device, model.dtype) if equal is None else equal
    fill(places, tensors)
    # As transformers leaves it.  With frozen weights, torch multiplies the last positions of a batch, which `generate`
    # takes of it, with a copy of the head for every row: gigabytes that the other model does not take.
    model.requires_grad_(requires_grad=True)
    ends = model.generation_config.eos_token_id
    with suppress(OSError):  # as transformers does it, where there is no such file
        ends = GenerationConfig.from_pretrained(folder).eos_token_id
    model.generation_config = fresh_generation(ends)
    return LoadedModel(model, tokenizer_of(model, folder), base.device, base.dtype)


def holds_numbers(stored: Stored, tensor: torch.Tensor) -> bool:
    """Tell whether a tensor is what a file holds once that is cast to its dtype, bit by bit."""
    if stored.shape != tuple(tensor.shape):
        return False
    rows, start = PIECE_BYTES // stored.dtype.itemsize, 0
    for part in tensor.flatten().split(rows):
        own = _read(replace(stored, shape=(len(part),), begin=stored.begin + start * stored.dtype.itemsize))
        if not torch.equal(own.to(part.device, part.dtype).view(torch.uint8), part.view(torch.uint8)):
            return False
        start += len(part)
    return True


def _read(stored: Stored) -> torch.Tensor:
    data = torch.empty(stored.size, dtype=torch.uint8)
    read_into(stored.path, data, stored.begin)
    return data.view(stored.dtype).view(stored.shape)


def _look(name: str, shape: Sequence[int], glance: torch.Tensor) -> object:
    """Return what equal tensors have in common, without reading all of them: name, shape, and a few numbers."""
    return LAYER.sub("*", name), tuple(shape), glance.view(torch.uint8).cpu().numpy().tobytes()


def _glance(tensor: torch.Tensor) -> torch.Tensor:
    flat = tensor.flatten()
    return torch.cat([flat[start : start + SAMPLES] for start in _places_to_look(len(flat))])


def _glance_at(stored: Stored, dtype: torch.dtype) -> torch.Tensor:
    count = math.prod(stored.shape)
    parts = [
        replace(stored, shape=(min(SAMPLES, count - start),), begin=stored.begin + start * stored.dtype.itemsize)
        for start in _places_to_look(count)
    ]
    return torch.cat(list(map(_read, parts))).to(dtype)


def _places_to_look(count: int) -> tuple[int, ...]:
    return 0, count // 2, max(0, count - SAMPLES)


# ---- batches that fit ------------------------------------------------------------------------------------------------


def similar_length(lengths: Sequence[int], *, tokens: int | None = None, rows: int | None = None) -> Batches:
    """Put rows of similar length together, so that little of a batch is padding; the longest come first.

    A batch has one row, or as many as take at most `tokens` tokens once all are padded to the longest of them, and
    `rows` at most.  Where memory is too small, the longest rows tell at once.
    """
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        members = len(batches[-1]) if batches else 0
        if members and members != rows and (tokens is None or (members + 1) * lengths[batches[-1][0]] <= tokens):
            batches[-1].append(i)
        else:
            batches.append([i])
    return tuple(map(tuple, batches))


def run_batches(
    batches: Batches, work: Callable[[Batch], Sequence[Result]], *, on_split: Callable[[int], None]
) -> tuple[list[Result], Batches]:
    """Run all batches, with fewer rows at a time from where memory ran out on.

    Every row from 0 on is in exactly one batch, and `work` returns one result per row of a batch.  `on_split` is told
    the number of rows that a batch has from now on at most.  Returns the results in the order of the rows, and the
    batches that they come from.

    Raises:
        RuntimeError: whatever `work` raises; that memory ran out only where it did for a single row.
    """
    waiting, done = list(batches), []
    results: dict[int, Result] = {}
    while waiting:
        found = _attempt(work, waiting[0])
        if found is None:
            rows = (len(waiting[0]) + 1) // 2
            waiting = [batch[start : start + rows] for batch in waiting for start in range(0, len(batch), rows)]
            on_split(rows)
            continue
        results.update(zip(waiting[0], found, strict=True))
        done.append(waiting.pop(0))
    return [results[i] for i in range(len(results))], tuple(done)


def _attempt(work: Callable[[Batch], Sequence[Result]], batch: Batch) -> Sequence[Result] | None:
    """Run a batch; None where memory ran out, and what it held is free again."""
    try:
        return work(batch)
    except RuntimeError as error:
        if len(batch) == 1 or not is_memory_error(error):
            raise
    # Here the error is gone, and with its traceback the tensors of the frames that it came through.
    release_memory()
    return None


def measure_perplexity(model: LoadedModel, rows: Sequence[Sequence[int]], *, batch_size: int) -> PerplexityAnswers:
    """Sum the negative log-likelihood of every document, in nats and in float32.

    Each document has two or more token ids; `batch_size` of similar length are read at a time.

    Raises:
        EvaluationError: a likelihood is not finite, or the device's memory is too small.
    """
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    nats = [0.0] * len(rows)
    with torch.inference_mode(), memory_errors(f"at batch size {batch_size}", hint="Pass a smaller --batch-size."):
        for start in range(0, len(order), batch_size):
            members = order[start : start + batch_size]
            for i, value in zip(members, _nats(model, [rows[i] for i in members]), strict=True):
                nats[i] = value
    if not torch.tensor(nats).isfinite().all():
        raise EvaluationError("The likelihood of a document is not finite.", hint="Try --dtype float32.")
    return PerplexityAnswers(nats=tuple(nats), tokens=tuple(len(row) - 1 for row in rows))


def _nats(model: LoadedModel, rows: Sequence[Sequence[int]]) -> list[float]:
    """Return the nats of each document; rows are padded on the right, where causal attention never looks."""
    tensors = [torch.tensor(row) for row in rows]
    ids = nn.utils.rnn.pad_sequence(tensors, batch_first=True).to(model.device)  # [batch, tokens]
    targets = nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=-100)[:, 1:].to(model.device)
    logits: Any = model.model(ids, use_cache=False).logits[:, :-1]
    losses = nn.functional.cross_entropy(logits.float().transpose(1, 2), targets, reduction="none")
    found: list[float] = losses.double().sum(dim=1).tolist() if losses.device.type != "mps" else losses.sum(1).tolist()
    return found
