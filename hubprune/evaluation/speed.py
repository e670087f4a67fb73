"""How fast a model decodes against its base: paired rounds in random order, a control, and an interval.

Runs one after the other drift with whatever else the machine does, by far more than the differences that are looked
for.  So base, base again and pruned model take turns in one process, and what counts is the ratio within a round.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from hubprune.artifacts import Interval, SpeedMeasured
from hubprune.evaluation.models import LoadedModel, memory_errors

__all__ = ["SpeedSpec", "bootstrap", "measure"]

RESAMPLES = 2000
WARM_UPS = 3
FIRST_TOKEN = 5


@dataclass(frozen=True)
class SpeedSpec:
    """How speed is measured."""

    depth: int
    """Tokens in the KV cache when decoding starts."""
    new_tokens: int
    rounds: int
    batch_size: int = 1
    seed: int = 0


def measure(model: LoadedModel, bypass: Callable[[], AbstractContextManager[None]], spec: SpeedSpec) -> SpeedMeasured:
    """Time decoding of a base and of itself with sublayers bypassed, in turns.

    Args:
        model: the base.
        bypass: makes a block in which the base is pruned.
        spec: depth, tokens, rounds.

    Raises:
        EvaluationError: the device's memory is too small.
    """
    variants: Mapping[str, Callable[[], AbstractContextManager[None]]] = {
        "base": nullcontext, "again": nullcontext, "pruned": bypass,
    }  # fmt: skip
    order, chance = list(variants), random.Random(spec.seed)
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    with torch.inference_mode(), memory_errors(f"at depth {spec.depth}", hint="Pass a smaller --speed-depth."):
        for number in range(-WARM_UPS, spec.rounds):
            chance.shuffle(order)
            for name in order:
                with variants[name]():
                    taken = _decode_seconds(model, spec)
                if number >= 0:
                    seconds[name].append(taken)
    return _measured(seconds, spec)


def _measured(seconds: Mapping[str, Sequence[float]], spec: SpeedSpec) -> SpeedMeasured:
    def ratios(other: str) -> list[float]:
        return [one / two for one, two in zip(seconds["base"], seconds[other], strict=True)]

    tokens = spec.new_tokens * spec.batch_size
    return SpeedMeasured(
        ratio=bootstrap(ratios("pruned"), seed=spec.seed),
        control=bootstrap(ratios("again"), seed=spec.seed),
        tokens_per_second=tokens / median(seconds["pruned"]),
        base_tokens_per_second=tokens / median(seconds["base"]),
        depth=spec.depth,
        new_tokens=spec.new_tokens,
        batch_size=spec.batch_size,
        rounds=spec.rounds,
    )


def bootstrap(values: Sequence[float], *, seed: int) -> Interval:
    """Return the median of some values with its 95 % percentile interval over resamples."""
    chance = random.Random(seed)
    medians = sorted(median(chance.choices(values, k=len(values))) for _ in range(RESAMPLES))
    return Interval(
        median=median(values), low=medians[int(0.025 * RESAMPLES)], high=medians[int(0.975 * RESAMPLES) - 1]
    )


def _decode_seconds(model: LoadedModel, spec: SpeedSpec) -> float:
    """Fill a real KV cache, then time forward passes of one fixed token each."""
    ids = torch.arange(spec.depth) % (model.model.config.get_text_config().vocab_size - FIRST_TOKEN) + FIRST_TOKEN
    prompt = ids.expand(spec.batch_size, -1).to(model.device)
    token = prompt[:, :1].contiguous()
    cache: Any = model.model(prompt, use_cache=True, logits_to_keep=1).past_key_values
    _synchronize(model.device)
    start = time.perf_counter()
    for _ in range(spec.new_tokens):
        model.model(token, past_key_values=cache, use_cache=True, logits_to_keep=1)
    _synchronize(model.device)
    return time.perf_counter() - start


def _synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    elif device.startswith("mps"):
        torch.mps.synchronize()
