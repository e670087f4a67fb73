"""The stages of a run in their order, each of which goes on from what an earlier run of it found.

    resolve and check -> download -> score -> prune and verify -> benchmark -> card -> one commit -> load back

Heavy libraries are imported by the stages that need them: what fails fast must not wait for torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubprune.artifacts import (
    BenchmarkComparison,
    DropPlan,
    GenerationComparison,
    LoadedBack,
    ModelTexts,
    PublishedCommit,
    PublishReport,
    RepoFile,
    SnippetRun,
    UploadPlan,
)
from hubprune.assembly import assemble
from hubprune.cards import AS_SHIPPED, CardChoices
from hubprune.console import Reporter, size
from hubprune.devices import resolve_device
from hubprune.errors import HubpruneError, OverBudgetError, VerificationError
from hubprune.files import check_new_folder, make_writable, move_folder, write_atomically
from hubprune.kept import has_checkpoint, kept_checkpoint
from hubprune.memory import available_bytes
from hubprune.pruning import verify
from hubprune.pruning.config import needs_modeling_file
from hubprune.publishing import hub, manifest
from hubprune.publishing.announcing import announce
from hubprune.publishing.budget import check_budget
from hubprune.publishing.commit import publish as send
from hubprune.publishing.preflight import Target, check_disk, preflight
from hubprune.publishing.snippet import Snippet, samples
from hubprune.publishing.upload_plan import plan_upload
from hubprune.run import Run, check_data, make_plan, scores_if_needed
from hubprune.stages import key_of
from hubprune.timing.publishing import find_speed

if TYPE_CHECKING:
    from hubprune.evaluation.generation import Request

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


# ---- evaluation --------------------------------------------------------------------------------------------------


def _benchmark(run: Run, plan: DropPlan, folder: Path) -> BenchmarkComparison | None:
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


def _free_text(run: Run, plan: DropPlan, folder: Path) -> GenerationComparison:
    """Let both models write; what the base wrote serves every plan."""
    spec = run.recipe.evaluation
    asked = run.circumstances, spec.prompt_texts(), spec.max_new_tokens
    base = run.store.run("base-text", key_of(*asked), ModelTexts, lambda: _base_text(run))
    return run.store.run(
        "generation",
        key_of(*asked, plan.content),
        GenerationComparison,
        lambda: _compare_texts(run, folder, base),
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


def _run_snippet(
    run: Run, plan: DropPlan, folder: Path, *, repo_id: str, tag: str | None, template: Path | None
) -> SnippetRun:
    """Run the code that the card will show, or take what an earlier run of the same code printed."""
    snippet = Snippet(
        repo_id=repo_id,
        revision=tag,
        prompt=run.recipe.evaluation.prompt_texts()[0],
        custom_code=needs_modeling_file(plan),
        samples=samples(folder),
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
    primer: bool = True
    """Ask the Hub, before the upload, which chunks of the base it has."""
    notes: Path | None = None
    """File with the author's own words for the card, in Markdown."""
    card_template: Path | None = None
    """Folder of card templates that take the place of the shipped ones."""
    speed: bool = False
    """Time both models for the card."""
    report: Path | None = None
    """File for the report as JSON; written as soon as there is a commit, and again at the end."""
    told: Callable[[PublishReport], None] = lambda report: None
    """Called with the report each time that it is written, or would be."""

    @classmethod
    def of(cls, given: Mapping[str, Any], *, told: Callable[[PublishReport], None]) -> PublishOptions:
        """Take them from the options of a command, by their names."""
        names = (field.name for field in fields(cls) if field.name != "told")
        return cls(told=told, **{name: given[name] for name in names})


def publish(run: Run, options: PublishOptions) -> PublishReport:
    """Run all stages of a recipe and publish the result in one commit.

    Raises:
        HubpruneError: the first thing that is wrong; what fails fast is checked before anything is computed.
    """
    stage = announcer(run.reporter)
    stage()
    choices = CardChoices.read(
        notes=options.notes, template=options.card_template, timed="now" if options.speed else "never"
    )
    target = check(run, options)
    _check_resources(run, options)
    with produced(run, stage, repo_id=target.repo_id, tagged=not target.create_pr, choices=choices) as product:
        stage()
        return deliver(run, product, target, options)


@dataclass(frozen=True)
class Product:
    """All that a repo consists of, and how it came to be."""

    folder: Path
    files: tuple[RepoFile, ...]
    """All files of the folder with their hashes."""
    report: PublishReport


@contextmanager
def produced(
    run: Run, stage: Callable[[], None], *, repo_id: str, tagged: bool, choices: CardChoices = AS_SHIPPED
) -> Iterator[Product]:
    """Run all stages from the download to the manifest, and yield what came of them; nothing is published.

    While the block runs, no other run can use the folder.

    Args:
        run: whose recipe is followed.
        stage: called at the start of each of the four stages after the download.
        repo_id: what the card calls the result.
        tagged: whether the card names a tag of its files.
        choices: what the author adds to the card.
    """
    run.downloaded  # noqa: B018
    stage()
    scores = scores_if_needed(run)
    plan = make_plan(run, scores)
    stage()
    with kept_checkpoint(run, plan) as (folder, made):
        stage()
        benchmarks = _benchmark(run, plan, folder)
        stage()
        generation = _free_text(run, plan, folder)
        tag = manifest.checkpoint_tag(made.written) if tagged else None
        report = PublishReport(
            recipe=run.pinned_recipe.model_dump(mode="json", exclude_none=True),
            repo_id=repo_id,
            endpoint=run.session.endpoint,
            base=run.base,
            scores=scores,
            plan=plan,
            checkpoint=made.written,
            verification=made.verification,
            benchmarks=benchmarks,
            generation=generation,
            speed=find_speed(run, plan, folder, choices.timed, repo_id=repo_id, benchmarks=benchmarks),
            snippet=_run_snippet(run, plan, folder, repo_id=repo_id, tag=tag, template=choices.template),
            published=None,
            environment=run.environment,
            seconds=run.store.seconds,
            notes=choices.notes,
        )
        files = assemble(run, folder, report, card_template=choices.template)
        yield Product(folder, files, report)


