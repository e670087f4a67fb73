"""The stages of a run in their order, each of which goes on from what an earlier run of it found.

    resolve and check -> download -> score -> prune and verify -> benchmark -> card -> one commit -> load back

Heavy libraries are imported by the stages that need them: what fails fast must not wait for torch.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from hubprune.architectures import Architecture, architecture_of
from hubprune.artifacts import (
    BaseCheckpoint,
    BenchmarkComparison,
    DropPlan,
    GenerationComparison,
    LayerScores,
    LoadedBack,
    PrunedCheckpoint,
    PublishedCommit,
    PublishReport,
)
from hubprune.console import Reporter
from hubprune.devices import resolve_device, resolve_dtype
from hubprune.environment import describe_environment
from hubprune.errors import VerificationError
from hubprune.files import check_new_folder, move_folder, staged_folder, write_atomically
from hubprune.pruning import calibration, checkpoint, selection, verify
from hubprune.pruning.config import check_config, needs_modeling_file
from hubprune.pruning.inventory import take_inventory
from hubprune.publishing import hub
from hubprune.publishing.commit import publish as send
from hubprune.publishing.manifest import checkpoint_tag
from hubprune.publishing.preflight import Target, preflight
from hubprune.publishing.session import HubSession
from hubprune.recipe import Recipe
from hubprune.stages import StageStore, Value, key_of

STAGES = (
    "Base and preflight",
    "Scores",
    "Prune and verify",
    "Benchmarks",
    "Free text and card",
    "Publish and load back",
)
LOADED_TOKENS = 40
"""New tokens that the published model writes after it was loaded back."""


@dataclass(frozen=True)
class Run:
    """One run of a recipe: what all stages share."""

    recipe: Recipe
    session: HubSession
    reporter: Reporter
    store: StageStore

    @cached_property
    def base(self) -> BaseCheckpoint:
        """The base, resolved to a commit and found fit for the request; nothing but its config was read."""
        base = hub.resolve_base(self.recipe.base, session=self.session)
        architecture_of(base.config, name=base.name)
        check_config(base.config, where=f"config.json of {base.name}")
        selection.check_request(self.recipe.drop, num_hidden_layers=base.num_hidden_layers, name=base.name)
        return base

    @cached_property
    def data_commits(self) -> tuple[str | None, ...]:
        """Commits of the calibration data sets, one per subset of the mix."""
        return calibration.resolve_commits(self.recipe.calibration)

    @cached_property
    def downloaded(self) -> BaseCheckpoint:
        """The base with its files on disk."""
        return hub.download_base(self.base, session=self.session, reporter=self.reporter)

    @property
    def base_folder(self) -> Path:
        """Where the base's files are."""
        return Path(self.downloaded.folder or "")

    @property
    def architecture(self) -> Architecture:
        """The base's family."""
        return architecture_of(self.base.config, name=self.base.name)

    @cached_property
    def task_sources(self) -> dict[str, str | None]:
        """Data sets of the benchmarks, found to be within reach, each with its commit."""
        from hubprune.evaluation.harness import check_tasks

        return check_tasks(self.recipe.evaluation)

    @property
    def base_identity(self) -> object:
        """What stands for the base in keys: its commit, or the sizes and times of a local folder's files."""
        if self.base.commit:
            return [self.base.name, self.base.commit]
        folder = Path(self.base.folder or "").resolve()
        return [str(folder), [[f.path, f.size, (folder / f.path).stat().st_mtime_ns] for f in self.base.files]]

    def kept(
        self,
        stage: str,
        key: str,
        kind: type[Value],
        compute: Callable[[], Value],
        *,
        valid: Callable[[Value], bool] = lambda _: True,
    ) -> Value:
        """Return a stage's result from the work folder, or compute it; say which."""
        value = self.store.run(stage, key, kind, compute, valid=valid)
        if stage in self.store.reused:
            self.reporter.note(f"{stage}: taken from an earlier run")
        return value


# ---- scoring -----------------------------------------------------------------------------------------------------


def score(run: Run) -> LayerScores:
    """Score the base of a run, or take the scores of an earlier run on the same base and mix."""
    recipe = run.recipe
    device = resolve_device(recipe.device)
    dtype = resolve_dtype(recipe.dtype, run.base.config)
    key = key_of(
        run.base_identity, recipe.calibration, run.data_commits, recipe.seed, recipe.aggregation, dtype, device
    )
    return run.kept("scores", key, LayerScores, lambda: _score(run, dtype=dtype, device=device))


def _score(run: Run, *, dtype: str, device: str) -> LayerScores:
    from transformers import AutoTokenizer

    from hubprune.pruning import importance

    documents = calibration.draw(
        run.recipe.calibration,
        commits=run.data_commits,
        seed=run.recipe.seed,
        tokenizer=AutoTokenizer.from_pretrained(run.base_folder, trust_remote_code=False),
        context_length=run.base.config.get("max_position_embeddings"),
        reporter=run.reporter,
    )
    return importance.score(
        run.base_folder,
        documents,
        architecture=run.architecture,
        aggregation=run.recipe.aggregation,
        batch_size=run.recipe.score_batch_size,
        dtype=dtype,
        device=device,
        reporter=run.reporter,
    )


