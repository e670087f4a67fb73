"""Measure the points of a sweep on one base in memory; each is a stage of its own, so that a sweep can be stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from hubprune.artifacts import BenchmarkAnswers, DropPlan, HeldOutDocuments, PerplexityAnswers, SpeedMeasured
from hubprune.console import Reporter
from hubprune.run import Run
from hubprune.stages import StageStore, key_of
from hubprune.sweep.points import Point
from hubprune.sweep.request import SpeedRequest, SweepRequest

if TYPE_CHECKING:
    from hubprune.evaluation.harness import InMemory
    from hubprune.evaluation.models import LoadedModel

BENCHMARKS, PERPLEXITY, SPEED = "sweep-benchmarks", "sweep-perplexity", "sweep-speed"


@dataclass(frozen=True)
class Measured:
    """What was measured at one point."""

    benchmarks: BenchmarkAnswers | None
    perplexity: PerplexityAnswers | None
    speed: SpeedMeasured | None


def measure_all(
    run: Run, request: SweepRequest, points: Sequence[Point], documents: HeldOutDocuments | None
) -> tuple[Measured, ...]:
    """Measure all points that no earlier run did, in their order; two that drop the same are measured once.

    Raises:
        EvaluationError: a benchmark cannot be run, or the memory is too small.
    """
    bench = _Bench(run, request, documents)
    different = {key_of(point.plan.content): point.plan for point in points}
    missing = [plan for plan in different.values() if not bench.is_kept(plan)]
    run.reporter.note(f"{len(points)} points, {len(different)} different, {len(missing)} to measure")
    found = {key: bench.measure(plan) for key, plan in different.items() if plan not in missing}
    with run.reporter.progress("measuring", total=len(missing), unit="points") as advance:
        for key, plan in different.items():
            if key not in found:
                found[key] = bench.measure(plan)
                advance(1)
    return tuple(found[key_of(point.plan.content)] for point in points)


class _Bench:
    """The base and its documents, loaded when the first point needs them."""

    def __init__(self, run: Run, request: SweepRequest, documents: HeldOutDocuments | None) -> None:
        self._run, self._request, self._documents = run, request, documents
        # The run's own store would say of every point that it was taken from an earlier run.
        self._store = StageStore(run.store.folder)

    def is_kept(self, plan: DropPlan) -> bool:
        """Tell whether an earlier run measured all that is asked for."""
        return all(self._store.has(stage, key) for stage, key in self._keys(plan).items())

    def measure(self, plan: DropPlan) -> Measured:
        """Measure a point, or take what an earlier run measured."""
        keys, store = self._keys(plan), self._store
        benchmarks = perplexity = speed = None
        if BENCHMARKS in keys:
            benchmarks = store.run(BENCHMARKS, keys[BENCHMARKS], BenchmarkAnswers, lambda: self._answer(plan))
        if PERPLEXITY in keys:
            perplexity = store.run(PERPLEXITY, keys[PERPLEXITY], PerplexityAnswers, lambda: self._read(plan))
        if SPEED in keys:
            speed = store.run(SPEED, keys[SPEED], SpeedMeasured, lambda: self._time(plan))
        return Measured(benchmarks, perplexity, speed)

    def _keys(self, plan: DropPlan) -> dict[str, str]:
        run, spec = self._run, self._run.recipe.evaluation
        common = [run.circumstances, plan.content]
        keys: dict[str, str] = {}
        if spec.tasks:
            keys[BENCHMARKS] = key_of(
                *common, spec.tasks, spec.limit, spec.batch_size, run.task_texts, run.task_sources, run.recipe.seed
            )
        if self._documents:
            keys[PERPLEXITY] = key_of(*common, self._documents.sha256, spec.batch_size)
        if self._request.speed and plan.dropped:
            keys[SPEED] = key_of(*common, vars(self._request.speed), run.recipe.seed)
        return keys

    @cached_property
    def _model(self) -> LoadedModel:
        from hubprune.evaluation.libraries import quiet
        from hubprune.evaluation.models import load_model

        recipe, runnable = self._run.recipe, self._run.runnable
        with quiet():
            return load_model(
                runnable.folder, device=recipe.device, dtype=recipe.dtype, trust_remote_code=runnable.own_code
            )

    @cached_property
    def _suite(self) -> InMemory:
        from hubprune.evaluation.harness import InMemory

        # A bar of its own inside the bar over the points would break both.
        return InMemory(self._run.recipe.evaluation, seed=self._run.recipe.seed, reporter=Reporter(quiet=True))

    def _bypass(self, plan: DropPlan) -> Callable[[], AbstractContextManager[None]]:
        from hubprune.pruning.in_memory import bypassed

        return lambda: bypassed(self._model.model, plan, self._run.architecture)

    def _answer(self, plan: DropPlan) -> BenchmarkAnswers:
        with self._bypass(plan)():
            return self._suite.measure(self._model, name="sweep")

    def _read(self, plan: DropPlan) -> PerplexityAnswers:
        from hubprune.evaluation import perplexity

        rows = self._documents.documents if self._documents else ()
        with self._bypass(plan)():
            return perplexity.measure(self._model, rows, batch_size=self._run.recipe.evaluation.batch_size)

    def _time(self, plan: DropPlan) -> SpeedMeasured:
        from hubprune.evaluation import speed

        asked = self._request.speed or SpeedRequest()
        (depth,) = speed.fit_depths(
            (asked.depth,), new_tokens=asked.new_tokens, max_positions=self._model.max_positions
        )
        spec = speed.SpeedSpec(
            depth=depth, new_tokens=asked.new_tokens, rounds=asked.rounds, seed=self._run.recipe.seed
        )
        measured = speed.measure(lambda: nullcontext(self._model), lambda: self._pruned(plan), spec)
        return next(row for row in measured if row.measure == "decode")

    @contextmanager
    def _pruned(self, plan: DropPlan) -> Iterator[LoadedModel]:
        with self._bypass(plan)():
            yield self._model
