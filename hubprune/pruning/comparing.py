"""Compare a written checkpoint with its base: what the fresh process of a verification computes.

Base and result run on the same tokens, one after the other.  The unit of cost is one pass over the weights, so there
are few: one of the base, and of the result one for the logits, as many as there are new tokens to write two texts with
a KV cache, and one without a cache over what was written, which shows what decoding it again would.

transformers takes weights where they are in the files, mapped into memory, if they are used in their own dtype on the
CPU.  So a model of any size can be run there: each layer is let go as soon as it was used, and what the memory has no
room to keep is read from disk again in the next pass.
"""

from __future__ import annotations

import ctypes
import gc
import itertools
import mmap
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from hubprune.core import devices, memory
from hubprune.core.config import read_config
from hubprune.core.console import size
from hubprune.core.neutral import fresh_generation, load_with_report
from hubprune.core.weights import open_weights
from hubprune.pruning.tokenizer_files import load_tokenizer, token_ids
from hubprune.pruning.width import from_mask, stacked

TIE = 1e-4
"""Two logits are a tie when they differ by less than this share, or than four units in the last place."""
SMALL_BYTES = 2**28
"""Models that take at most this in float32 are compared in it, and write as many tokens as they are asked for."""
FEW_TOKENS, FEWEST_TOKENS = 8, 3
"""New tokens of larger models, and of those that are read from disk for each: a KV cache is filled, then used twice."""
WORK_BYTES = 3 * 10**8
"""Room for states, logits and what libraries take."""
DEVICE_SHARE, CAST_SHARE = 0.9, 0.5
"""Share of a device's free memory that weights may fill, and of the machine's that copies in another dtype may."""


class NarrowedTensor(BaseModel):
    """A weight or bias of the base of which only some neurons stay."""

    name: str
    axis: int
    """0 where a neuron is a row, 1 where it is a column."""
    blocks: int
    """How many projections it holds, one below the other."""
    width: int
    """Neurons before."""
    kept: str
    """Those that stay, as a mask of bits in hex."""


class CompareRequest(BaseModel):
    """Compare a checkpoint with its base."""

    base_folder: str
    base_custom_code: bool
    """Whether the base was pruned before; its modeling file is then one that hubprune rendered, too."""
    folder: str
    layers: str
    """Name of the list of decoder layers in the model."""
    zeroed: tuple[str, ...]
    """Weights of the base whose projections are to add nothing."""
    narrowed: tuple[NarrowedTensor, ...] = ()
    """Tensors of the base whose other neurons must not count."""
    prompts: tuple[str, ...]
    new_tokens: int
    """At most."""
    custom_code: bool
    device: str = "auto"
    dtype: str = "auto"


class Comparison(BaseModel):
    """What the comparison saw."""

    missing_keys: tuple[str, ...]
    unexpected_keys: tuple[str, ...]
    parameters: int
    device: str
    dtype: str
    read_bytes: int
    """Of the weights, what is read from disk again in every pass."""
    max_logit_difference: float
    largest_logit: float  # of the base, by its absolute value
    argmax_equal: bool
    positions: int
    cached_equal: bool
    padded_equal: bool
    new_tokens: int
    generated: int
    refused_without_trust: bool | None
    cache_bytes: int
    cache_tokens: int
    other_ids: int
    """Texts for which a reader, trusting the checkpoint's code or not, gets other token ids than from the base."""
    compared_texts: int
    transformers: str
    not_finite: Literal["base", "result"] | None
    """Whose logits are no finite numbers, if any; `max_logit_difference` then says nothing."""


class Word(BaseModel):
    """What the process says while it works, one line each."""

    model_config = ConfigDict(extra="forbid")

    note: str | None = None
    passes: int = 0
    """How many there will be; 0 for nothing new."""
    done: int = 0
    """How many more are done."""


Tell = Callable[[Word], None]