def make_plan(run: Run, scores: LayerScores | None) -> DropPlan:
    """Select what goes, and say so."""
    plan = selection.make_plan(
        run.recipe.drop, scores, num_hidden_layers=run.base.num_hidden_layers, name=run.base.name
    )
    layers = plan.layers("attn")
    run.reporter.note(f"dropping the attention of layer{'s'[: len(layers) - 1]} {', '.join(map(str, layers))}")
    if plan.margin and plan.margin.near_tie:
        kept, last = plan.margin.first_kept, plan.margin.last_dropped
        run.reporter.note(f"near tie: layers {last} and {kept} are within two standard errors of each other")
    return plan


def scores_if_needed(run: Run) -> LayerScores | None:
    """Score, unless the recipe names the layers itself."""
    if run.recipe.drop.drop_attn is None:
        return score(run)
    run.reporter.note("not needed: the layers are given")
    return None


# ---- pruning -----------------------------------------------------------------------------------------------------


def prune(run: Run, out: Path) -> tuple[DropPlan, PrunedCheckpoint]:
    """Write the pruned checkpoint of a recipe into a new folder; nothing appears there unless it was verified."""
    check_new_folder(out)
    plan = make_plan(run, scores_if_needed(run))
    return plan, _write_verified(run, plan, out)


def _write_verified(run: Run, plan: DropPlan, folder: Path) -> PrunedCheckpoint:
    base = run.downloaded
    total = sum(f.size for f in base.files if f.path.endswith(".safetensors"))
    with staged_folder(folder) as staged:
        with run.reporter.progress("writing", total=total, unit="B") as advance:
            checkpoint.write_checkpoint(base, plan, staged, advance=advance)
        verification = verify.verify(
            run.base_folder, staged, plan=plan, config=base.config, architecture=run.architecture
        )
        verify.require_passed(verification)
        run.reporter.note(f"verified in a fresh process: {len(verification.checks)} checks passed")
        with run.reporter.progress("hashing", total=total, unit="B") as advance:
            written = take_inventory(
                run.base_folder,
                staged,
                plan=plan,
                config=base.config,
                architecture=run.architecture,
                advance=advance,
            )
    return PrunedCheckpoint(written=written, verification=verification)


def _kept_checkpoint(run: Run, plan: DropPlan) -> tuple[Path, PrunedCheckpoint]:
    """Return the checkpoint of a plan in the work folder: that of an earlier run where all its files are there."""
    key = key_of(run.base_identity, plan.sublayers)
    folder = run.store.folder / "checkpoints" / f"{run.recipe.default_name}-{key}"

    def write() -> PrunedCheckpoint:
        shutil.rmtree(folder, ignore_errors=True)
        return _write_verified(run, plan, folder)

    def complete(kept: PrunedCheckpoint) -> bool:
        return all(_same_size(folder / f.path, f.size) for f in kept.written.files)

    made = run.kept("checkpoint", key, PrunedCheckpoint, write, valid=complete)
    _remove_all_but(folder, {f.path for f in made.written.files})
    return folder, made


