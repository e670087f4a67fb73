"""Measure the points of a sweep on one base in memory; each is a stage of its own, so that a sweep can be stopped.

Changes of a point against the base, from the answers to each document; pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from statistics import mean
from typing import TYPE_CHECKING, Any

from hubprune.core.architectures import Architecture
from hubprune.core.artifacts import (
    BenchmarkAnswers,
    DropPlan,
    Estimate,
    HeldOutDocuments,
    PerplexityAnswers,
    SpeedMeasured,
    SweepTask,
    TaskAnswers,
    main_rows,
)
from hubprune.core.stages import StageStore, key_of
from hubprune.evaluation import compare
from hubprune.pruning.runnable import Runnable
from hubprune.workflows.run import Run
from hubprune.workflows.sweep.points import Point
from hubprune.workflows.sweep.request import SpeedPlan, SweepPlan

if TYPE_CHECKING:
    from hubprune.evaluation.computing import Models
    from hubprune.evaluation.harness import InMemory
    from hubprune.evaluation.layer_tree import Variant
    from hubprune.evaluation.models import LoadedModel


# ---- measuring -----------------------------------------------------------------------------------------------------


BENCHMARKS, PERPLEXITY, SPEED = "sweep-benchmarks", "sweep-perplexity", "sweep-speed"


@dataclass(frozen=True)
class Measured:
    """What was measured at one point."""

    benchmarks: BenchmarkAnswers | None
    perplexity: PerplexityAnswers | None
    speed: SpeedMeasured | None


def measure_all(
    run: Run, request: SweepPlan, points: Sequence[Point], documents: HeldOutDocuments | None
) -> tuple[Measured, ...]:
    """Measure all points that no earlier run did, in their order; two that drop the same are measured once.

    Raises:
        EvaluationError: a benchmark cannot be run, or the memory is too small.
    """
    different = {key_of(point.plan.content): point.plan for point in points}
    bench = _Bench(run, request, documents, tuple(different.values()))
    missing = [plan for plan in different.values() if not bench.is_kept(plan)]
    run.reporter.note(f"{len(points)} points, {len(different)} different, {len(missing)} to measure")
    found = {key: bench.measure(plan) for key, plan in different.items() if plan not in missing}
    bench.benchmark(missing)
    with run.reporter.progress("measuring", total=len(missing), unit="points") as advance:
        for key, plan in different.items():
            if key not in found:
                found[key] = bench.measure(plan)
                advance(1)
    return tuple(found[key_of(point.plan.content)] for point in points)


class _Bench:
    """The base and its documents, loaded when the first point needs them."""

    def __init__(
        self, run: Run, request: SweepPlan, documents: HeldOutDocuments | None, plans: Sequence[DropPlan]
    ) -> None:
        self._run, self._request, self._documents, self._plans = run, request, documents, plans
        # The run's own store would say of every point that it was taken from an earlier run.
        self._store = StageStore(run.store.folder, warn=run.store.warn)

    def is_kept(self, plan: DropPlan) -> bool:
        """Tell whether an earlier run measured all that is asked for."""
        return all(self._store.has(stage, key) for stage, key in self._keys(plan).items())

    def benchmark(self, plans: Sequence[DropPlan]) -> None:
        """Run the benchmarks of points: the first one computes what all of them share, under a bar of its own."""
        for plan in plans:
            self._benchmarks(plan)
        if "_suite" in vars(self):
            self._suite.close()

    def _benchmarks(self, plan: DropPlan) -> BenchmarkAnswers | None:
        key = self._keys(plan).get(BENCHMARKS)
        return self._store.run(BENCHMARKS, key, BenchmarkAnswers, lambda: self._answer(plan)) if key else None

    def measure(self, plan: DropPlan) -> Measured:
        """Measure a point, or take what was measured before."""
        keys, store = self._keys(plan), self._store
        models = speed = None
        if PERPLEXITY in keys:
            models = store.run(PERPLEXITY, keys[PERPLEXITY], PerplexityAnswers, lambda: self._read(plan))
        if SPEED in keys:
            speed = store.run(SPEED, keys[SPEED], SpeedMeasured, lambda: self._time(plan))
        return Measured(self._benchmarks(plan), models, speed)

    def _keys(self, plan: DropPlan) -> dict[str, str]:
        run, spec = self._run, self._run.recipe.evaluation
        common = [run.circumstances, plan.content]
        keys: dict[str, str] = {}
        if spec.tasks:
            keys[BENCHMARKS] = key_of(
                *common, spec.tasks, spec.num_fewshot, spec.limit, spec.batch_size, spec.backend, run.task_texts,
                run.task_sources, run.recipe.seed,
            )  # fmt: skip
        if self._documents:
            keys[PERPLEXITY] = key_of(*common, self._documents.sha256, spec.batch_size)
        if self._request.speed and plan.dropped:
            keys[SPEED] = key_of(*common, vars(self._request.speed), run.recipe.seed)
        return keys

    @cached_property
    def _model(self) -> LoadedModel:
        return _load(self._run.runnable, self._run.recipe.device, self._run.recipe.dtype)

    @cached_property
    def _suite(self) -> InMemory:
        """The benchmarks for all points that no earlier run measured, since what they share is computed once."""
        from hubprune.evaluation import team
        from hubprune.evaluation.harness import InMemory

        missing = [plan for plan in self._plans if not self._store.has(BENCHMARKS, self._keys(plan)[BENCHMARKS])]
        plans = {self._identity(plan): plan for plan in missing}
        run, recipe = self._run, self._run.recipe
        rest = (plans, run.architecture, recipe.evaluation.batch_size)
        where = (run.runnable, recipe.device, recipe.dtype)
        return InMemory(
            team.assemble(load_points, *where, *rest, here=points_of(self._model, *rest)),
            identities={name: name for name in plans},
            memo=run.answers_file,
            spec=recipe.evaluation,
            seed=recipe.seed,
            reporter=run.reporter,
        )

    def _identity(self, plan: DropPlan) -> str:
        """Return what stands for a point in the memory of answers; that of a written checkpoint is another."""
        return self._run.identity("in memory", plan.content) if plan.dropped else self._run.identity()

    def _bypass(self, plan: DropPlan) -> Callable[[], AbstractContextManager[None]]:
        from hubprune.pruning.in_memory import bypassed

        return lambda: bypassed(self._model.model, plan, self._run.architecture)

    def _answer(self, plan: DropPlan) -> BenchmarkAnswers:
        return self._suite.measure(self._identity(plan))

    def _read(self, plan: DropPlan) -> PerplexityAnswers:
        from hubprune.evaluation import models

        rows = self._documents.documents if self._documents else ()
        with self._bypass(plan)():
            return models.measure(self._model, rows, batch_size=self._run.recipe.evaluation.batch_size or 8)

    def _time(self, plan: DropPlan) -> SpeedMeasured:
        from hubprune.evaluation import speed

        asked = self._request.speed or SpeedPlan()
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


def load_points(base: Runnable, device: str, dtype: str, *rest: Any) -> Models:
    """Load the base of a sweep, and make its points of it."""
    return points_of(_load(base, device, dtype), *rest)


def points_of(
    model: LoadedModel, plans: Mapping[str, DropPlan], architecture: Architecture, batch_size: int | None
) -> Models:
    """Make the points of a sweep of its base, by their names; they share all weights."""
    from hubprune.evaluation.computing import Models

    variants = [_variant(name, model.model, plan, architecture) for name, plan in plans.items()]
    return Models(variants, model.tokenizer, batch_size=batch_size)


def _variant(name: str, model: Any, plan: DropPlan, architecture: Architecture) -> Variant:
    from hubprune.evaluation.layer_tree import Variant
    from hubprune.pruning.in_memory import bypassed, layers_without

    if not plan.dropped:
        return Variant.of(name, model)
    layers = layers_without(model, plan, architecture)
    return Variant(name, model, layers, lambda: bypassed(model, plan, architecture))


def _load(base: Runnable, device: str, dtype: str) -> LoadedModel:
    from hubprune.core.console import quiet
    from hubprune.evaluation.models import load_model

    with quiet():
        return load_model(base.folder, device=device, dtype=dtype, trust_remote_code=base.own_code)


# ---- statistics ----------------------------------------------------------------------------------------------------


def mean_percent(answers: BenchmarkAnswers) -> float | None:
    """Return the mean of the main metrics that are shares, in percent; None where there is none."""
    shares = [row.result.value for row in main_rows(answers.tasks) if row.is_share]
    return 100 * mean(shares) if shares else None


def mean_chance(answers: BenchmarkAnswers) -> float | None:
    """Return what guessing gets in the same mean, in percent; None where a task has no such value."""
    values = [row.chance for row in main_rows(answers.tasks) if row.is_share]
    known = [value for value in values if value is not None]
    return 100 * mean(known) if known and len(known) == len(values) else None


def compare_tasks(point: BenchmarkAnswers, base: BenchmarkAnswers) -> tuple[SweepTask, ...]:
    """Compare the main metric of every task with the base's.

    Raises:
        EvaluationError: the two answered different documents.
    """
    others = {(row.task, row.metric): row for row in base.tasks}
    return tuple(_compare(row, others.get((row.task, row.metric))) for row in main_rows(point.tasks))


def _compare(row: TaskAnswers, base: TaskAnswers | None) -> SweepTask:
    change = _change(row, base) if base and row.is_share else None
    return SweepTask(task=row.task, metric=row.metric, value=row.result.value, change_points=change)


def _change(row: TaskAnswers, base: TaskAnswers) -> Estimate:
    if not row.answers or not base.answers:
        return Estimate(value=100 * (row.result.value - base.result.value))
    ours, theirs = (dict(zip(r.documents, r.answers, strict=True)) for r in (base, row))
    return compare.difference(compare.pair(ours, theirs, of=row.task)).affine(times=100)


def mean_change(tasks: Sequence[SweepTask]) -> Estimate | None:
    """Average the changes in points; tasks count as independent of each other."""
    changes = [task.change_points for task in tasks if task.change_points]
    return compare.combine(changes, [1 / len(changes)] * len(changes)) if changes else None


def perplexity_change(point: PerplexityAnswers, base: PerplexityAnswers) -> Estimate:
    """Return perplexity over the base's minus one in percent, from the nats and tokens of every document."""
    nats = compare.difference(compare.Pairs(base.nats, point.nats, point.tokens))
    return compare.as_ratio(nats).affine(times=100, plus=-100)
