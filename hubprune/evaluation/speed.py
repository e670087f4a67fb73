"""How fast a model reads and writes against its base: paired rounds in random order, a control, and an interval.

Each round times the base, the base again, and the model.  A sample is a whole answer: a prompt of fixed tokens fills a
real KV cache, then further fixed tokens are fed one by one, so that no text that a model happens to write decides how
much work it does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any, get_args

import torch

from hubprune.core.artifacts import Measure, SpeedMeasured
from hubprune.core.errors import EvaluationError
from hubprune.evaluation.clocks import Clock, clock_of
from hubprune.evaluation.models import LoadedModel, memory_errors
from hubprune.evaluation.rounds import Round, ratio_to_base, take_turns

__all__ = ["WARM_UPS", "SpeedSpec", "answer", "fit_depths", "inputs", "measure"]

WARM_UPS = 3
"""Rounds of every shape that do not count."""
FIRST_TOKEN = 5
"""Tokens below are left out of prompts: in most vocabularies they are special."""

Entry = Callable[[], AbstractContextManager[LoadedModel]]
"""Makes a block in which a model is ready to run."""


@dataclass(frozen=True, kw_only=True)
class SpeedSpec:
    """One shape, and how often it is timed."""

    depth: int
    """Tokens in the KV cache when decoding starts, which is the length of the prompt; with 0 there is none."""
    new_tokens: int
    rounds: int
    batch_size: int = 1
    seed: int = 0


def fit_depths(depths: Sequence[int], *, new_tokens: int, max_positions: int | None) -> tuple[int, ...]:
    """Cut depths so that the new tokens fit behind them, ascending and each once.

    Args:
        depths: tokens in the KV cache when decoding starts.
        new_tokens: after them.
        max_positions: of the model; None where its config gives no limit.

    Raises:
        EvaluationError: the model has no positions for the new tokens alone.
    """
    if max_positions is None:
        return tuple(sorted(set(depths)))
    if new_tokens > max_positions:
        raise EvaluationError(
            f"The model has {max_positions} positions, fewer than {new_tokens} new tokens.",
            hint=f"Pass --new-tokens {max_positions} or less.",
        )
    return tuple(sorted({min(depth, max_positions - new_tokens) for depth in depths}))


def measure(
    base: Entry,
    pruned: Entry,
    spec: SpeedSpec,
    *,
    clock: Clock | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> tuple[SpeedMeasured, ...]:
    """Time two models on one device in turns.

    Args:
        base: makes a block in which the base is ready.
        pruned: the same for the model that is compared with it.
        spec: the shape and the rounds.
        clock: None for that of the device.
        advance: told after every round, `WARM_UPS` included.

    Returns:
        One entry per measure, in their own order; without a prompt there is only decoding.

    Raises:
        EvaluationError: the device's memory is too small.
    """
    entries = {"base": base, "again": base, "pruned": pruned}
    runs = {name: partial(_sample_of, entry, spec, clock) for name, entry in entries.items()}
    where = f"at depth {spec.depth} and batch size {spec.batch_size}"
    with torch.inference_mode(), memory_errors(where, hint="Ask for less depth or a smaller batch size."):
        seen = take_turns(runs, rounds=spec.rounds, warm_ups=WARM_UPS, seed=spec.seed, advance=advance)
    return tuple(
        _measured(name, [(row["base"][name], row["again"][name], row["pruned"][name]) for row in seen], spec)
        for name in get_args(Measure)
        if name in seen[0]["base"]
    )


def _measured(name: Measure, rounds: Sequence[Round], spec: SpeedSpec) -> SpeedMeasured:
    ratio, control = ratio_to_base(rounds, seed=spec.seed)
    base, seconds = median(row[0] for row in rounds), median(row[2] for row in rounds)
    tokens = {"prefill": spec.depth, "decode": spec.new_tokens, "generation": spec.new_tokens}.get(name)
    return SpeedMeasured(
        measure=name,
        ratio=ratio,
        control=control,
        seconds=seconds,
        base_seconds=base,
        tokens_per_second=tokens * spec.batch_size / seconds if tokens else None,
        base_tokens_per_second=tokens * spec.batch_size / base if tokens else None,
        depth=spec.depth,
        new_tokens=spec.new_tokens,
        batch_size=spec.batch_size,
        round_seconds=tuple(rounds),
    )


def _sample_of(entry: Entry, spec: SpeedSpec, clock: Clock | None) -> Mapping[Measure, float]:
    with entry() as model:
        return _sample(model, spec, clock or clock_of(model.device))


def _sample(model: LoadedModel, spec: SpeedSpec, clock: Clock) -> Mapping[Measure, float]:
    """Return the seconds of every measure for one answer."""
    prompt = inputs(model, spec)
    # Two thirds of all samples run the base: without this, the weights of small models would be in the processor's
    # cache more often for the base.
    model.model(prompt[:, :1], use_cache=False)
    marks: list[Any] = [clock.mark()]
    answer(model, prompt, spec, between=lambda: marks.append(clock.mark()))
    seconds = clock.seconds(marks)
    if not spec.depth:
        return {"decode": seconds[0]}
    prefill, choice, decode = seconds
    return {"prefill": prefill, "first-token": prefill + choice, "decode": decode, "generation": sum(seconds)}


def inputs(model: LoadedModel, spec: SpeedSpec) -> torch.Tensor:
    """Make the fixed tokens of a shape, of one column at least: [batch_size, depth or 1]."""
    ids = torch.arange(max(1, spec.depth)) % (model.model.config.get_text_config().vocab_size - FIRST_TOKEN)
    return (ids + FIRST_TOKEN).expand(spec.batch_size, -1).contiguous().to(model.device)


def answer(model: LoadedModel, prompt: torch.Tensor, spec: SpeedSpec, *, between: Callable[[], None]) -> Any:
    """Read a prompt, choose the first token, then feed the fixed new tokens one by one; return the KV cache.

    Args:
        model: what runs.
        prompt: from `inputs`.
        spec: the shape; with a depth of 0 the cache starts empty.
        between: told after the prompt, after the choice, and at the end; without a prompt, at the end alone.
    """
    cache: Any = None
    if spec.depth:
        read = model.model(prompt, use_cache=True, logits_to_keep=1)
        cache = read.past_key_values
        between()
        read.logits.argmax(-1)
        between()
    token = prompt[:, :1].contiguous()
    for _ in range(spec.new_tokens):
        cache = model.model(token, past_key_values=cache, use_cache=True, logits_to_keep=1).past_key_values
    between()
    return cache
