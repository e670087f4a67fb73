"""Benchmarks: lm-eval's tasks on the base and on the reloaded pruned checkpoint, with the same documents and seeds."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

# fmt: off
# isort: off
from hubprune.core.artifacts import (
    BenchmarkAnswers, BenchmarkComparison, Chat, EvalBackend, HealedBenchmarks, QuantizedBenchmarks, SelfCheck,
)
# isort: on
# fmt: on
from hubprune.core.console import Reporter, quiet, size
from hubprune.core.errors import CheckpointError, EvaluationError
from hubprune.core.privacy import no_calls_elsewhere
from hubprune.core.prompts import chat_of
from hubprune.core.recipe import EvaluationSpec
from hubprune.evaluation.compare import mean_change
from hubprune.evaluation.lengths import Encoded, write_samples
from hubprune.evaluation.pair import ModelFolder, Pair
from hubprune.evaluation.requests import Memo
from hubprune.evaluation.results import (
    answers_of,
    came_back,
    compare_results,
    refuse_different_documents,
    samples_of,
    together,
)
from hubprune.evaluation.sources import commit_of, state_of
from hubprune.evaluation.tasks import Suite, data_sources, find_tasks, load_tasks, refuse_long, refuse_missing

if TYPE_CHECKING:
    from hubprune.evaluation.computing import Models
    from hubprune.evaluation.panel import Computing, Panel

# lm-eval's own 100,000 take 46 s per model for lambada's perplexity alone; 0 would switch off every standard error.
BOOTSTRAP_ITERATIONS = 1000


def check_tasks(spec: EvaluationSpec, *, positions: int | None = None) -> dict[str, str | None]:
    """Find out in seconds, before any compute, whether the benchmarks of a spec can be run.

    Returns what they read, each with what tells its present state from another: a commit, or sizes and times of local
    files; None where the Hub does not answer and the cache has to do.  A key is an id on the Hub, a local folder, or
    the format of files, and then the files that a task names: `json: rows/a.jsonl`.

    Raises:
        EvaluationError: a task is unknown (with near matches) or unfit, lets the model write more than it has positions
            for, or its data set cannot be reached.
        MissingDependencyError: the code of a task needs a package, or data of nltk's, that is not there.
    """
    if not spec.tasks:
        return {}
    manager = find_tasks(spec)
    refuse_missing(manager, spec.tasks)
    if positions:
        refuse_long(manager, spec.tasks, positions=positions)
    return {source.name: state_of(source) for source in data_sources(manager, spec.tasks)}


def run(
    base: ModelFolder, pruned: ModelFolder, *, spec: EvaluationSpec, seed: int, device: str, dtype: str,
    reporter: Reporter, memo: Path | None = None, samples_folder: Path | None = None,
) -> BenchmarkComparison:  # fmt: skip
    """Benchmark two model folders; `device` and `dtype` may be `auto`.  All else is that of `compare`."""
    with Pair(base, pruned, device=device, dtype=dtype, reporter=reporter) as pair:
        return compare(pair, spec=spec, seed=seed, reporter=reporter, memo=memo, samples_folder=samples_folder)


def compare(
    pair: Pair, *, spec: EvaluationSpec, seed: int, reporter: Reporter, memo: Path | None = None,
    samples_folder: Path | None = None,
) -> BenchmarkComparison:  # fmt: skip
    """Benchmark both models of a pair with lm-eval's tasks and metrics, and compare them.

    Both are loaded at once where memory allows that; else layers are read from their files, or one is loaded after the
    other.  What a model with an identity answered is kept in the file `memo`, and what is there is not computed again.
    Each answer goes to `samples_folder/{base,pruned}/samples_<task>.jsonl`.

    Raises:
        EvaluationError: a task or its data set cannot be loaded, the device's memory is too small, or the models
            answered different documents.
        RecipeError: this machine has no such device.
    """
    if not spec.tasks:
        raise EvaluationError("There is no benchmark to run.", hint="Pass --tasks, or leave benchmarks out.")
    start = time.monotonic()
    reporter.note(f"Reading the documents of {', '.join(spec.tasks)}")
    with quiet(), no_calls_elsewhere():
        plan = _Plan.of(pair, spec, seed, reporter)
        measured = _measure(plan, pair, Memo(memo))
    results = measured.results
    refuse_different_documents(results["base"], results["pruned"])
    if samples_folder is not None:
        for name, found in results.items():
            write_samples(found["samples"], samples_folder / name)
    return _comparison(plan, measured, seconds=time.monotonic() - start)


def compare_four(
    as_is: Pair, quantized: Pair, *, spec: EvaluationSpec, seed: int, reporter: Reporter, memo: Path | None = None
) -> QuantizedBenchmarks:
    """Benchmark base and pruned model, as they are and quantized in the same way, on the same documents.

    Args:
        as_is: base and pruned model.
        quantized: both of them quantized.

    All else is that of `compare`.

    Raises:
        EvaluationError: as of `compare`.
        RecipeError: this machine has no such device.
    """
    asked = _Twice.ask(as_is, quantized, "The same of both, quantized", spec, seed, reporter, memo)
    one, other = asked.one.results, asked.other.results
    models = {"base": one["base"], "dropped": one["pruned"], "quantized": other["base"], "both": other["pruned"]}
    dropped, control, both = (asked.compared(models["base"], models[n]) for n in ("dropped", "quantized", "both"))
    rows = together(models, dropped=dropped.tasks, quantized=control.tasks, both=both.tasks)
    step = asked.compared(models["dropped"], models["both"])
    return QuantizedBenchmarks(dropped=dropped, control=control, both=both, step=step, together=rows)


def compare_three(
    as_is: Pair, healed: Pair, *, spec: EvaluationSpec, seed: int, reporter: Reporter, memo: Path | None = None
) -> HealedBenchmarks:
    """Benchmark base, pruned and healed model on the same documents.

    Args:
        as_is: base and pruned model.
        healed: base and healed model.

    All else is that of `compare`.

    Raises:
        EvaluationError: as of `compare`.
        RecipeError: this machine has no such device.
    """
    asked = _Twice.ask(as_is, healed, "The same of the healed model", spec, seed, reporter, memo)
    models = {**asked.one.results, "healed": asked.other.results["pruned"]}
    dropped = asked.compared(models["base"], models["pruned"])
    both, step = (asked.compared(models[first], models["healed"]) for first in ("base", "pruned"))
    return HealedBenchmarks(dropped=dropped, both=both, step=step, came_back=came_back(models, dropped.tasks))


@dataclass(frozen=True)
class _Twice:
    """The same benchmarks of two pairs, any two models of which can be compared."""

    plan: _Plan
    one: Any
    other: Any
    start: float

    @classmethod
    def ask(
        cls, one: Pair, other: Pair, told: str, spec: EvaluationSpec, seed: int, reporter: Reporter, memo: Path | None
    ) -> _Twice:
        """Run them on one pair, which is let go, and then on the other; all have to be of the same documents."""
        start = time.monotonic()
        with quiet(), no_calls_elsewhere():
            plan = _Plan.of(one, spec, seed, reporter)
            found = _measure(plan, one, Memo(memo))
            one.let_go()
            reporter.note(told)
            again = _measure(plan, other, Memo(memo))
        for results in (*found.results.values(), *again.results.values()):
            refuse_different_documents(found.results["base"], results)
        return cls(plan, found, again, start)

    def compared(self, first: Any, second: Any) -> BenchmarkComparison:
        """Compare two models in what they answered."""
        measured = replace(self.other, results={"base": first, "pruned": second})
        return _comparison(self.plan, measured, seconds=time.monotonic() - self.start)


class InMemory:
    """Benchmarks for models that are loaded already.

    The documents are read once.  What is asked of one model is computed for all of them.  `identities` stand for the
    models in the memory of answers, by name, and `memo` is its file; None for one that ends with this object.

    Raises:
        EvaluationError: a task or its data set cannot be loaded.
    """

    def __init__(
        self, models: Computing, *, identities: Mapping[str, str], memo: Path | None, spec: EvaluationSpec,
        seed: int, reporter: Reporter,
    ) -> None:  # fmt: skip
        with quiet(), no_calls_elsewhere():
            self._plan = _Plan(load_tasks(spec), spec, seed, reporter)
            self._models = models
            self._panel = _panel(self._plan, models, identities, Memo(memo))

    def measure(self, name: str) -> BenchmarkAnswers:
        """Let a variant answer all documents.

        Raises:
            EvaluationError: the device's memory is too small, or a task has no metric with a finite value.
        """
        with quiet(), no_calls_elsewhere():
            results = _evaluate(self._plan, self._panel, name)
        rows = answers_of(results, requested=self._plan.suite.requested, warn=self._plan.reporter.warn)
        device, dtype = _where(self._models)
        return BenchmarkAnswers(tasks=rows, lm_eval=version("lm_eval"), device=device, dtype=dtype)

    def close(self) -> None:
        """Say that nothing more will be asked; the models stay."""
        self._models.close()


@dataclass(frozen=True)
class _Plan:
    """What all models are measured with."""

    suite: Suite
    spec: EvaluationSpec
    seed: int
    reporter: Reporter
    chat: Chat | None = None

    @classmethod
    def of(cls, pair: Pair, spec: EvaluationSpec, seed: int, reporter: Reporter) -> _Plan:
        """Load the tasks for the models of a pair."""
        chat = chat_of(pair.folders["base"].path) if spec.apply_chat_template else None
        return cls(load_tasks(spec), spec, seed, reporter, chat)


@dataclass(frozen=True)
class _Measured:
    """What the models answered, and how."""

    results: Mapping[str, Mapping[str, Any]]
    """lm-eval's own results, samples included, by the name of the model."""
    device: str
    dtype: str
    backend: EvalBackend
    fallback: str | None
    self_check: SelfCheck | None
    encoded: Encoded
    """How long the prompts were."""


