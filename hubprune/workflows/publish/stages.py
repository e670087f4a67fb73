"""From a plan to a repo: the checkpoint is kept in the work folder, measured, and gets its card, notices and manifest.

A checkpoint stays there, so that another run of the same recipe need not write it again, nor measure it.  From the
moment that a result was sent until it was loaded back, a mark there says so, in case the run is killed.
"""

from __future__ import annotations

import glob
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout

from hubprune.cards import card, manifest
from hubprune.cards.front_matter import Tasks, add_eval_results, leaderboard_datasets
from hubprune.cards.overview import Snippet, asks_for_more, samples
from hubprune.cards.provenance import add_notice, card_in_force
from hubprune.core.artifacts import (
    Artifact,
    BenchmarkComparison,
    DropPlan,
    GenerationComparison,
    ModelTexts,
    PrunedCheckpoint,
    PublishedCommit,
    PublishReport,
    RepoFile,
    RuntimeComparison,
    SiblingReport,
    SnippetRun,
    SpeedReport,
)
from hubprune.core.config import needs_modeling_file, read_config
from hubprune.core.errors import EvaluationError, HubError, MissingDependencyError, RecipeError
from hubprune.core.extras import install
from hubprune.core.files import key_of, short_name, write_atomically
from hubprune.core.privacy import scrub
from hubprune.core.requests import SpeedRequest
from hubprune.evaluation.pair import ModelFolder, Pair
from hubprune.hub.repos import registered_tasks
from hubprune.hub.session import HubSession
from hubprune.hub.target import Target
from hubprune.hub.transfer import download
from hubprune.plots import pictures
from hubprune.workflows.card import Timed
from hubprune.workflows.chat import asks_in_chat, text_request
from hubprune.workflows.prune import is_waiting, write_verified
from hubprune.workflows.run import Run
from hubprune.workflows.runtimes import Chosen, compare_runtimes, require_same
from hubprune.workflows.speed import change_of, time_pair
from hubprune.workflows.verify import PrunedFolder

Kept = TypeVar("Kept", bound=Artifact)
DEPTHS = (512,)
"""One shape for a card, cut to what the model has positions for; `hubprune speed` measures any."""


@contextmanager
def kept_checkpoint(run: Run, plan: DropPlan) -> Iterator[tuple[Path, PrunedCheckpoint]]:
    """Yield the checkpoint of a plan in the work folder: that of an earlier run where all its files are there.

    While the block runs, no other run can use the folder.

    Raises:
        RecipeError: another run uses it.
    """
    key = key_of(run.circumstances, plan.content, plan.widths, plan.layout)
    name = f"{short_name(run.recipe.default_name)}-{key}"
    with kept_folder(
        run, "checkpoint", name, key, PrunedCheckpoint, lambda folder: write_verified(run, plan, folder),
        written=lambda kept: kept.written.files, below="checkpoints",
    ) as kept:  # fmt: skip
        yield kept


@contextmanager
def kept_folder(
    run: Run, stage: str, name: str, key: str, kind: type[Kept], write: Callable[[Path], Kept], *,
    written: Callable[[Kept], Sequence[RepoFile]], below: str = "siblings",
) -> Iterator[tuple[Path, Kept]]:  # fmt: skip
    """Yield a folder of a stage in the work folder, with its result; what an earlier run added to it is gone.

    `write` makes it where it is not there, and `written` tells which files it consists of.

    Raises:
        RecipeError: another run uses it.
    """
    folder = run.store.folder / below / name
    folder.parent.mkdir(exist_ok=True)

    def anew() -> Kept:
        shutil.rmtree(folder, ignore_errors=True)
        return write(folder)

    def complete(kept: Kept) -> bool:
        paths = ((folder / file.path, file.size) for file in written(kept))
        return all(path.is_file() and path.stat().st_size == size for path, size in paths)

    with _alone(folder):
        made = run.store.run(stage, key, kind, anew, valid=complete)
        own = {file.path for file in written(made)}
        for path in sorted(folder.rglob("*"), reverse=True):  # what an earlier run added: card, manifest, tasks
            if path.is_file() and path.relative_to(folder).as_posix() not in own:
                path.unlink()
            elif path.is_dir() and not any(path.iterdir()):
                path.rmdir()
        yield folder, made


def has_checkpoint(run: Run) -> bool:
    """Tell whether an earlier run left a checkpoint of as many drops, so that little new room is needed on the disk."""
    folder, name = run.store.folder / "checkpoints", f"{short_name(run.recipe.default_name)}-"
    return any(folder.glob(f"{glob.escape(name)}*")) or is_waiting(folder, name)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        lock.acquire(blocking=False)
    except Timeout:
        hint = "Wait for it, or set another HUBPRUNE_HOME."
        raise RecipeError("Another run is working on the same base and drops.", hint=hint) from None
    try:
        yield
    finally:
        lock.release()


def open_pair(run: Run, plan: DropPlan, folder: Path) -> Pair:
    """Make ready to load base and pruned model, once for all stages that measure them and only where one has to."""
    base, pruned = run.runnable, run.identity(plan.content, plan.widths, plan.layout)
    return Pair(
        ModelFolder(base.folder, own_code=base.own_code, identity=run.identity()),
        ModelFolder(folder, own_code=True, identity=pruned),
        device=run.recipe.device, dtype=run.dtype, reporter=run.reporter,
    )  # fmt: skip


