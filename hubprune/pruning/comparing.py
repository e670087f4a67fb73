"""Compare a written checkpoint with its base: what the fresh process of a verification computes.

Base and result run on the same tokens, one after the other.  The unit of cost is one pass over the weights, so there
are few: one of the base, and of the result one for the logits, as many as there are new tokens to write two texts with
a KV cache, and one without a cache over what was written, which shows what decoding it again would.
"""

from __future__ import annotations

import ctypes
import gc
import itertools
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from hubprune.core import memory
from hubprune.core.neutral import fresh_generation
from hubprune.pruning.placing import Place, find_place, load_there
from hubprune.pruning.tokenizer_files import load_tokenizer, token_ids
from hubprune.pruning.width import from_mask, stacked

TIE = 1e-4
"""Two logits are a tie when they differ by less than this share, or than four units in the last place."""


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
    place = find_place(Path(request.base_folder), device=request.device, dtype=request.dtype)
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


def _loaded(folder: str, place: Place, *, layers: str, own_code: bool, tell: Tell) -> tuple[Any, Any]:
    model, report = load_there(folder, place, layers=layers, own_code=own_code)
    model.register_forward_hook(lambda *_: tell(Word(done=1)))
    return model, report


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


def _refused(folder: str) -> bool:
    """Tell whether the Auto class refuses the folder when remote code is not trusted."""
    from transformers import AutoModelForCausalLM

    try:
        AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
    except Exception:  # whatever it is: what counts is that nothing was loaded
        return True
    return False