def _measure(plan: _Plan, pair: Pair, memo: Memo) -> _Measured:
    from hubprune.evaluation.models import free_bytes, gpu_limits

    names = tuple(pair.folders)
    # Several GPUs that hold a model between them are faster than one that is handed its layers.
    too_large = not pair.fits and pair.needed > sum(gpu_limits(pair.device).values())
    if plan.spec.backend == "layers" or (plan.spec.backend == "shared" and too_large):
        try:
            return _measure_together(plan, pair, names, memo, way="layers")
        except CheckpointError as error:
            plan.reporter.note(error.message)
    if pair.fits:
        return _measure_together(plan, pair, names, memo)
    needed, free = size(pair.needed), size(free_bytes(pair.device))
    plan.reporter.note(f"both models take {needed} and {free} are free: one after the other is loaded")
    one, other = (_measure_together(plan, pair, (name,), memo) for name in names)
    checks = [check for check in (one.self_check, other.self_check) if check]
    return replace(
        one,
        results={**one.results, **other.results},
        backend=other.backend if one.backend == "shared" else one.backend,
        fallback=one.fallback or other.fallback,
        self_check=max(checks, key=lambda check: check.largest_difference) if len(checks) == 2 else None,
    )


def _measure_together(
    plan: _Plan, pair: Pair, names: Sequence[str], memo: Memo, *, way: EvalBackend | None = None
) -> _Measured:
    """Let some models of a pair answer together."""
    from hubprune.evaluation.computing import assemble

    folders = {name: pair.folders[name] for name in names}
    where = (folders, pair.device, pair.dtype, plan.spec.batch_size)
    if way == "layers":
        models = assemble(open_folders, *where)
    else:
        models = assemble(load_folders, *where, here=_models_of(pair, names, plan.spec.batch_size))
    identities = {name: folder.identity or name for name, folder in folders.items()}
    kept = memo if all(folder.identity for folder in folders.values()) else Memo()
    panel = _panel(plan, models, identities, kept, way)
    results = {name: _evaluate(plan, panel, name) for name in folders}
    models.close()
    device, dtype = _where(models)
    return _Measured(results, device, dtype, panel.backend, panel.fallback, panel.self_check, panel.encoded)