def announcer(reporter: Reporter, stages: Sequence[str] = STAGES) -> Callable[[], None]:
    """Return a function that announces the next of some stages each time it is called."""
    titles = iter(enumerate(stages, start=1))

    def announce() -> None:
        number, title = next(titles)
        reporter.stage(number, len(stages), title)

    return announce


def check(run: Run, options: PublishOptions) -> Target:
    """Check in seconds all that could fail hours later; nothing is downloaded or written before it is through.

    Raises:
        HubpruneError: the first thing that is wrong.
    """
    if options.out:
        check_new_folder(options.out)
    if options.report:
        make_writable(options.report.absolute().parent)
    target = preflight(
        run.recipe,
        base=run.base,
        session=run.session,
        overwrite_card=options.overwrite_card,
        excuse=_excuse(run) if options.dry_run else None,
    )
    run.task_texts, run.task_sources  # noqa: B018
    run.reporter.note(f"base {run.base.name} at {str(run.base.commit)[:12]}, target {target.repo_id}")
    return target


def _excuse(run: Run) -> Callable[[HubpruneError], None]:
    return lambda error: run.reporter.warn(f"The publish itself would be refused: {error}")


def _check_resources(run: Run, options: PublishOptions) -> None:
    """Check what only a run that computes needs: room on the disk, calibration texts, a device, memory."""
    check_disk(run.base, folder=run.store.folder, written=has_checkpoint(run), loads_back=not options.dry_run)
    check_data(run)
    run.environment  # noqa: B018
    warn_of_memory(run)


def warn_of_memory(run: Run) -> None:
    """Say beforehand that the machine will hardly hold what verification and benchmarks load: the whole model."""
    needed = sum(file.size for file in hub.weight_files(run.base.files))
    if needed > (available := available_bytes()):
        run.reporter.warn(
            f"verification loads the whole model, {size(needed)}, and {size(available)} of memory are available; "
            "scoring and writing need far less"
        )


def deliver(run: Run, product: Product, target: Target, options: PublishOptions) -> PublishReport:
    """Commit, then load back; what was committed is told and written down even if the rest fails.

    Raises:
        OverBudgetError: the result lost more than the recipe allows; nothing was sent.
        HubpruneError: it could not be published, or does not load.
    """
    folder, report = product.folder, product.report
    try:
        check_budget(run.recipe.evaluation.max_drop_pp, report.benchmarks)
    except OverBudgetError:
        _finish(run, folder, report, options)
        raise
    if options.dry_run:
        upload = _plan_upload(run, product, target, options)
        return _finish(run, folder, report.model_copy(update={"upload": upload}), options)
    published = send(
        folder,
        target=target,
        files=product.files,
        message=f"Publish {run.recipe.default_name}",
        tag=manifest.checkpoint_tag(report.checkpoint),
        session=run.session,
        reporter=run.reporter,
        base=report.base if options.primer else None,
        overwrite_card=options.overwrite_card,
    )
    run.reporter.note(f"{'committed' if published.created else 'up to date'}: {published.url}")
    report = report.model_copy(update={"published": published, "upload": None})
    _write_report(report, options)
    try:
        report = report.model_copy(update={"loaded_back": _load_back(run, published, report)})
    except VerificationError as error:
        _finish(run, folder, report, options)
        raise VerificationError(f"It is published at {published.url}, but: {error.message}", hint=error.hint) from error
    announce(run.recipe.target, published, session=run.session, reporter=run.reporter)
    return _finish(run, folder, report, options)


def _plan_upload(run: Run, product: Product, target: Target, options: PublishOptions) -> UploadPlan:
    return plan_upload(
        product.folder,
        files=product.files,
        target=target,
        base=run.downloaded,
        session=run.session,
        reporter=run.reporter,
        scratch=run.store.folder,
        primer=options.primer,
        overwrite_card=options.overwrite_card,
    )


def _finish(run: Run, folder: Path, report: PublishReport, options: PublishOptions) -> PublishReport:
    """Write the report and put the files where they were asked for."""
    _write_report(report, options)
    if options.out:
        move_folder(folder, options.out)
    if options.dry_run:
        run.reporter.note(f"dry run: nothing was written to the Hub; the files are in {options.out or folder}")
    return report


def _write_report(report: PublishReport, options: PublishOptions) -> None:
    options.told(report)
    if options.report:
        write_atomically(options.report, to_json(report))


def to_json(report: PublishReport) -> str:
    """Write a report as JSON; scores per document are for statistics in the work folder and stay there."""
    return report.model_dump_json(indent=2, exclude={"scores": {"per_document"}}) + "\n"


def _load_back(run: Run, published: PublishedCommit, report: PublishReport) -> LoadedBack:
    run.reporter.note("loading it back from the Hub in a fresh process")
    prompt = run.recipe.evaluation.prompt_texts()[0]
    loaded = verify.load_from_hub(
        published.repo_id,
        commit=published.commit,
        prompt=prompt,
        new_tokens=LOADED_TOKENS,
        custom_code=needs_modeling_file(report.plan),
        work_folder=run.store.folder,
    )
    if loaded.parameters != report.checkpoint.parameters:
        raise VerificationError(
            f"it loads with {loaded.parameters:,} parameters instead of {report.checkpoint.parameters:,}."
        )
    return LoadedBack(prompt=prompt, text=loaded.text, parameters=loaded.parameters)
