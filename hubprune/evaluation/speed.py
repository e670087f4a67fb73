"""How fast a model reads and writes against its base, in paired rounds with a control, and what memory it takes.

Each round times the base, the base again, and the model.  Runs one after the other drift with whatever else the machine
does, by far more than the differences that are looked for: so all take turns in one process, and what counts is the
ratio within a round.  A sample is a whole answer: a prompt of fixed tokens fills a real KV cache, then further fixed
tokens are fed one by one, so that no text that a model happens to write decides how much work it does.
"""

from __future__ import annotations

import gc
import logging
import random
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, Protocol, TypeVar, get_args

import torch
from pydantic import BaseModel

from hubprune.core.artifacts import Interval, Measure, SpeedMeasured
from hubprune.core.console import log_level
from hubprune.core.devices import run_to_end
from hubprune.core.errors import EvaluationError
from hubprune.core.fresh import SAFE_PATH
from hubprune.core.memory import held_bytes
from hubprune.evaluation.models import LoadedModel, is_memory_error, load_model, memory_errors, release_memory

WARM_UPS = 3
"""Rounds of every shape that do not count."""
FIRST_TOKEN = 5
"""Tokens below are left out of prompts: in most vocabularies they are special."""
RESAMPLES = 2000
LIMIT = 4096
"""Where the search for the largest batch ends."""
STATUS = Path("/proc/self/status")
"""Where Linux tells the peak of a process.  `getrusage` would begin with the peak of the process that started it."""
Seen = TypeVar("Seen")
Round = tuple[float, float, float]
"""Seconds of base, base again and the model that is compared with it."""
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
    """Cut depths, in tokens, so that the new tokens fit behind them into the model's positions, if it has a limit.

    Returns them ascending and each once.

    Raises:
        EvaluationError: the model has no positions for the new tokens alone.
    """
    if max_positions is None:
        return tuple(sorted(set(depths)))
    if new_tokens > max_positions:
        message = f"The model has {max_positions} positions, fewer than {new_tokens} new tokens."
        raise EvaluationError(message, hint=f"Pass --new-tokens {max_positions} or less.")
    return tuple(sorted({min(depth, max_positions - new_tokens) for depth in depths}))


