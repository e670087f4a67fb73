"""Time a pruned checkpoint against its base, both in one process, in turns, and measure the memory of both."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from hubprune.cards.manifest import MANIFEST
from hubprune.core.architectures import SLIDING
from hubprune.core.artifacts import (
    BaseCheckpoint,
    BenchmarkChange,
    BenchmarkComparison,
    KvCacheMeasured,
    LargestBatch,
    PeakMemory,
    SpeedMeasured,
    SpeedReport,
    SpeedRow,
)
from hubprune.core.config import read_structure
from hubprune.core.console import Reporter
from hubprune.core.devices import describe_environment, resolve_device, resolve_dtype
from hubprune.core.errors import CheckpointError, RecipeError
from hubprune.core.files import make_writable, scratch_folder, write_atomically
from hubprune.core.memory import kv_cache_bytes, say_where
from hubprune.core.requests import SpeedRequest
from hubprune.core.strict import parse_json
from hubprune.hub.session import HubSession
from hubprune.pruning.layouts import Runnable, make_runnable
from hubprune.pruning.verify import plan_of
from hubprune.workflows.run import open_session
from hubprune.workflows.verify import PrunedFolder, find_base, find_pruned, refuse_foreign_code

if TYPE_CHECKING:
    from hubprune.evaluation.models import LoadedModel
    from hubprune.evaluation.speed import SpeedSpec

DEEPEST = 2**24
"""Tokens; no model reads more."""


def measure_speed(request: SpeedRequest, *, reporter: Reporter, session: HubSession | None = None) -> SpeedReport:
    """Time a pruned folder or repo against its base.

    Raises:
        CheckpointError: it was not written by hubprune, or is broken.
        VerificationError: it ships code that is not trusted.
        BaseNotFoundError: one of the two is not there.
        RecipeError: the two do not belong together, or this machine cannot do what is asked for.
        EvaluationError: the device's memory is too small.
    """
    check_request(request)
    session = session or open_session(request.endpoint)
    given, name = (request.first, request.second) if request.second else (None, request.first)
    pruned = find_pruned(name, revision=request.revision, session=session, reporter=reporter)
    refuse_foreign_code(pruned, trust="any" if request.trust_remote_code else "own")
    hint = f"Say where it is: hubprune speed FOLDER {name}."
    base = find_base(given, pruned.config, hint=hint, session=session, reporter=reporter)
    check_pair(base, pruned)
    say_where(base.config, device=request.device or "auto", dtype=request.dtype or "auto", reporter=reporter)
    change = benchmark_change(pruned.folder)
    with scratch_folder(name="hubprune-base") as work:
        runnable = make_runnable(base, work / "base")
        report = time_pair(base, pruned, runnable=runnable, request=request, benchmarks=change, reporter=reporter)
    if request.report:
        write_atomically(Path(request.report), report.model_dump_json(indent=2) + "\n")
    return report


def check_request(request: SpeedRequest) -> None:
    """Refuse what this machine cannot do, before anything is downloaded.

    Raises:
        RecipeError: there are no such depths or device, the CPU is asked for the largest batch, or the report cannot
            be written.
    """
    parse_depths(request.depths)
    if resolve_device(request.device or "auto") == "cpu" and request.largest_batch:
        raise RecipeError(
            "The largest batch can be searched for on a GPU only: on a CPU, the system would end the process.",
            hint="Leave --largest-batch out.",
        )
    if request.report:
        make_writable(Path(request.report).absolute().parent)


def parse_depths(depths: str | Sequence[int]) -> tuple[int, ...]:
    """Read a list of depths, ascending and each once.

    Raises:
        RecipeError: it is none.
    """
    text = depths if isinstance(depths, str) else ",".join(map(str, depths))
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and len(part) < 9 for part in parts):
        raise RecipeError(f"--depths {text!r:.60} is no list of depths.", hint="Write it like --depths 0,512,2048.")
    found = tuple(sorted({int(part) for part in parts}))
    if found[-1] > DEEPEST:
        raise RecipeError(f"--depths {text!r:.60} goes beyond {DEEPEST:,} tokens.", hint="Name smaller depths.")
    return found


def check_pair(base: BaseCheckpoint, pruned: PrunedFolder) -> None:
    """Refuse a base that the checkpoint cannot have been made of.

    Raises:
        RecipeError: another family, or another number of layers.
    """
    plan, family = plan_of(pruned.config), read_structure(pruned.config, name=pruned.name).architecture.model_type
    own = read_structure(base.config, name=base.name).architecture.model_type
    if (own, base.num_hidden_layers) != (family, plan.num_hidden_layers):
        raise RecipeError(
            f"{pruned.name} was made of a {family} of {plan.num_hidden_layers} layers; {base.name} is a {own} of "
            f"{base.num_hidden_layers}.",
            hint="Name the base it was made of, or leave it out to take the one that its config.json names.",
        )


def time_pair(
    base: BaseCheckpoint, pruned: PrunedFolder, *, runnable: Runnable, request: SpeedRequest,
    benchmarks: BenchmarkChange | None, reporter: Reporter,
) -> SpeedReport:  # fmt: skip
    """Time two models that are on this machine and known to belong together.

    `runnable` is the base as transformers can load it, `benchmarks` what they lost, for SDR; None where that is not
    known.

    Raises:
        EvaluationError: the device's memory is too small.
    """
    return _Pair(base, pruned, runnable, request, reporter, benchmarks).report()


@dataclass(frozen=True)
class _Seen:
    """What the two models showed while they were loaded."""

    measured: tuple[SpeedMeasured, ...]
    kv_cache: KvCacheMeasured
    peak: PeakMemory | None
    largest_batch: LargestBatch | None
    device: str
    dtype: str
    attention: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Pair:
    """A base and its pruned checkpoint on this machine, and what is asked of them."""

    base: BaseCheckpoint
    pruned: PrunedFolder
    runnable: Runnable
    request: SpeedRequest
    reporter: Reporter
    benchmarks: BenchmarkChange | None

    def report(self) -> SpeedReport:
        """Measure everything and put it together."""
        import torch

        from hubprune.core.console import quiet
        from hubprune.evaluation.models import release_memory

        with quiet():
            seen = self._measure()
        release_memory()
        peak, rows, change = seen.peak or self._resident(seen), [], self.benchmarks
        for row in seen.measured:
            sdr = None
            if change:
                sdr = row.sdr(change.points, standard_error=change.standard_error, ends=change.ends)
            rows.append(SpeedRow(measured=row, verdict=row.verdict, sdr=sdr))
        return SpeedReport(
            base=self.base.name, base_commit=self.base.commit, pruned=self.pruned.name,
            pruned_commit=self.pruned.commit, dropped=plan_of(self.pruned.config).sublayers, rows=tuple(rows),
            kv_cache=seen.kv_cache, peak_memory=peak, largest_batch=seen.largest_batch, benchmarks=change,
            environment=describe_environment(device=seen.device), device=seen.device, dtype=seen.dtype,
            threads=torch.get_num_threads(), attention=seen.attention, seed=self.request.seed,
            notes=(*seen.notes, *self._notes(seen, peak)),
        )  # fmt: skip

    def _notes(self, seen: _Seen, peak: PeakMemory | None) -> Iterator[str]:
        """Say what is strange, and what there is no number of."""
        cache, config = seen.kv_cache, self.base.config
        if not cache.as_computed:
            yield (
                f"The KV cache is not what config.json says: {cache.base:,} and {cache.pruned:,} bytes counted, "
                f"{cache.base_computed:,} and {cache.pruned_computed:,} computed."
            )
        slides = SLIDING in read_structure(config).architecture.attention_kinds(config)
        if slides and (config.get("sliding_window") or math.inf) <= cache.tokens:
            yield f"Sliding attentions forget: KV bytes per token are the mean over {cache.tokens} tokens."
        if failed := sum(row.verdict == "control failed" for row in seen.measured):
            yield (
                f"In {failed} of {len(seen.measured)} measures the base differs from itself, as about 1 in 16 does by "
                "chance: nothing is said of these. Leave the machine alone, or pass more --rounds."
            )
        if self.benchmarks is None:
            yield f"No SDR: there are no benchmarks in {MANIFEST}."
        elif self.benchmarks.standard_error is None:
            yield "The interval of SDR is that of the speed-up alone: the benchmarks have no standard error."
        if peak is None:
            yield f"Peak memory: not measured on {seen.device}."

    # ---- with both in memory -------------------------------------------------------------------------------------

    def _measure(self) -> _Seen:
        from hubprune.evaluation import speed
        from hubprune.evaluation.models import load_model
        from hubprune.evaluation.speed import allocated_peak

        self.reporter.note(f"load {self.base.name} and {self.pruned.name}")
        device, asked = self.request.device or "auto", self.request.dtype or "auto"
        dtype = resolve_dtype(asked, self.base.config, device=resolve_device(device))
        code = self.runnable.own_code
        base = load_model(self.runnable.folder, device=device, dtype=dtype, trust_remote_code=code)
        pruned = load_model(self.pruned.folder, device=device, dtype=base.dtype, trust_remote_code=True)
        specs, notes = self._specs(base, pruned)
        measured: list[SpeedMeasured] = []
        for spec in specs:
            total = spec.rounds + speed.WARM_UPS
            with self.reporter.progress(f"time depth {spec.depth}", total=total, unit="rounds") as advance:
                measured += speed.measure(lambda: nullcontext(base), lambda: nullcontext(pruned), spec, advance=advance)
        deepest = specs[-1]
        cache = self._kv_cache(base, pruned, tokens=deepest.depth or deepest.new_tokens)
        one, other = allocated_peak(base, deepest), allocated_peak(pruned, deepest)
        return _Seen(
            measured=tuple(measured), kv_cache=cache,
            peak=_peak("allocator", one, other, deepest) if one and other else None,
            largest_batch=self._largest(base, pruned, deepest) if self.request.largest_batch else None,
            device=base.device, dtype=base.dtype, attention=str(base.model.config._attn_implementation),
            notes=tuple(notes),
        )  # fmt: skip

    def _specs(self, base: LoadedModel, pruned: LoadedModel) -> tuple[list[SpeedSpec], list[str]]:
        """Return the shapes that the models have positions for, and a note where that cut them."""
        from hubprune.evaluation.speed import SpeedSpec, fit_depths

        asked, wanted = self.request, parse_depths(self.request.depths)
        limit = min((model.max_positions for model in (base, pruned) if model.max_positions), default=None)
        depths = fit_depths(wanted, new_tokens=asked.new_tokens, max_positions=limit)
        notes = []
        if cut := [depth for depth in wanted if depth not in depths]:
            notes.append(
                f"Depth {', '.join(map(str, cut))} became {depths[-1]}: the model has {limit} positions, "
                f"{asked.new_tokens} of them for new tokens."
            )
            self.reporter.note(notes[-1])
        same = {"new_tokens": asked.new_tokens, "rounds": asked.rounds, "batch_size": asked.batch_size}
        return [SpeedSpec(depth=depth, seed=asked.seed, **same) for depth in depths], notes

    def _kv_cache(self, base: LoadedModel, pruned: LoadedModel, *, tokens: int) -> KvCacheMeasured:
        from hubprune.evaluation.speed import cache_bytes

        def computed(config: Mapping[str, Any], dtype: str) -> int:
            return kv_cache_bytes(config, gone=read_structure(config).no_attn, tokens=tokens, dtype=dtype)

        return KvCacheMeasured(
            tokens=tokens,
            base=cache_bytes(base, tokens=tokens),
            pruned=cache_bytes(pruned, tokens=tokens),
            base_computed=computed(self.base.config, base.dtype),
            pruned_computed=computed(self.pruned.config, pruned.dtype),
        )

    def _largest(self, base: LoadedModel, pruned: LoadedModel, spec: SpeedSpec) -> LargestBatch:
        """Search with one model on the device, the other in the memory of the host."""
        from hubprune.evaluation.speed import LIMIT, largest_batch

        found = []
        for own, other in ((base, pruned), (pruned, base)):
            self.reporter.note(f"search for the largest batch of {'the base' if own is base else 'the pruned model'}")
            other.model.to("cpu")
            own.model.to(own.device)
            found.append(largest_batch(own, depth=spec.depth, new_tokens=spec.new_tokens))
        shape = {"depth": spec.depth, "new_tokens": spec.new_tokens}
        return LargestBatch(base=found[0], pruned=found[1], limit=LIMIT, **shape)

    # ---- afterwards ----------------------------------------------------------------------------------------------

    def _resident(self, seen: _Seen) -> PeakMemory | None:
        """Measure what a process on the CPU takes for each of the two, now that neither is in memory here."""
        if seen.device != "cpu":
            return None
        from hubprune.evaluation.speed import SpeedSpec, resident_peak

        last = seen.measured[-1]
        spec = SpeedSpec(depth=last.depth, new_tokens=last.new_tokens, rounds=0, batch_size=last.batch_size)
        self.reporter.note("measure the memory of both, in processes of their own")
        sides = ((self.runnable.folder, self.runnable.own_code), (self.pruned.folder, True))
        base, pruned = (resident_peak(path, spec, dtype=seen.dtype, trust_remote_code=code) for path, code in sides)
        return _peak("resident", base, pruned, spec) if base and pruned else None


def _peak(how: Any, base: int, pruned: int, spec: SpeedSpec) -> PeakMemory:
    return PeakMemory(
        how=how, base=base, pruned=pruned, depth=spec.depth, new_tokens=spec.new_tokens, batch_size=spec.batch_size
    )


def benchmark_change(folder: Path) -> BenchmarkChange | None:
    """Return what the benchmarks in a folder's manifest lost; None where it holds none that can be understood."""
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        values = parse_json(path.read_bytes(), where=str(path)).get("benchmarks")
        # What a clock measured is left out of manifests.
        return change_of(BenchmarkComparison.model_validate({**(values or {}), "seconds": 0.0}))
    except (CheckpointError, ValidationError, TypeError):
        return None


def change_of(found: BenchmarkComparison) -> BenchmarkChange | None:
    """Return what benchmarks lost on average; None where none of them is a share."""
    if (change := found.mean_points) is None:
        return None
    tasks = tuple(task.task for task in found.main_metrics() if task.is_share)
    error = change.standard_error
    return BenchmarkChange(points=change.value, standard_error=error, low=change.low, high=change.high, tasks=tasks)