def _where(models: Computing) -> tuple[str, str]:
    """Name the devices and the dtype of models that answer together."""
    from hubprune.evaluation.models import placed_on

    model = next(iter(models.variants.values())).model
    return placed_on(model), str(model.dtype).removeprefix("torch.")


def load_folders(folders: Mapping[str, ModelFolder], device: str, dtype: str, batch_size: int | None) -> Models:
    """Load model folders that are to answer together."""
    first, *_, last = *folders.values(), *folders.values()
    pair = Pair(first, last, device=device, dtype=dtype, reporter=Reporter(quiet=True))
    return _models_of(pair, tuple(folders), batch_size)


def _models_of(pair: Pair, names: Sequence[str], batch_size: int | None) -> Models:
    from hubprune.evaluation.computing import Models
    from hubprune.evaluation.layer_tree import Variant

    loaded = {name: pair.load(name) for name in names}
    variants = [Variant.of(name, model.model) for name, model in loaded.items()]
    return Models(variants, loaded[names[0]].tokenizer, batch_size=batch_size)


def open_folders(folders: Mapping[str, ModelFolder], device: str, dtype: str, batch_size: int | None) -> Models:
    """Open model folders that are to answer together, layer by layer from their files.

    Raises:
        CheckpointError: one of them cannot be run so.
    """
    from hubprune.evaluation.streamed import StreamedModels

    return StreamedModels(folders, device=device, dtype=dtype, batch_size=batch_size)