def compare(request: CompareRequest, tell: Tell = lambda _: None) -> Comparison:
    """Run both models on the prompts, one after the other, so that only one is in memory."""
    import torch
    import transformers

    rows, other_ids, compared_texts = _read_tokens(request)
    place = find_place(request)
    new_tokens = min(request.new_tokens, place.most_tokens)
    tell(Word(note=place.told, passes=2 + 2 * new_tokens + 1))
    refused = _refused(request.folder) if request.custom_code else None
    # As many tokens of each prompt as the first has, those of a shorter one over and over.
    filled = torch.tensor(_repeated(rows, length=len(rows[0])), device=place.device)  # [prompts, tokens]
    with torch.inference_mode():
        reference = _reference_logits(request, filled, place, tell)
        model, info = _loaded(request.folder, place, layers=request.layers, own_code=request.custom_code, tell=tell)
        seen = model(filled, use_cache=True)
        logits, cache_bytes = seen.logits, memory.held_bytes(seen.past_key_values) // len(rows)
        del seen
        finite = [bool(found.isfinite().all()) for found in (reference, logits)]
        not_finite: Literal["base", "result"] | None = None if all(finite) else "result" if finite[0] else "base"
        difference = 0.0 if not_finite else float((logits - reference).abs().max())
        largest, argmax_equal = float(reference.abs().max()), torch.equal(logits.argmax(-1), reference.argmax(-1))
        del reference, logits
        alone = generate(model, filled, new_tokens=new_tokens)
        padded = generate(model, *_padded(rows, place.device), new_tokens=new_tokens)
        likely = _likely(model, [*filled.tolist(), *rows], [*alone, *padded])
        return Comparison(
            missing_keys=tuple(sorted(map(str, info["missing_keys"]))),
            unexpected_keys=tuple(sorted(map(str, info["unexpected_keys"]))),
            parameters=model.num_parameters(),
            device=place.device,
            dtype=place.dtype,
            read_bytes=place.read_bytes,
            max_logit_difference=difference,
            largest_logit=0.0 if not_finite else largest,
            argmax_equal=argmax_equal,
            positions=filled.numel(),
            cached_equal=all(likely[: len(rows)]),
            padded_equal=all(likely[len(rows) :]),
            new_tokens=new_tokens,
            generated=sum(map(len, alone)),
            refused_without_trust=refused,
            cache_bytes=cache_bytes,
            cache_tokens=filled.shape[1],
            other_ids=other_ids,
            compared_texts=compared_texts,
            transformers=transformers.__version__,
            not_finite=not_finite,
        )


# ---- tokens ----------------------------------------------------------------------------------------------------------


def _read_tokens(request: CompareRequest) -> tuple[list[list[int]], int, int]:
    """Return the prompts as token ids, the number of texts whose ids are not the base's, and of all texts.

    Every reader counts: one of the checkpoint who trusts its code, and one who does not.
    """
    expected = token_ids(load_tokenizer(request.base_folder, trust_remote_code=request.base_custom_code))
    tokenizer = load_tokenizer(request.folder)
    rows = [list(tokenizer(prompt).input_ids) for prompt in request.prompts]
    found = [token_ids(tokenizer)]
    if request.custom_code:
        found.append(token_ids(load_tokenizer(request.folder, trust_remote_code=True)))
    other = sum(any(ids != row for ids in pair) for row, *pair in zip(expected, *found, strict=True))
    del tokenizer
    gc.collect()
    with suppress(AttributeError, OSError):  # of glibc: a large vocabulary leaves much behind
        ctypes.CDLL(None).malloc_trim(0)
    return rows, other, len(expected)


def _repeated(rows: Sequence[Sequence[int]], *, length: int) -> list[list[int]]:
    return [list(itertools.islice(itertools.cycle(row), length)) for row in rows]


def _padded(rows: Sequence[Sequence[int]], device: str) -> tuple[Any, Any]:
    """Return the rows as one batch that is padded on the left, and its mask."""
    import torch

    width = max(map(len, rows))
    batch, mask = ([[0] * (width - len(row)) + kept for row, kept in zip(rows, values, strict=True)] for values in (
        map(list, rows), [[1] * len(row) for row in rows]
    ))  # fmt: skip
    return torch.tensor(batch, device=device), torch.tensor(mask, device=device)


def generate(model: Any, ids: Any, mask: Any = None, *, new_tokens: int) -> list[list[int]]:
    """Decode exactly so many tokens greedily, with a KV cache: without an end token, every row says all it can."""
    import torch

    mask = torch.ones_like(ids) if mask is None else mask
    ends = model.generation_config.eos_token_id
    asked = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "use_cache": True, "pad_token_id": 0}
    new = model.generate(ids, attention_mask=mask, generation_config=fresh_generation(ends, **asked))
    rows: list[list[int]] = new[:, ids.shape[1] :].tolist()
    return rows


def _likely(model: Any, rows: Sequence[Sequence[int]], texts: Sequence[Sequence[int]]) -> list[bool]:
    """Tell of each text whether a pass without cache and padding would have written it, token by token.

    Two ways to compute the same logits differ in their last bits; where two tokens are that close, either is right.
    """
    import torch

    whole, shortest = [[*row, *text] for row, text in zip(rows, texts, strict=True)], min(map(len, rows))
    # What is on the right of a text is never looked at by it.
    width = max(map(len, whole))
    batch = torch.tensor(_repeated(whole, length=width), device=model.device)
    before = shortest - 1  # the first position of any row that says something about its text
    logits = model(batch, use_cache=False, logits_to_keep=width - before).logits
    # The tokens that end a text were not allowed to.
    ends = fresh_generation(model.generation_config.eos_token_id).eos_token_id or []
    logits[:, :, [end for end in ends if end < logits.shape[-1]]] = -torch.inf
    share, likely = max(TIE, 4 * torch.finfo(logits.dtype).eps), []
    for row, text, judged in zip(rows, texts, logits, strict=True):
        start = len(row) - 1 - before
        ranked = judged[start : start + len(text)].float()  # [new tokens, vocabulary]
        best, said = ranked.amax(-1), ranked.gather(1, torch.tensor(text, device=ranked.device)[:, None])[:, 0]
        # False where it is no number.
        likely.append(bool((best - said <= share * torch.maximum(best.abs(), said.abs())).all()))
    return likely


