"""Checks of running and generating: every way to get tokens gives those of the reference."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from cases import FEW, NEW_TOKENS, AbsentError, Case, check, close, greedy, prompt, same

IDS = prompt()


@check("logits, eager")
@torch.no_grad()
def logits_eager(case: Case) -> None:
    _logits(case, attn_implementation="eager")


@check("logits, sdpa")
@torch.no_grad()
def logits_sdpa(case: Case) -> None:
    _logits(case, attn_implementation="sdpa")


def _logits(case: Case, **options: Any) -> None:
    model = case.load(**options)
    same(model.config._attn_implementation, options["attn_implementation"], "attention implementation")
    close(model(IDS).logits, case.reference(**options)(IDS).logits, "logits")


@check("bf16", drops=FEW)
@torch.no_grad()
def bf16(case: Case) -> None:
    _half(case, torch.bfloat16)


@check("fp16", drops=FEW)
@torch.no_grad()
def fp16(case: Case) -> None:
    _half(case, torch.float16)


def _half(case: Case, dtype: Any) -> None:
    model = case.load(dtype=dtype)
    same({parameter.dtype for parameter in model.parameters()}, {dtype}, "dtypes")
    logits = model(IDS).logits
    # A removed sublayer adds exactly zero in any precision.
    close(logits, case.reference(dtype=dtype)(IDS).logits, "logits")
    same(len(greedy(model, IDS)[0]), 12, "new tokens")


@check("per-layer MLP widths", drops=("widths",))
@torch.no_grad()
def widths(case: Case) -> None:
    model, reference = case.load(), case.reference()
    close(model(IDS).logits, reference(IDS).logits, "logits")
    same(greedy(model, IDS), greedy(reference, IDS), "greedy")


@check("greedy: cache, no cache, reference")
@torch.no_grad()
def greedy_cached(case: Case) -> None:
    model = case.load()
    expected = greedy(case.reference(), IDS, use_cache=False)
    same(greedy(model, IDS, use_cache=False), expected, "without cache")
    same(greedy(model, IDS, use_cache=True), expected, "with cache")


@check("left-padded batch")
@torch.no_grad()
def padded(case: Case) -> None:
    model, rows = case.load(), [prompt(length, seed=length) for length in (5, 20, 12)]
    batch, mask = torch.zeros(3, 20, dtype=torch.int64), torch.zeros(3, 20, dtype=torch.int64)
    for row, ids in enumerate(rows):
        batch[row, 20 - ids.shape[1] :] = ids
        mask[row, 20 - ids.shape[1] :] = 1
    expected = [greedy(case.reference(), ids, use_cache=False)[0] for ids in rows]
    same(greedy(model, batch, attention_mask=mask), expected, "batch")


@check("resume from a cache")
@torch.no_grad()
def resumed(case: Case) -> None:
    model, expected = case.load(), case.reference()(IDS, use_cache=False).logits
    for begin in (1, 5, 12):
        cache = model(IDS[:, :begin], use_cache=True).past_key_values
        close(model(IDS[:, begin:], past_key_values=cache).logits, expected[:, begin:], f"after {begin} tokens")
    cache = model(IDS[:, :5], use_cache=True).past_key_values
    for at in range(5, IDS.shape[1]):
        close(model(IDS[:, at : at + 1], past_key_values=cache).logits[:, 0], expected[:, at], f"token {at}")


@check("second turn with the first one's cache")
@torch.no_grad()
def second_turn(case: Case) -> None:
    model = case.load()
    first = model.generate(
        IDS, attention_mask=torch.ones_like(IDS), do_sample=False, max_new_tokens=6, pad_token_id=0,
        return_dict_in_generate=True,
    )  # fmt: skip
    ids = torch.cat([first.sequences, prompt(4, seed=4)], dim=1)
    found = greedy(model, ids, past_key_values=first.past_key_values)
    same(found, greedy(case.reference(), ids, use_cache=False), "second turn")


@check("beam 3")
@torch.no_grad()
def beams(case: Case) -> None:
    model = case.load()
    expected = greedy(case.reference(), IDS, num_beams=3, use_cache=False)
    same(greedy(model, IDS, num_beams=3), expected, "beams")


@check("StaticCache")
@torch.no_grad()
def static_cache(case: Case) -> None:
    found = greedy(case.load(), IDS, cache_implementation="static")
    same(found, greedy(case.reference(), IDS, use_cache=False), "static cache")


@check("cache size")
@torch.no_grad()
def cache_size(case: Case) -> None:
    model, stock = case.load(), case.stock()
    for options in ({}, {"cache_implementation": "static"}):
        mine, theirs = (_slots(one, **options) for one in (model, stock))
        what = f"a cache {options or ''}"
        if case.slots == len(case.cached) or not options:  # a static cache may fill its holes in advance
            same(sum(mine), sum(theirs[layer] for layer in case.cached), f"bytes of {what}")
        same(len(mine), case.slots, f"slots of {what}")


def _slots(model: Any, **options: Any) -> list[int]:
    """Return the bytes of every slot of the cache that a generation leaves."""
    plain = {"attention_mask": torch.ones_like(IDS), "do_sample": False, "max_new_tokens": 2, "pad_token_id": 0}
    cache = model.generate(IDS, return_dict_in_generate=True, **plain, **options).past_key_values
    if hasattr(cache, "layers"):
        slots = [(layer.keys, layer.values) for layer in cache.layers]
    else:  # before 4.54 two lists, and before that tuples
        slots = cache if isinstance(cache, tuple) else zip(cache.key_cache, cache.value_cache, strict=True)
    return [sum(map(_bytes, slot)) for slot in slots]


def _bytes(tensor: Any) -> int:
    return tensor.numel() * tensor.element_size() if isinstance(tensor, torch.Tensor) else 0


@check("assisted decoding: target")
@torch.no_grad()
def assisted(case: Case) -> None:
    found = greedy(case.load(), IDS, assistant_model=case.stock())
    same(found, greedy(case.reference(), IDS, use_cache=False), "assisted")


@check("assisted decoding: draft")
@torch.no_grad()
def drafting(case: Case) -> None:
    stock = case.stock()
    same(greedy(stock, IDS, assistant_model=case.load()), greedy(stock, IDS, use_cache=False), "assisted")


@check("prompt lookup")
@torch.no_grad()
def looked_up(case: Case) -> None:
    found, reference = greedy(case.load(), IDS, prompt_lookup_num_tokens=3), case.reference()
    # Some versions (4.53) write a token more than they may when the last lookup hits, with any model.
    same(found[0][:NEW_TOKENS], greedy(reference, IDS, use_cache=False)[0], "prompt lookup")
    same(found, greedy(reference, IDS, prompt_lookup_num_tokens=3), "prompt lookup of the reference")


@check("torch.compile fullgraph", drops=FEW)
@torch.no_grad()
def compiled(case: Case) -> None:
    torch._dynamo.reset()
    model, expected = case.load(), case.reference()(IDS).logits
    run = torch.compile(model, fullgraph=True, backend="eager")
    close(run(IDS, use_cache=False).logits, expected, "logits")


@check("set_attn_implementation", drops=FEW)
@torch.no_grad()
def switched(case: Case) -> None:
    model, expected = case.load(attn_implementation="eager"), case.reference()(IDS).logits
    if not hasattr(model, "set_attn_implementation"):
        raise AbsentError("this transformers has no set_attn_implementation")
    for name in ("sdpa", "eager"):
        model.set_attn_implementation(name)
        same(model.config._attn_implementation, name, "attention implementation")
        same({module.config._attn_implementation for module in _attentions(model)}, {name}, "of the attentions")
        close(model(IDS).logits, expected, f"logits, {name}")


def _attentions(model: Any) -> list[Any]:
    return [module for module in model.modules() if type(module).__name__.endswith("Attention")]


@check("signature of forward", drops=FEW)
def signature(case: Case) -> None:
    # `Trainer` and `generate` look at it to decide what they may pass.
    mine, theirs = (list(inspect.signature(one.forward).parameters) for one in (case.load(), case.stock()))
    same(mine, theirs, "parameters")
