"""Benchmarks: lm-eval on the base and on the reloaded pruned checkpoint, with the same documents and seeds."""

from __future__ import annotations

import json
import logging
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubprune.artifacts import BenchmarkAnswers, BenchmarkComparison
from hubprune.console import Advance, Reporter
from hubprune.endpoint import no_calls_elsewhere
from hubprune.errors import EvaluationError
from hubprune.evaluation.compare import mean_change
from hubprune.evaluation.libraries import log_level, quiet
from hubprune.evaluation.results import answers_of, compare_results, refuse_different_documents
from hubprune.evaluation.sources import commit_of, state_of
from hubprune.evaluation.task_files import task_files
from hubprune.evaluation.tasks import Suite, data_sources, find_tasks, load_tasks
from hubprune.recipe import EvaluationSpec

if TYPE_CHECKING:
    from hubprune.evaluation.models import LoadedModel

__all__ = ["InMemory", "check_tasks", "run", "task_files"]

# lm-eval's own 100,000 take 46 s per model for lambada's perplexity alone; 0 would switch off every standard error.
BOOTSTRAP_ITERATIONS = 1000
_UNFIT_FOR_FILES = re.compile(r"[^\w.-]+")


def check_tasks(spec: EvaluationSpec) -> dict[str, str | None]:
    """Find out in seconds, before any compute, whether the benchmarks of a spec can be run.

    Returns what they read, each with what tells its present state from another: a commit, or sizes and times of local
    files; None where the Hub does not answer and the cache has to do.  A key is an id on the Hub, a local folder, or
    the format of files, and then the files that a task names: `json: rows/a.jsonl`.

    Raises:
        EvaluationError: a task is unknown (with near matches) or unfit, or its data set cannot be reached.
    """
    if not spec.tasks:
        return {}
    return {source.name: state_of(source) for source in data_sources(find_tasks(spec), spec.tasks)}


def run(
    base_folder: Path,
    pruned_folder: Path,
    *,
    base_code: bool = False,
    spec: EvaluationSpec,
    seed: int,
    device: str,
    dtype: str,
    reporter: Reporter,
    samples_folder: Path | None = None,
) -> BenchmarkComparison:
    """Benchmark two model folders one after the other with lm-eval's Hugging Face backend, and compare them.

    Code in a folder is run for the pruned one, whose modeling file this package rendered, and for the base only where
    `base_code` says the same of it.  `device` and `dtype`
    may be `auto`.  Each answer goes to `samples_folder/{base,pruned}/samples_<task>.jsonl`.  Seconds are wall-clock
    time from loading a model to its last metric.

    Raises:
        EvaluationError: a task or its data set cannot be loaded, the device's memory is too small, or the models
            answered different documents.
        RecipeError: this machine has no such device.
    """
    if not spec.tasks:
        raise EvaluationError("There is no benchmark to run.", hint="Pass --tasks, or leave benchmarks out.")
    reporter.note(f"Reading the documents of {', '.join(spec.tasks)}")
    with quiet(), no_calls_elsewhere():
        plan = _Plan(load_tasks(spec), spec=spec, seed=seed, device=device, dtype=dtype, reporter=reporter)
        base = _measure(plan, base_folder, name="base", trust_remote_code=base_code)
        pruned = _measure(plan, pruned_folder, name="pruned", trust_remote_code=True)
    refuse_different_documents(base.results, pruned.results)
    if samples_folder is not None:
        _write_samples(base.results["samples"], samples_folder / "base")
        _write_samples(pruned.results["samples"], samples_folder / "pruned")
    return _comparison(plan, base, pruned)


class InMemory:
    """Benchmarks for models that are loaded already: the documents are read once, and every model answers them.

    Raises:
        EvaluationError: a task or its data set cannot be loaded.
    """

    def __init__(self, spec: EvaluationSpec, *, seed: int, reporter: Reporter) -> None:
        with quiet(), no_calls_elsewhere():
            suite = load_tasks(spec)
        self._plan = _Plan(suite, spec=spec, seed=seed, device="auto", dtype="auto", reporter=reporter)

    def measure(self, model: LoadedModel, *, name: str) -> BenchmarkAnswers:
        """Let a model answer all documents.

        Raises:
            EvaluationError: the device's memory is too small, or a task has no metric with a finite value.
        """
        with quiet(), no_calls_elsewhere():
            results = _evaluate(self._plan, model, name=name)
        for task in self._plan.suite.tasks.values():
            # lm-eval would fill in its templates again for every model, which takes longer than a tiny one.
            task.build_all_requests = partial(_forget_answers, task)
        rows = answers_of(results, requested=self._plan.suite.requested, warn=self._plan.reporter.warn)
        return BenchmarkAnswers(tasks=rows, lm_eval=version("lm_eval"), device=model.device, dtype=model.dtype)