# ---- the base as it should be ----------------------------------------------------------------------------------------


def _reference_logits(request: CompareRequest, ids: Any, place: Place, tell: Tell) -> Any:
    """Return the logits of the base without what was dropped; its weights stay as they are, for they are the files."""
    import torch

    model, _ = _loaded(request.base_folder, place, layers=request.layers, own_code=request.base_custom_code, tell=tell)
    for name in request.zeroed:
        module = model.get_submodule(name.removesuffix(".weight"))
        module.register_forward_hook(lambda _module, _args, output: torch.zeros_like(output))
    narrow(model, request.narrowed, exact=place.dtype == "float32")
    logits = model(ids, use_cache=True).logits
    del model
    gc.collect()
    if place.device.startswith("cuda"):
        torch.cuda.empty_cache()
    return logits


def narrow(model: Any, tensors: Sequence[NarrowedTensor], *, exact: bool) -> None:
    """Make the neurons that go add zero; where sums are too coarse to be compared so, leave them out of every sum.

    A sum over more terms is rounded elsewhere, even if these are zero: by some 1e-6 in float32, but by far more than
    any tolerance in bfloat16.  With the same neurons side by side there, the two models add in the same order.
    """
    for module_name, group in itertools.groupby(tensors, key=lambda tensor: tensor.name.rpartition(".")[0]):
        module, parts = model.get_submodule(module_name), list(group)
        picked = {t.name.rpartition(".")[2]: (t.axis, from_mask(t.kept).to(module.weight.device), t) for t in parts}
        if not exact:
            rows = {p: (axis, stacked(kept, width=t.width, blocks=t.blocks)) for p, (axis, kept, t) in picked.items()}
            module.forward = partial(_of_some, module, rows)
        elif picked["weight"][0] == 1:
            module.register_forward_pre_hook(partial(_without_others, picked["weight"][1]))


def _of_some(module: Any, picked: dict[str, tuple[int, Any]], states: Any) -> Any:
    """Run a linear layer as if it had only some of its rows or columns."""
    import torch

    def part(name: str) -> Any:
        whole = getattr(module, name)
        return whole if whole is None or name not in picked else whole.index_select(*picked[name])

    return torch.nn.functional.linear(states, part("weight"), part("bias"))