def _panel(
    plan: _Plan, models: Computing, identities: Mapping[str, str], memo: Memo, backend: EvalBackend | None = None
) -> Panel:
    from hubprune.evaluation.panel import Panel

    asked = backend or ("hf" if plan.spec.backend == "hf" else "shared")
    return Panel(models, identities=identities, memo=memo, backend=asked, reporter=plan.reporter)


def _evaluate(plan: _Plan, panel: Panel, name: str) -> Mapping[str, Any]:
    import numpy
    import torch
    from lm_eval import evaluate

    random.seed(plan.seed)
    numpy.random.seed(plan.seed)
    torch.manual_seed(plan.seed)
    for task in plan.suite.tasks.values():
        task.set_fewshot_seed(seed=plan.seed)
    results: Mapping[str, Any] = evaluate(
        lm=panel.language_models[name],
        task_dict=plan.suite.task_dict(),
        limit=plan.spec.limit,
        bootstrap_iters=BOOTSTRAP_ITERATIONS,
        log_samples=True,
        apply_chat_template=bool(plan.spec.apply_chat_template),
        fewshot_as_multiturn=bool(plan.spec.apply_chat_template),  # which is lm-eval's own default then
    )
    for task in plan.suite.tasks.values():
        # lm-eval would fill in its templates again for every model, which takes longer than a tiny one.
        task.build_all_requests = partial(_forget_answers, task)
    return results


def _forget_answers(task: Any, **_: Any) -> None:
    """Make a task's requests as if they had never been sent."""
    for request in task.instances:
        request.resps = []
        request.filtered_resps = {}


def _comparison(plan: _Plan, measured: _Measured, *, seconds: float) -> BenchmarkComparison:
    commits = {name: commit_of(getattr(task, "dataset", None)) for name, task in plan.suite.tasks.items()}
    left_out: list[str] = []
    base, pruned = measured.results["base"], measured.results["pruned"]
    asked = plan.suite.requested
    tasks = compare_results(base, pruned, requested=asked, commits=commits, warn=left_out.append)
    of_prompts = {row.task: measured.encoded.of_task(samples_of(base, row.task)) for row in tasks}
    tasks = tuple(row.model_copy(update=of_prompts[row.task]) for row in tasks)
    left_out += [
        f"{of['prompts_cut']} prompts of {name} are longer than the model has positions for, and begin later."
        for name, of in of_prompts.items() if of["prompts_cut"]
    ]  # fmt: skip
    for sentence in left_out:
        plan.reporter.warn(sentence)
    return BenchmarkComparison(
        tasks=tasks, mean_change=mean_change(tasks),
        mean_written=mean_change([row for row in tasks if row.is_written]),
        mean_scored=mean_change([row for row in tasks if row.is_written is False]),
        left_out=tuple(left_out), limit=plan.spec.limit, chat=plan.chat, backend=measured.backend,
        fallback=measured.fallback, self_check=measured.self_check, batch_size=plan.spec.batch_size,
        dtype=measured.dtype, device=measured.device, seed=plan.seed, lm_eval=version("lm_eval"), seconds=seconds,
    )  # fmt: skip