def benchmark(run: Run, plan: DropPlan, pair: Pair) -> BenchmarkComparison | None:
    """Run the benchmarks of a recipe on base and pruned model; None where it asks for none."""
    from hubprune.evaluation import harness

    recipe, spec = run.recipe, run.recipe.evaluation
    if not spec.tasks:
        run.reporter.note("no tasks asked for")
        return None
    key = key_of(
        run.circumstances, plan.content, plan.widths, spec.tasks, spec.num_fewshot, spec.limit, spec.batch_size,
        spec.backend, run.task_texts, run.task_sources, recipe.seed, bool(spec.apply_chat_template),
    )  # fmt: skip

    def measure() -> BenchmarkComparison:
        """Run them on both; answers that are known are not asked for again."""
        return harness.compare(
            pair, spec=spec, seed=recipe.seed, reporter=run.reporter, memo=run.answers_file,
            samples_folder=run.store.folder / "samples" / key,
        )  # fmt: skip

    return run.store.run("benchmarks", key, BenchmarkComparison, measure)


def free_text(run: Run, plan: DropPlan, pair: Pair, *, trained: str | None = None) -> GenerationComparison:
    """Let both models write; what the base wrote serves every plan.

    `trained` stands for how the pruned one was trained, where it was.
    """
    from hubprune.evaluation import generation

    spec = run.recipe.evaluation
    request = text_request(run)
    asked = run.circumstances, spec.prompt_texts(), spec.max_new_tokens, request.rendered
    key, stage = key_of(*asked, plan.content, *([trained] if trained else [])), "generation"
    stage += "-healed" if trained else ""

    def write() -> ModelTexts:
        return generation.write(pair, "base", request, reporter=run.reporter)

    def base_texts() -> ModelTexts:
        return run.store.run("base-text", key_of(*asked), ModelTexts, write)

    # Where both texts come from the last publish, the base need not write its own again.
    written = None if run.store.offers(stage, key) else base_texts()
    return run.store.run(
        stage,
        key,
        GenerationComparison,
        lambda: generation.compare(pair, request, base_texts=written or base_texts(), reporter=run.reporter),
        valid=lambda kept: kept.repetition is not None,
    )


def run_snippet(
    run: Run, plan: DropPlan, folder: Path, *, repo_id: str, tag: str | None, template: Path | None
) -> SnippetRun:
    """Run the code that the card will show, or take what an earlier run of the same code printed.

    It finds the files under `repo_id`, and exactly these under `tag`, where there will be one.
    """
    snippet = Snippet(
        repo_id=repo_id, revision=tag, prompt=run.recipe.evaluation.prompt_texts()[0],
        custom_code=needs_modeling_file(plan), samples=samples(folder), plain=asks_for_more(folder),
        chat=asks_in_chat(run.recipe.evaluation, folder),
    )  # fmt: skip
    gpu = run.device != "cpu"
    key = key_of(run.circumstances, plan.content, plan.layout, snippet.code(overrides=template))
    return run.store.run("snippet", key, SnippetRun, lambda: snippet.run(folder, gpu=gpu, overrides=template))


def run_sibling_snippet(
    run: Run, report: SiblingReport, folder: Path, *, key: str, template: Path | None
) -> SnippetRun:
    """Do the same for a sibling that transformers loads; `key` stands for what it was made of."""
    snippet = Snippet(
        repo_id=report.repo_id, revision=manifest.files_tag(report.files) if report.pruned_tag else None,
        prompt=run.recipe.evaluation.prompt_texts()[0], custom_code=needs_modeling_file(report.plan),
        quantized=report.kind == "quantized", samples=samples(folder), plain=asks_for_more(folder),
        chat=asks_in_chat(run.recipe.evaluation, folder),
    )  # fmt: skip
    gpu, code = run.device != "cpu", snippet.code(overrides=template)
    return run.store.run(
        f"snippet-{report.kind}", key_of(run.circumstances, key, code), SnippetRun,
        lambda: snippet.run(folder, gpu=gpu, overrides=template),
    )  # fmt: skip


def find_runtimes(
    run: Run, plan: DropPlan, folder: Path, wanted: Chosen | RuntimeComparison, *, repo_id: str
) -> RuntimeComparison | None:
    """Return what other runtimes make of a checkpoint: what they do now, or did before; None where there are none.

    Raises:
        VerificationError: one computes something else, or does not run it though it was asked for.
    """
    if isinstance(wanted, RuntimeComparison):
        return wanted
    if not wanted.pythons:
        return None
    key = key_of(run.circumstances, plan.content, plan.widths, plan.layout, wanted.identity, repo_id)
    ran = run.store.run(
        "runtimes", key, RuntimeComparison,
        lambda: compare_runtimes(
            folder, read_config(folder), wanted.pythons, typed_as=repo_id, reporter=run.reporter
        ),
    )  # fmt: skip
    for each in ran.runs:
        run.reporter.note(each.detail)
    require_same(ran, all_of_them=wanted.by_name)
    return ran