def _without_others(kept: Any, _module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Set all neurons but some to zero, in what enters a layer."""
    import torch

    others = torch.ones(inputs[0].shape[-1], dtype=torch.bool, device=kept.device).index_fill(0, kept, 0)
    return (inputs[0].masked_fill(others, 0), *inputs[1:])


# ---- where it runs ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where two models are compared, and how much of their weights is there to stay."""

    device: str
    dtype: str
    weight_bytes: int
    free_bytes: int
    room_bytes: int
    """For weights that are mapped."""
    read_bytes: int = 0
    """What of them is read from disk in every pass."""
    why: str = ""

    @property
    def most_tokens(self) -> int:
        """How many new tokens a text is worth."""
        if self.read_bytes:
            return FEWEST_TOKENS
        small = self.dtype == "float32" and self.weight_bytes <= SMALL_BYTES
        return sys.maxsize if small else FEW_TOKENS

    @property
    def told(self) -> str:
        """All of it in a line."""
        whole, free = size(self.weight_bytes), size(self.free_bytes)
        taken = f"{whole} of {free} free" if not self.read_bytes else (
            f"{free} free: {size(self.read_bytes)} of {whole} are read from disk in every pass"
        )  # fmt: skip
        return f"verifying on {self.device} in {self.dtype}{self.why}, {taken}"


def find_place(request: CompareRequest) -> Place:
    """Choose device and dtype: in float32 where that is little, else in the dtype of the files or what `auto` is there.

    A removed sublayer adds exactly zero in any, so the tolerance is the same; for neurons see `narrow`.  What a GPU
    has no room for is computed on the CPU, which takes the weights where they are in the files.
    """
    folder = Path(request.base_folder)
    config, tensors = devices.with_dtype(read_config(folder), folder), [tensor for _, tensor in open_weights(folder)]
    device, stored = devices.resolve_device(request.device), devices.stored_dtype(config)

    def taken(dtype: str, *, only_cast: bool = False) -> int:
        cast = (t for t in tensors if not only_cast or devices.STORED.get(t.dtype) != dtype)
        return sum(t.parameters for t in cast) * devices.COMPUTE_BITS[dtype] // 8

    def wished(place: str) -> str:
        small = taken("float32") <= SMALL_BYTES
        return "float32" if small else devices.resolve_dtype(request.dtype, config, device=place)

    why = ""
    if device != "cpu":
        dtype, free = wished(device), memory.device_bytes(device)
        if taken(dtype) + WORK_BYTES <= DEVICE_SHARE * free:
            return Place(device=device, dtype=dtype, weight_bytes=taken(dtype), free_bytes=free, room_bytes=0)
        why = f", since {device} has {size(free)} free"
    free = memory.available_bytes()
    dtype = next((d for d in (wished("cpu"), stored) if taken(d, only_cast=True) <= CAST_SHARE * free), stored)
    copied, whole = taken(dtype, only_cast=True), taken(dtype)
    room = max(0, free - copied - WORK_BYTES)
    return Place(
        device="cpu", dtype=dtype, weight_bytes=whole, free_bytes=free, room_bytes=room,
        read_bytes=max(0, whole - copied - room), why=why,
    )  # fmt: skip


def _loaded(folder: str, place: Place, *, layers: str, own_code: bool, tell: Tell) -> tuple[Any, Any]:
    """Load a model as a reader would; each pass over its weights is told."""
    import torch

    where = {} if place.device == "cpu" else {"device_map": {"": place.device}}
    model, report = load_with_report(folder, dtype=getattr(torch, place.dtype), own_code=own_code, **where)
    if place.device == "cpu" and place.weight_bytes > SMALL_BYTES:
        let_go_after_use([*model.get_submodule(layers), model.get_output_embeddings()], room_bytes=place.room_bytes)
    model.register_forward_hook(lambda *_: tell(Word(done=1)))
    return model, report


def let_go_after_use(modules: Sequence[Any], *, room_bytes: int) -> None:
    """Take weights that are mapped from files out of this process's memory whenever their module was used.

    The page cache keeps them for the next pass, so long as they fit into the room; of the others it is told that they
    are not needed any more, lest they push out the first.  Nothing is lost: what is asked for again is in the files.
    Linux only; elsewhere the kernel finds out by itself.
    """
    if sys.platform != "linux":
        return
    files, kept = _mapped_files(), 0
    pieces = [_pieces(module, files) for module in modules]
    for module, own, following in zip(modules, pieces, [*pieces[1:], []], strict=True):
        taken = sum(end - begin for begin, end, _, _ in own)
        kept += taken
        if 2 * taken <= room_bytes:
            module.register_forward_pre_hook(partial(_advise, following, mmap.MADV_WILLNEED))
        module.register_forward_hook(partial(_advise, own, mmap.MADV_DONTNEED, forget=kept > room_bytes))


Piece = tuple[int, int, int, int]
"""First address, the one behind the last, descriptor of the file, offset in it; all at the borders of pages."""


def _mapped_files() -> list[Piece]:
    """Return where this process has mapped files of safetensors."""
    found = []
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        addresses, _, offset, _, _, *path = line.split(maxsplit=5)
        if path and path[0].endswith(".safetensors"):
            begin, end = (int(number, 16) for number in addresses.split("-"))
            found.append((begin, end, os.open(path[0], os.O_RDONLY), int(offset, 16)))
    return found


def _pieces(module: Any, files: Sequence[Piece]) -> list[Piece]:
    """Return what of the mapped files the parameters of a module are, whole pages; others of its parameters are none.

    Only what is known to be mapped may be let go: any other memory would be lost.
    """
    pieces, page = [], mmap.PAGESIZE
    for parameter in module.parameters():
        first, last = parameter.data_ptr(), parameter.data_ptr() + parameter.nbytes
        for begin, end, file, offset in files:
            if begin <= first and last <= end:
                first, last = first // page * page, min(end, -(-last // page) * page)
                pieces.append((first, last, file, offset + first - begin))
    return pieces


def _advise(pieces: Sequence[Piece], advice: int, *_: Any, forget: bool = False) -> None:
    libc = ctypes.CDLL(None)
    for begin, end, file, offset in pieces:
        libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), advice)
        if forget:
            os.posix_fadvise(file, offset, end - begin, os.POSIX_FADV_DONTNEED)


def _refused(folder: str) -> bool:
    """Tell whether the Auto class refuses the folder when remote code is not trusted."""
    from transformers import AutoModelForCausalLM

    try:
        AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
    except Exception:  # whatever it is: what counts is that nothing was loaded
        return True
    return False