def measure(
    base: Entry, pruned: Entry, spec: SpeedSpec, *, clock: Clock | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> tuple[SpeedMeasured, ...]:  # fmt: skip
    """Time two models on one device in turns, by the device's own clock where none is given.

    `advance` is told after every round, `WARM_UPS` included.  Returns one entry per measure, in their own order; where
    there is no prompt, of decoding alone.

    Raises:
        EvaluationError: the device's memory is too small.
    """
    entries = {"base": base, "again": base, "pruned": pruned}
    runs = {name: partial(_sample, entry, spec, clock) for name, entry in entries.items()}
    where = f"at depth {spec.depth} and batch size {spec.batch_size}"
    # Newer versions of transformers would like another name for the KV cache, which older ones do not know.
    with (
        torch.inference_mode(), memory_errors(where, hint="Ask for less depth or a smaller batch size."),
        warnings.catch_warnings(action="ignore", category=FutureWarning),
        log_level("transformers.utils.generic", logging.ERROR),
    ):  # fmt: skip
        seen = take_turns(runs, rounds=spec.rounds, warm_ups=WARM_UPS, seed=spec.seed, advance=advance)
    measured = []
    for name in (name for name in get_args(Measure) if name in seen[0]["base"]):
        rounds: list[Round] = [(row["base"][name], row["again"][name], row["pruned"][name]) for row in seen]
        ratio, control = ratio_to_base(rounds, seed=spec.seed)
        base_seconds, seconds = median(row[0] for row in rounds), median(row[2] for row in rounds)
        tokens = {"prefill": spec.depth, "decode": spec.new_tokens, "generation": spec.new_tokens}.get(name)
        found = SpeedMeasured(
            measure=name, ratio=ratio, control=control, seconds=seconds, base_seconds=base_seconds,
            tokens_per_second=tokens * spec.batch_size / seconds if tokens else None,
            base_tokens_per_second=tokens * spec.batch_size / base_seconds if tokens else None, depth=spec.depth,
            new_tokens=spec.new_tokens, batch_size=spec.batch_size, round_seconds=tuple(rounds),
        )  # fmt: skip
        measured.append(found)
    return tuple(measured)


def _sample(entry: Entry, spec: SpeedSpec, clock: Clock | None) -> Mapping[Measure, float]:
    """Return the seconds of every measure for one answer."""
    with entry() as model:
        timer, prompt = clock or clock_of(model.device), inputs(model, spec)
        # Two thirds of all samples run the base: without this, the weights of small models would be in the processor's
        # cache more often for the base.
        model.model(prompt[:, :1], use_cache=False)
        marks: list[Any] = [timer.mark()]
        answer(model, prompt, spec, between=lambda: marks.append(timer.mark()))
        seconds = timer.seconds(marks)
    if not spec.depth:
        return {"decode": seconds[0]}
    prefill, choice, decode = seconds
    return {"prefill": prefill, "first-token": prefill + choice, "decode": decode, "generation": sum(seconds)}


def inputs(model: LoadedModel, spec: SpeedSpec) -> torch.Tensor:
    """Make the fixed tokens of a shape, of one column at least: [batch_size, depth or 1]."""
    ids = torch.arange(max(1, spec.depth)) % (model.model.config.get_text_config().vocab_size - FIRST_TOKEN)
    return (ids + FIRST_TOKEN).expand(spec.batch_size, -1).contiguous().to(model.device)


def answer(model: LoadedModel, prompt: torch.Tensor, spec: SpeedSpec, *, between: Callable[[], None]) -> Any:
    """Read a prompt from `inputs`, choose a token, then feed the fixed new tokens one by one; return the KV cache.

    `between` is told after the prompt, after the choice, and at the end; with a depth of 0, where the cache starts
    empty, at the end alone.
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


# ---- in turns --------------------------------------------------------------------------------------------------------


def take_turns(
    runs: Mapping[str, Callable[[], Seen]], *, rounds: int, warm_ups: int, seed: int, advance: Callable[[int], None]
) -> list[dict[str, Seen]]:
    """Run everything once a round, each round in another random order, and return what the rounds saw by name.

    The results of the warm-ups are thrown away; `advance` is told after every round, warm-ups included.
    """
    order, chance = list(runs), random.Random(seed)
    seen: list[dict[str, Seen]] = []
    for _ in range(warm_ups + rounds):
        chance.shuffle(order)
        was_enabled = gc.isenabled()
        gc.disable()  # but between rounds: with all of transformers loaded, that takes longer than many a token
        try:
            seen.append({name: runs[name]() for name in order})
        finally:
            if was_enabled:
                gc.enable()
        advance(1)
    return seen[warm_ups:]


def ratio_to_base(rounds: Sequence[Round], *, seed: int) -> tuple[Interval, Interval]:
    """Return the base's seconds over the model's, and as a control over its own, round by round."""
    model = [base / other for base, _, other in rounds]
    control = [base / again for base, again, _ in rounds]
    return bootstrap(model, seed=seed), bootstrap(control, seed=seed)


def bootstrap(values: Sequence[float], *, seed: int) -> Interval:
    """Return the median of some values with its 95 % percentile interval over resamples.

    Of 20 values, normal or skewed, it was seen to hold the true median in 94 of 100 cases, of more in closer to 95.
    """
    chance = random.Random(seed)
    medians = sorted(median(chance.choices(values, k=len(values))) for _ in range(RESAMPLES))
    low, high = medians[int(0.025 * RESAMPLES)], medians[int(0.975 * RESAMPLES) - 1]
    return Interval(median=median(values), low=low, high=high)


# ---- clocks ----------------------------------------------------------------------------------------------------------


class Clock(Protocol):
    """Marks moments between pieces of work, and tells afterwards how long each piece took."""

    def mark(self) -> Any:
        """Mark a moment, after all work that was given to the device so far."""

    def seconds(self, marks: Sequence[Any]) -> list[float]:
        """Return the seconds from each mark to the next."""


@dataclass(frozen=True)
class WallClock:
    """Waits for the device, then looks at the wall clock."""

    device: str

    def mark(self) -> float:
        """Return the time once all work is done."""
        if self.device.startswith("mps"):
            torch.mps.synchronize()
        return time.perf_counter()

    def seconds(self, marks: Sequence[float]) -> list[float]:
        """Return the seconds from each mark to the next."""
        return [end - start for start, end in pairwise(marks)]


@dataclass(frozen=True)
class CudaClock:
    """Puts events between the kernels, so that the host runs ahead as it does in use, and waits once, at the end."""

    device: str

    def mark(self) -> Any:
        """Put an event behind the work that was launched so far."""
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def seconds(self, marks: Sequence[Any]) -> list[float]:
        """Wait for the last event, and return the seconds from each to the next."""
        marks[-1].synchronize()
        return [start.elapsed_time(end) / 1000 for start, end in pairwise(marks)]


def clock_of(device: str) -> Clock:
    """Return the clock for a device."""
    return CudaClock(device) if device.startswith("cuda") else WallClock(device)


# ---- memory ----------------------------------------------------------------------------------------------------------


def cache_bytes(model: LoadedModel, *, tokens: int) -> int:
    """Fill the KV cache of one sequence with so many tokens, and count its bytes."""
    return held_bytes(_run(model, SpeedSpec(depth=tokens, new_tokens=0, rounds=0)))


def allocated_peak(model: LoadedModel, spec: SpeedSpec) -> int | None:
    """Return the bytes of a model's weights and of the most that the allocator held beside them while it ran.

    Other models on the device do not count.  None where the device's allocator keeps no peak.
    """
    if not model.device.startswith("cuda"):
        return None
    release_memory()
    torch.cuda.reset_peak_memory_stats(model.device)
    before = torch.cuda.memory_allocated(model.device)
    _run(model, spec)
    return int(model.model.get_memory_footprint() + torch.cuda.max_memory_allocated(model.device) - before)


def _run(model: LoadedModel, spec: SpeedSpec) -> Any:
    with torch.inference_mode():
        return answer(model, inputs(model, spec), spec, between=lambda: None)


class ResidentRequest(BaseModel):
    """What a fresh process loads and runs."""

    folder: str
    dtype: str
    trust_remote_code: bool
    spec: SpeedSpec


def resident_peak(folder: Path, spec: SpeedSpec, *, dtype: str, trust_remote_code: bool) -> int | None:
    """Load a folder on the CPU in a fresh process, run one shape, and return the most bytes that were resident.

    Libraries and loading are part of it.  None where the system does not tell.

    Raises:
        EvaluationError: the process ended early.
    """
    if not STATUS.is_file():
        return None
    own_code = trust_remote_code
    request = ResidentRequest(folder=str(folder.resolve()), dtype=dtype, trust_remote_code=own_code, spec=spec)
    command = [sys.executable, SAFE_PATH, "-m", "hubprune.evaluation.speed"]
    done = run_to_end(command, input=request.model_dump_json(), capture_output=True, text=True)
    if done.returncode:
        message = f"The fresh process that measures the memory of {folder} ended with code {done.returncode}."
        hint = "Most likely the memory was too small: ask for less depth or a smaller batch size."
        raise EvaluationError(message, hint=hint)
    return int(done.stdout.splitlines()[-1])


def main() -> None:
    """Read a request from stdin, write the peak in bytes as the last line of stdout."""
    request = ResidentRequest.model_validate_json(sys.stdin.read())
    own_code = request.trust_remote_code
    model = load_model(Path(request.folder), device="cpu", dtype=request.dtype, trust_remote_code=own_code)
    _run(model, request.spec)
    (line,) = (line for line in STATUS.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM:"))
    print(1024 * int(line.split()[1]))


def largest_batch(model: LoadedModel, *, depth: int, new_tokens: int) -> int:
    """Return the largest batch of prompts and new tokens that fits beside the weights; 0 where none does.

    Everything else on the device counts against it, so that another model has to be moved away first.
    """

    def fits(batch_size: int) -> bool:
        """Run a batch of this size."""
        try:
            _run(model, SpeedSpec(depth=depth, new_tokens=new_tokens, rounds=0, batch_size=batch_size))
        except RuntimeError as error:
            if not is_memory_error(error):
                raise
            return False
        finally:
            release_memory()
        return True

    return largest(fits, limit=LIMIT)


def largest(fits: Callable[[int], bool], *, limit: int) -> int:
    """Return the largest number up to a limit that fits, where all smaller ones do: by doubling, then by halving."""
    good, bad = 0, 1
    while bad <= limit and fits(bad):
        good, bad = bad, 2 * bad
    bad = min(bad, limit + 1)
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good


if __name__ == "__main__":
    main()
