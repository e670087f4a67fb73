"""Measure the points of a sweep on one base in memory; each is a stage of its own, so that a sweep can be stopped.

Perplexity is measured on documents that are drawn like a calibration mix, without what was scored on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubprune.core.architectures import Architecture
from hubprune.core.artifacts import BenchmarkAnswers, DropPlan, HeldOutDocuments, PerplexityAnswers, SpeedMeasured
from hubprune.core.errors import CalibrationError
from hubprune.core.files import StageStore, key_of
from hubprune.core.recipe import CalibrationMix, CalibrationSubset
from hubprune.core.requests import SweepRequest
from hubprune.pruning import calibration
from hubprune.pruning.calibration import file_hashes
from hubprune.pruning.documents import find_mix, is_file, stream
from hubprune.pruning.layouts import Runnable
from hubprune.workflows.run import Run
from hubprune.workflows.sweep.points import Point

if TYPE_CHECKING:
    from hubprune.evaluation.computing import Models
    from hubprune.evaluation.harness import InMemory
    from hubprune.evaluation.models import LoadedModel

BENCHMARKS, PERPLEXITY, SPEED = "sweep-benchmarks", "sweep-perplexity", "sweep-speed"
NEW_TOKENS = 32
"""Tokens that are decoded where speed is measured."""
DEFAULT_SAMPLES = 64
FINGERPRINT_TOKENS = 32
"""Two documents are the same where their first tokens are: mixes may cut them off at different lengths."""


def read_mix(name: str, *, num_samples: int | None) -> CalibrationMix:
    """Find what `--perplexity` names: a mix, or a file of documents, of which there may be fewer than wanted.

    Raises:
        RecipeError: no such mix or file.
        CalibrationError: the file cannot be read or holds no text.
    """
    wanted = num_samples or DEFAULT_SAMPLES
    mix = find_mix(name, num_samples=wanted)
    if not is_file(name) or mix.packed:
        return mix
    there = sum(1 for _ in stream(mix.subsets[0], commit=None, seed=0, buffer=1))
    if not there:
        raise CalibrationError(f"{name} holds no document.")
    return mix.model_copy(update={"num_samples": min(wanted, there)})


def held_out(run: Run, mix: CalibrationMix) -> HeldOutDocuments:
    """Draw the documents of a mix, or take those of an earlier run; what the base was scored on is left out.

    Raises:
        CalibrationError: the mix cannot be read, or nothing is left of it.
    """
    commits = calibration.resolve_commits(mix)
    recipe = run.recipe
    overlap = overlaps(run, mix)
    key = key_of(
        run.circumstances, mix, commits, file_hashes(mix), recipe.seed,
        [recipe.calibration, run.data_commits, file_hashes(recipe.calibration)] if overlap else None,
    )  # fmt: skip
    return run.store.run("held-out", key, HeldOutDocuments, lambda: _draw(run, mix, commits, overlap=overlap))


def overlaps(run: Run, mix: CalibrationMix) -> bool:
    """Tell whether a mix may hold texts that the base is scored on.

    Raises:
        CalibrationError: it may, and they could not be told apart.
    """

    def place(subset: CalibrationSubset) -> tuple[str | None, ...]:
        name = str(Path(subset.dataset).resolve()) if is_file(subset.dataset) else subset.dataset
        return name, subset.file, subset.split  # whatever its config: the default one has a name as well

    scored = run.recipe.calibration
    if not run.recipe.needs_scores or {*map(place, mix.subsets)}.isdisjoint(map(place, scored.subsets)):
        return False
    if mix.packed != scored.packed:
        raise CalibrationError(
            f"{mix.name} and {scored.name} share texts, which cannot be told apart where one of the two is packed.",
            hint="Pass other texts with --perplexity.",
        )
    return True


def _draw(run: Run, mix: CalibrationMix, commits: tuple[str | None, ...], *, overlap: bool) -> HeldOutDocuments:
    drawn = run.draw(mix, commits)
    head = min(FINGERPRINT_TOKENS, mix.max_tokens, run.recipe.calibration.max_tokens)
    seen: set[tuple[int, ...]] = set()
    if overlap:
        # What a chat template puts before them would make all documents one.
        scored = run.draw(run.recipe.calibration.plain, run.data_commits)
        seen = {document.ids[:head] for document in scored.documents}
    own = run.draw(mix.plain, commits) if overlap and mix.chat_template else drawn
    pairs = zip(drawn.documents, own.documents, strict=True)
    kept = tuple(d.ids for d, plain in pairs if len(d.ids) > 1 and plain.ids[:head] not in seen)
    if not kept:
        raise CalibrationError(
            f"All {len(drawn.documents)} documents of {mix.name} were scored on: none is left for the perplexity.",
            hint="Pass other texts with --perplexity, or more of them with --perplexity-samples.",
        )
    return HeldOutDocuments(
        name=mix.name, documents=kept, left_out=len(drawn.documents) - len(kept),
        sha256=hashlib.sha256(repr(kept).encode()).hexdigest(),
    )  # fmt: skip


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
        self, run: Run, request: SweepRequest, documents: HeldOutDocuments | None, plans: Sequence[DropPlan]
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

    def measure(self, plan: DropPlan) -> Measured:
        """Measure a point, or take what was measured before."""
        keys, store = self._keys(plan), self._store
        perplexity = speed = None
        if PERPLEXITY in keys:
            perplexity = store.run(PERPLEXITY, keys[PERPLEXITY], PerplexityAnswers, lambda: self._read(plan))
        if SPEED in keys:
            speed = store.run(SPEED, keys[SPEED], SpeedMeasured, lambda: self._time(plan))
        return Measured(self._benchmarks(plan), perplexity, speed)

    def _keys(self, plan: DropPlan) -> dict[str, str]:
        run, spec = self._run, self._run.recipe.evaluation
        common = [run.circumstances, plan.content]
        keys: dict[str, str] = {}
        if spec.tasks:
            keys[BENCHMARKS] = key_of(
                *common, spec.tasks, spec.num_fewshot, spec.limit, spec.batch_size, spec.backend, run.task_texts,
                run.task_sources, run.recipe.seed, run.benchmark_chat,
            )  # fmt: skip
        if self._documents:
            keys[PERPLEXITY] = key_of(*common, self._documents.sha256, spec.batch_size)
        if self._request.speed and plan.dropped:
            shape = {"depth": self._request.speed_depth, "new_tokens": NEW_TOKENS, "rounds": self._request.speed_rounds}
            keys[SPEED] = key_of(*common, shape, run.recipe.seed)
        return keys

    @cached_property
    def _model(self) -> LoadedModel:
        return _load(self._run.runnable, self._run.recipe.device, self._run.dtype)

    def _benchmarks(self, plan: DropPlan) -> BenchmarkAnswers | None:
        if (key := self._keys(plan).get(BENCHMARKS)) is None:
            return None
        name = self._identity(plan)
        return self._store.run(BENCHMARKS, key, BenchmarkAnswers, lambda: self._suite.measure(name))

    def _identity(self, plan: DropPlan) -> str:
        """Return what stands for a point in the memory of answers; that of a written checkpoint is another."""
        return self._run.identity("in memory", plan.content) if plan.dropped else self._run.identity()

    @cached_property
    def _suite(self) -> InMemory:
        """The benchmarks for all points that no earlier run measured, since what they share is computed once."""
        from hubprune.evaluation.computing import assemble
        from hubprune.evaluation.harness import InMemory

        missing = [plan for plan in self._plans if not self._store.has(BENCHMARKS, self._keys(plan)[BENCHMARKS])]
        plans = {self._identity(plan): plan for plan in missing}
        run, recipe = self._run, self._run.recipe
        rest = (plans, run.architecture, recipe.evaluation.batch_size)
        where = (run.runnable, recipe.device, run.dtype)
        return InMemory(
            assemble(load_points, *where, *rest, here=points_of(self._model, *rest)),
            identities={name: name for name in plans}, memo=run.answers_file, spec=recipe.evaluation,
            seed=recipe.seed, reporter=run.reporter,
        )  # fmt: skip

    def _read(self, plan: DropPlan) -> PerplexityAnswers:
        from hubprune.evaluation import models

        rows = self._documents.documents if self._documents else ()
        with self._pruned(plan) as model:
            return models.measure_perplexity(model, rows, batch_size=self._run.recipe.evaluation.batch_size or 8)

    def _time(self, plan: DropPlan) -> SpeedMeasured:
        from hubprune.evaluation import speed

        asked, model, seed = self._request, self._model, self._run.recipe.seed
        (depth,) = speed.fit_depths((asked.speed_depth,), new_tokens=NEW_TOKENS, max_positions=model.max_positions)
        spec = speed.SpeedSpec(depth=depth, new_tokens=NEW_TOKENS, rounds=asked.speed_rounds, seed=seed)
        measured = speed.measure(lambda: nullcontext(model), lambda: self._pruned(plan), spec)
        return next(row for row in measured if row.measure == "decode")

    @contextmanager
    def _pruned(self, plan: DropPlan) -> Iterator[LoadedModel]:
        from hubprune.core.bypass import bypassed

        with bypassed(self._model.model, plan, self._run.architecture):
            yield self._model


def load_points(base: Runnable, device: str, dtype: str, *rest: Any) -> Models:
    """Load the base of a sweep, and make its points of it."""
    return points_of(_load(base, device, dtype), *rest)


def points_of(
    model: LoadedModel, plans: Mapping[str, DropPlan], architecture: Architecture, batch_size: int | None
) -> Models:
    """Make the points of a sweep of its base, by their names; they share all weights."""
    from hubprune.core.bypass import bypassed, layers_without
    from hubprune.evaluation.computing import Models
    from hubprune.evaluation.layer_tree import Variant

    base = model.model
    variants = [
        Variant(name, base, layers_without(base, plan, architecture), partial(bypassed, base, plan, architecture))
        if plan.dropped
        else Variant.of(name, base)
        for name, plan in plans.items()
    ]
    return Models(variants, model.tokenizer, batch_size=batch_size)


def _load(base: Runnable, device: str, dtype: str) -> LoadedModel:
    from hubprune.core.console import quiet
    from hubprune.evaluation.models import load_model

    with quiet():
        return load_model(base.folder, device=device, dtype=dtype, trust_remote_code=base.own_code)