def find_speed(
    run: Run, plan: DropPlan, folder: Path, timed: Timed, *, repo_id: str, benchmarks: BenchmarkComparison | None
) -> SpeedReport | None:
    """Return what a card says of speed: what is timed now, or was before; None where it says nothing.

    Nobody has to ask for it where the run computes on a CUDA GPU.
    """
    if timed == "now" or (timed == "if it fits" and run.device.startswith("cuda")):
        try:
            return time_result(run, plan, folder, repo_id=repo_id, benchmarks=benchmarks)
        except EvaluationError as error:
            if timed == "now":
                raise
            run.reporter.warn(f"The card says nothing of speed: {error}")
            return None
    return timed if isinstance(timed, SpeedReport) else None


def time_result(
    run: Run, plan: DropPlan, folder: Path, *, repo_id: str, benchmarks: BenchmarkComparison | None
) -> SpeedReport:
    """Time base and result in turns on this machine, or take what an earlier run of the same found here.

    Raises:
        EvaluationError: the device's memory is too small.
    """
    recipe, change = run.recipe, change_of(benchmarks) if benchmarks else None
    request = SpeedRequest(repo_id, depths=DEPTHS, device=recipe.device, dtype=run.dtype, seed=recipe.seed)
    pruned = PrunedFolder(name=repo_id, commit=None, folder=folder, config=read_config(folder))
    shape = DEPTHS, request.new_tokens, request.rounds, request.batch_size, request.seed
    key = key_of(run.circumstances, run.environment.threads, plan.content, plan.widths, plan.layout, shape, change)

    def time() -> SpeedReport:
        return time_pair(
            run.downloaded, pruned, runnable=run.runnable, request=request, benchmarks=change, reporter=run.reporter
        )

    timed = run.store.run("speed", key, SpeedReport, time)
    return timed.model_copy(update={"pruned": repo_id})


def assemble(
    run: Run, folder: Path, report: PublishReport, *, card_template: Path | None = None
) -> tuple[RepoFile, ...]:
    """Add to a checkpoint what makes it a repo: tasks, notice, pictures, card, recipe, manifest; return all files."""
    for name, text in run.task_texts.items():
        (folder / "tasks" / name).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "tasks" / name, scrub(text))
    add_notice(folder, card=card_in_force(run.base, given=run.recipe.target.license))
    tasks = leaderboards(report.benchmarks, session=run.session, warn=run.reporter.warn)
    add_eval_results(folder, report.benchmarks, tasks=tasks)
    context = card.context_of(report, pictures=_pictures(run, folder, report), overrides=card_template)
    write_atomically(folder / manifest.CARD, card.render(context, overrides=card_template))
    manifest.write_recipe(folder, recipe=run.pinned_recipe, report=report)
    return manifest.write_manifest(folder, report=report, template_hash=card.template_hash(card_template))


def _pictures(run: Run, folder: Path, report: PublishReport) -> card.Pictures:
    base, found = report.base.name, report.plan.target
    try:
        return card.Pictures(
            importance=pictures.draw_for_card(report.scores, report.plan, folder, base=base) if report.scores else None,
            benchmarks=pictures.draw_changes(report.benchmarks, folder, base=base) if report.benchmarks else None,
            frontier=pictures.draw_frontier_for_card(found.frontier, folder) if found else None,
        )
    except MissingDependencyError as error:  # without matplotlib the card has their tables alone
        run.reporter.warn(f"The card gets no pictures: {error.message} {error.hint or ''}")
        return card.Pictures()


def leaderboards(comparison: BenchmarkComparison | None, *, session: HubSession, warn: Callable[[str], None]) -> Tasks:
    """Ask the Hub which results belong on a leaderboard; where it does not answer, that costs these results alone."""
    try:
        return registered_tasks(leaderboard_datasets(comparison), session=session)
    except HubError as error:
        warn(f"No results are listed for leaderboards: {error.message} Publish again with --force to add them.")
        return {}


def compare_back(run: Run, published: PublishedCommit) -> None:
    """Fetch every file of a commit and compare it with what was sent; what would load it is not installed here.

    Raises:
        CheckpointError: one is another.
    """
    run.reporter.note("fetching it back from the Hub")
    where = {"repo_id": published.repo_id, "commit": published.commit}
    download(published.files, session=run.session, reporter=run.reporter, **where)
    run.reporter.note(f"every file is what was sent; to load it back too: {install('torch')}")


class Unfinished:
    """A mark in the work folder, from the moment before a commit until its result was loaded back."""

    def __init__(self, work_folder: Path, target: Target, *, endpoint: str) -> None:
        self._path = work_folder / "unfinished" / key_of(endpoint, target.repo_id, target.revision, target.create_pr)

    def begin(self) -> None:
        """Set the mark."""
        write_atomically(self._path, "")

    def end(self) -> None:
        """Take it away."""
        self._path.unlink(missing_ok=True)

    def __bool__(self) -> bool:
        """Tell whether an earlier run did not come to its end."""
        return self._path.exists()
