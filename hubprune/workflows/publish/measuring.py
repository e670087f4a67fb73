"""The stages that look at a written checkpoint: benchmarks, free text, and the code that its card shows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hubprune.cards.snippet import Snippet, asks_for_more, samples
from hubprune.core.artifacts import BenchmarkComparison, DropPlan, GenerationComparison, ModelTexts, SnippetRun
from hubprune.core.config import needs_modeling_file
from hubprune.core.devices import resolve_device
from hubprune.core.stages import key_of
from hubprune.workflows.run import Run

if TYPE_CHECKING:
    from hubprune.evaluation.generation import Request

__all__ = ["benchmark", "free_text", "run_snippet"]


def benchmark(run: Run, plan: DropPlan, folder: Path) -> BenchmarkComparison | None:
    """Run the benchmarks of a recipe on base and pruned model; None where it asks for none.

    Args:
        run: whose recipe is followed.
        plan: what was dropped.
        folder: of the pruned checkpoint.
    """
    from hubprune.evaluation import harness

    recipe, spec = run.recipe, run.recipe.evaluation
    if not spec.tasks:
        run.reporter.note("no tasks asked for")
        return None
    key = key_of(
        run.circumstances, plan.content, plan.widths, spec.tasks, spec.num_fewshot, spec.limit, spec.batch_size,
        spec.backend, run.task_texts, run.task_sources, recipe.seed,
    )  # fmt: skip
    base, pruned = run.runnable, run.identity(plan.content, plan.widths, plan.layout)
    return run.store.run(
        "benchmarks",
        key,
        BenchmarkComparison,
        lambda: harness.run(
            harness.ModelFolder(base.folder, own_code=base.own_code, identity=run.identity()),
            harness.ModelFolder(folder, own_code=True, identity=pruned),
            spec=spec,
            seed=recipe.seed,
            device=recipe.device,
            dtype=recipe.dtype,
            reporter=run.reporter,
            memo=run.answers_file,
            samples_folder=run.store.folder / "samples" / key,
        ),
    )


def free_text(run: Run, plan: DropPlan, folder: Path) -> GenerationComparison:
    """Let both models write; what the base wrote serves every plan.

    Args:
        run: whose recipe is followed.
        plan: what was dropped.
        folder: of the pruned checkpoint.
    """
    spec = run.recipe.evaluation
    asked = run.circumstances, spec.prompt_texts(), spec.max_new_tokens
    key = key_of(*asked, plan.content)

    def base() -> ModelTexts:
        return run.store.run("base-text", key_of(*asked), ModelTexts, lambda: _base_text(run))

    # Where both texts come from the last publish, the base need not write its own again.
    written = None if run.store.offers("generation", key) else base()
    return run.store.run(
        "generation",
        key,
        GenerationComparison,
        lambda: _compare_texts(run, folder, written or base()),
        valid=lambda kept: kept.repetition is not None,
    )


def _base_text(run: Run) -> ModelTexts:
    from hubprune.evaluation import generation

    base, request = run.runnable, _text_request(run)
    return generation.write(base.folder, request, name="base", trust_remote_code=base.own_code, reporter=run.reporter)


def _compare_texts(run: Run, folder: Path, base_texts: ModelTexts) -> GenerationComparison:
    from hubprune.evaluation import generation

    return generation.compare(
        run.runnable.folder,
        folder,
        request=_text_request(run),
        base_code=run.runnable.own_code,
        base_texts=base_texts,
        reporter=run.reporter,
    )


def run_snippet(
    run: Run, plan: DropPlan, folder: Path, *, repo_id: str, tag: str | None, template: Path | None
) -> SnippetRun:
    """Run the code that the card will show, or take what an earlier run of the same code printed.

    Args:
        run: whose recipe is followed.
        plan: what was dropped.
        folder: of the pruned checkpoint.
        repo_id: under which the code finds the files.
        tag: of exactly these files; None where there will be none.
        template: folder of card templates that win over the shipped ones.
    """
    snippet = Snippet(
        repo_id=repo_id,
        revision=tag,
        prompt=run.recipe.evaluation.prompt_texts()[0],
        custom_code=needs_modeling_file(plan),
        samples=samples(folder),
        plain=asks_for_more(folder),
    )
    gpu = resolve_device(run.recipe.device) != "cpu"
    key = key_of(run.circumstances, plan.content, plan.layout, snippet.code(overrides=template))
    return run.store.run("snippet", key, SnippetRun, lambda: snippet.run(folder, gpu=gpu, overrides=template))


def _text_request(run: Run) -> Request:
    from hubprune.evaluation.generation import Request

    recipe, spec = run.recipe, run.recipe.evaluation
    return Request(
        prompts=spec.prompt_texts(), max_new_tokens=spec.max_new_tokens, device=recipe.device, dtype=recipe.dtype
    )