def _forget_answers(task: Any, **_: Any) -> None:
    """Make a task's requests as if they had never been sent."""
    for request in task.instances:
        request.resps = []
        request.filtered_resps = {}


@dataclass(frozen=True)
class _Plan:
    """What both models are measured with."""

    suite: Suite
    spec: EvaluationSpec
    seed: int
    device: str
    dtype: str
    reporter: Reporter


@dataclass(frozen=True)
class _Measured:
    """What one model answered."""

    results: Mapping[str, Any]
    """lm-eval's own results, samples included."""
    device: str
    dtype: str
    seconds: float


def _measure(plan: _Plan, folder: Path, *, name: str, trust_remote_code: bool) -> _Measured:
    from hubprune.evaluation import models

    start = time.monotonic()
    model = models.load_model(folder, device=plan.device, dtype=plan.dtype, trust_remote_code=trust_remote_code)
    device, dtype = model.device, model.dtype
    results = _evaluate(plan, model, name=name)
    del model
    models.release_memory()
    return _Measured(results, device, dtype, time.monotonic() - start)


def _evaluate(plan: _Plan, model: Any, *, name: str) -> Mapping[str, Any]:
    from lm_eval import evaluate

    from hubprune.evaluation.models import memory_errors

    batch_size = plan.spec.batch_size
    language_model = _language_model(model, batch_size=batch_size)
    _set_seeds(plan)
    with (
        memory_errors(f"at batch size {batch_size}", hint="Pass a smaller --batch-size."),
        _counted(language_model, plan, description=f"Benchmarks, {name}"),
    ):
        results: Mapping[str, Any] = evaluate(
            lm=language_model,
            task_dict=plan.suite.task_dict(),
            limit=plan.spec.limit,
            bootstrap_iters=BOOTSTRAP_ITERATIONS,
            log_samples=True,
        )
        return results


def _language_model(model: Any, *, batch_size: int) -> Any:
    from lm_eval.models.huggingface import HFLM

    # It warns that a model which is already loaded goes without its own loading options.
    with log_level("lm_eval.models.huggingface", logging.ERROR):
        return HFLM(
            pretrained=model.model,
            tokenizer=model.tokenizer,
            backend="causal",
            batch_size=batch_size,
            # In bfloat16, log-likelihoods around -100 come in steps of 0.5.
            softmax_dtype="float32",
        )


def _set_seeds(plan: _Plan) -> None:
    import numpy
    import torch

    random.seed(plan.seed)
    numpy.random.seed(plan.seed)
    torch.manual_seed(plan.seed)
    for task in plan.suite.tasks.values():
        task.set_fewshot_seed(seed=plan.seed)


@contextmanager
def _counted(language_model: Any, plan: _Plan, *, description: str) -> Iterator[None]:
    """Report each answered request while the block runs; rolling perplexities report when the last one is done."""
    with ExitStack() as stack:

        def start() -> Advance:
            total = sum(request.repeats for task in plan.suite.tasks.values() for request in task.instances)
            return stack.enter_context(plan.reporter.progress(description, total=total, unit="requests"))

        language_model.set_cache_hook(_RequestCounter(start))
        yield


class _RequestCounter:
    """Stands in for lm-eval's cache of answers, which is told of each one.

    The bar starts with the first answer: only then has lm-eval built all requests, so that their number is known.
    """

    def __init__(self, start: Callable[[], Advance]) -> None:
        self._start = start
        self._advance: Advance | None = None

    def add_partial(self, attr: str, request: Any, answer: Any) -> None:
        """Count one answer."""
        if self._advance is None:
            self._advance = self._start()
        self._advance(1)


def _write_samples(samples: Mapping[str, list[Mapping[str, Any]]], folder: Path) -> None:
    from lm_eval.utils import handle_non_serializable

    folder.mkdir(parents=True, exist_ok=True)
    for task, rows in samples.items():
        path = folder / f"samples_{_UNFIT_FOR_FILES.sub('_', task)}.jsonl"
        unfinished = path.with_suffix(".tmp")
        with unfinished.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(r, default=handle_non_serializable, sort_keys=True) + "\n" for r in rows)
        unfinished.replace(path)


def _comparison(plan: _Plan, base: _Measured, pruned: _Measured) -> BenchmarkComparison:
    commits = {name: commit_of(getattr(task, "dataset", None)) for name, task in plan.suite.tasks.items()}
    tasks = compare_results(
        base.results,
        pruned.results,
        requested=plan.suite.requested,
        commits=commits,
        warn=plan.reporter.warn,
    )
    return BenchmarkComparison(
        tasks=tasks,
        mean_change=mean_change(tasks),
        limit=plan.spec.limit,
        batch_size=plan.spec.batch_size,
        dtype=base.dtype,
        device=base.device,
        seed=plan.seed,
        lm_eval=version("lm_eval"),
        base_seconds=base.seconds,
        pruned_seconds=pruned.seconds,
    )