def _same_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _remove_all_but(folder: Path, paths: set[str]) -> None:
    """Remove what an earlier run added to a checkpoint: its card, its manifest, its tasks."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_file() and path.relative_to(folder).as_posix() not in paths:
            path.unlink()
        elif path.is_dir() and not any(path.iterdir()):
            path.rmdir()


# ---- evaluation --------------------------------------------------------------------------------------------------


def _benchmark(run: Run, plan: DropPlan, folder: Path) -> BenchmarkComparison | None:
    from hubprune.evaluation import harness

    recipe, spec = run.recipe, run.recipe.evaluation
    if not spec.tasks:
        run.reporter.note("no tasks asked for")
        return None
    key = key_of(
        run.base_identity, plan.sublayers, spec.tasks, spec.limit, spec.batch_size, _yaml_texts(spec.include_path),
        run.task_sources, recipe.seed, recipe.device, recipe.dtype,
    )  # fmt: skip
    return run.kept(
        "benchmarks",
        key,
        BenchmarkComparison,
        lambda: harness.run(
            run.base_folder,
            folder,
            spec=spec,
            seed=recipe.seed,
            device=recipe.device,
            dtype=recipe.dtype,
            reporter=run.reporter,
            samples_folder=run.store.folder / "samples" / key,
        ),
    )


def _yaml_texts(folder: str | None) -> dict[str, str]:
    paths = sorted(Path(folder).glob("**/*.yaml")) if folder else []
    return {path.name: path.read_text(encoding="utf-8") for path in paths}


def _free_text(run: Run, plan: DropPlan, folder: Path) -> GenerationComparison | None:
    recipe, spec = run.recipe, run.recipe.evaluation
    prompts = spec.prompt_texts()

    def compute() -> GenerationComparison:
        from hubprune.evaluation import generation

        return generation.compare(
            run.base_folder,
            folder,
            prompts=prompts,
            max_new_tokens=spec.max_new_tokens,
            device=recipe.device,
            dtype=recipe.dtype,
            reporter=run.reporter,
        )

    key = key_of(run.base_identity, plan.sublayers, prompts, spec.max_new_tokens, recipe.device, recipe.dtype)
    return run.kept("generation", key, GenerationComparison, compute)


# ---- publishing --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PublishOptions:
    """How a publish runs; unlike the recipe, none of it changes the result."""

    out: Path | None = None
    """Folder that keeps the published files."""
    dry_run: bool = False
    """Do everything but write to the Hub."""
    overwrite_card: bool = False
    """Replace a README.md that somebody edited on the Hub."""


def publish(run: Run, options: PublishOptions) -> PublishReport:
    """Run all stages of a recipe and publish the result in one commit.

    Raises:
        HubpruneError: the first thing that is wrong; what fails fast is checked before anything is computed.
    """
    stage = _announcer(run.reporter)
    stage()
    target = _preflight(run, options)
    run.downloaded  # noqa: B018
    stage()
    scores = scores_if_needed(run)
    plan = make_plan(run, scores)
    stage()
    folder, made = _kept_checkpoint(run, plan)
    stage()
    benchmarks = _benchmark(run, plan, folder)
    stage()
    generation = _free_text(run, plan, folder)
    report = PublishReport(
        recipe=run.recipe.model_dump(mode="json", exclude_none=True),
        base=run.base,
        scores=scores,
        plan=plan,
        checkpoint=made.written,
        verification=made.verification,
        benchmarks=benchmarks,
        generation=generation,
        published=None,
        environment=describe_environment(device=resolve_device(run.recipe.device)),
        seconds=run.store.seconds,
    )
    assemble(run, folder, report, repo_id=target.repo_id)
    stage()
    report = _send(run, folder, target, report, options)
    if options.out:
        move_folder(folder, options.out)
    return report


def _announcer(reporter: Reporter) -> Callable[[], None]:
    titles = iter(enumerate(STAGES, start=1))

    def announce() -> None:
        number, title = next(titles)
        reporter.stage(number, len(STAGES), title)

    return announce


def _preflight(run: Run, options: PublishOptions) -> Target:
    """Check in seconds all that could fail hours later; nothing is downloaded or written before it is through."""
    if options.out:
        check_new_folder(options.out)
    target = preflight(
        run.recipe,
        base=run.base,
        session=run.session,
        folder=run.store.folder,
        overwrite_card=options.overwrite_card,
    )
    run.data_commits, run.task_sources  # noqa: B018
    resolve_device(run.recipe.device)
    run.reporter.note(f"base {run.base.name} at {str(run.base.commit)[:12]}, target {target.repo_id}")
    return target


def assemble(run: Run, folder: Path, report: PublishReport, *, repo_id: str) -> None:
    """Add to a checkpoint what makes it a repo: the tasks it was measured with, card, recipe and manifest."""
    from hubprune.publishing import card, manifest

    if run.recipe.evaluation.include_path:
        _copy_tasks(Path(run.recipe.evaluation.include_path), folder / "tasks")
    context = card.build_context(
        run.recipe,
        base=report.base,
        scores=report.scores,
        plan=report.plan,
        checkpoint=report.checkpoint,
        verification=report.verification,
        benchmarks=report.benchmarks,
        generation=report.generation,
        environment=report.environment,
        seconds=report.seconds,
        repo_id=repo_id,
    )
    write_atomically(folder / manifest.CARD, card.render(context))
    manifest.write_recipe(folder, recipe=run.recipe, report=report)
    manifest.write_manifest(folder, report=report, template_hash=card.template_hash())


def _copy_tasks(source: Path, target: Path) -> None:
    target.mkdir()
    for path in sorted(source.glob("*.yaml")):
        shutil.copyfile(path, target / path.name)


def _send(run: Run, folder: Path, target: Target, report: PublishReport, options: PublishOptions) -> PublishReport:
    if options.dry_run:
        run.reporter.note(f"dry run: nothing was written to {target.repo_id}; the files are in {folder}")
        return report
    published = send(
        folder,
        target=target,
        message=f"Publish {run.recipe.default_name}",
        tag=checkpoint_tag(report.checkpoint),
        session=run.session,
        reporter=run.reporter,
        overwrite_card=options.overwrite_card,
    )
    return report.model_copy(update={"published": published, "loaded_back": _load_back(run, published, report)})


def _load_back(run: Run, published: PublishedCommit, report: PublishReport) -> LoadedBack:
    run.reporter.note("loading it back from the Hub in a fresh process")
    prompt = run.recipe.evaluation.prompt_texts()[0]
    loaded = verify.load_from_hub(
        published.repo_id,
        commit=published.commit,
        prompt=prompt,
        new_tokens=LOADED_TOKENS,
        custom_code=needs_modeling_file(report.plan),
    )
    if loaded.parameters != report.checkpoint.parameters:
        raise VerificationError(
            f"{published.repo_id} loads with {loaded.parameters:,} parameters, not {report.checkpoint.parameters:,}."
        )
    return LoadedBack(prompt=prompt, text=loaded.text, parameters=loaded.parameters)
