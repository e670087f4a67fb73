"""The stages of a run in their order, each of which goes on from what an earlier run of it found.

    resolve and check -> download -> score -> prune and verify -> benchmark -> card -> one commit -> load back

Heavy libraries are imported by the stages that need them: what fails fast must not wait for torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from hubprune.cards import manifest
from hubprune.cards.limits import check_budget
from hubprune.core.artifacts import (
    DropPlan,
    LayerScores,
    LoadedBack,
    PublishedCommit,
    PublishReport,
    RepoFile,
    UploadPlan,
)
from hubprune.core.config import needs_modeling_file
from hubprune.core.console import Reporter, size
from hubprune.core.devices import available_bytes
from hubprune.core.errors import HubpruneError, OverBudgetError, VerificationError
from hubprune.core.files import check_new_folder, make_writable, move_folder, write_atomically
from hubprune.hub import repos as hub
from hubprune.hub.announcing import announce, merge
from hubprune.hub.commit import publish as send
from hubprune.hub.preflight import check_disk, preflight
from hubprune.hub.remote import Overwrite
from hubprune.hub.target import Target, check_name_loads
from hubprune.hub.transfer import check_arrived
from hubprune.hub.upload_plan import plan_upload
from hubprune.pruning import verify
from hubprune.workflows.card import AS_SHIPPED, CardChoices
from hubprune.workflows.publish.again import offer_results, proposed_before, scores_before, without_computing
from hubprune.workflows.publish.before import Before, Unfinished, fingerprint, last_publish
from hubprune.workflows.publish.stages import (
    assemble,
    benchmark,
    find_speed,
    free_text,
    has_checkpoint,
    kept_checkpoint,
    run_snippet,
)
from hubprune.workflows.run import Run, check_data, make_plan, say_plan, scores_if_needed

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
    overwrite: bool = False
    """Replace every file of the last publish that somebody changed on the Hub, and others that are in the way."""
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
    force: bool = False
    """Run all stages even where the last publish depends on the same."""
    only_if_changed: bool = False
    """Leave out files and dry run, too, where the last publish depends on the same."""
    told: Callable[[PublishReport], None] = lambda report: None
    """Called with the report each time that it is written, or would be."""

    @property
    def replaces(self) -> Overwrite:
        """What of other people's work may be replaced."""
        return "everything" if self.overwrite else "card" if self.overwrite_card else "nothing"

    @classmethod
    def of(cls, given: Mapping[str, Any], *, told: Callable[[PublishReport], None]) -> PublishOptions:
        """Take them from the options of a command, by their names."""
        names = (field.name for field in fields(cls) if field.name != "told")
        return cls(told=told, **{name: given[name] for name in names})


def publish(run: Run, options: PublishOptions) -> PublishReport:
    """Run the stages of a recipe whose result is not published yet, and publish it in one commit.

    Raises:
        HubpruneError: the first thing that is wrong; what fails fast is checked before anything is computed.
    """
    stage = announcer(run.reporter)
    stage()
    choices = CardChoices.read(
        notes=options.notes, template=options.card_template, timed="now" if options.speed else "never"
    )
    target = check(run, options)
    now = fingerprint(run, repo_id=target.repo_id, tagged=target.is_tagged, choices=choices)
    before = last_publish(target, now, session=run.session, reporter=run.reporter)
    report = without_computing(run, before, choices, target, options) if before else None
    if report or (report := proposed_before(run, target, now, options)):
        return _finish(run, None, report, options) if options.dry_run else _end(run, report, target, options)
    _check_resources(run, options)
    if before:
        offer_results(before, run)
    with produced(
        run, stage, repo_id=target.repo_id, tagged=target.is_tagged, choices=choices, before=before
    ) as product:
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
    run: Run,
    stage: Callable[[], None],
    *,
    repo_id: str,
    tagged: bool,
    choices: CardChoices = AS_SHIPPED,
    before: Before | None = None,
) -> Iterator[Product]:
    """Run all stages from the download to the manifest, and yield what came of them; nothing is published.

    While the block runs, no other run can use the folder.

    Args:
        run: whose recipe is followed.
        stage: called at the start of each of the four stages after the download.
        repo_id: what the card calls the result.
        tagged: whether the card names a tag of its files.
        choices: what the author adds to the card.
        before: what the last publish found; what would come out again is taken from it.
    """
    depends_on = fingerprint(run, repo_id=repo_id, tagged=tagged, choices=choices)
    run.downloaded  # noqa: B018
    stage()
    scores, plan = scores_before(before, run, depends_on) or _scored(run)
    say_plan(plan, reporter=run.reporter)
    if needs_modeling_file(plan):
        check_name_loads(repo_id)
    stage()
    with kept_checkpoint(run, plan) as (folder, made):
        stage()
        benchmarks = benchmark(run, plan, folder)
        stage()
        generation = free_text(run, plan, folder)
        tag = manifest.checkpoint_tag(made.written) if tagged else None
        report = PublishReport(
            recipe=run.pinned_recipe.model_dump(mode="json", exclude_none=True),
            repo_id=repo_id,
            endpoint=run.session.endpoint,
            base=run.base.model_copy(update={"config": run.downloaded.config}),
            scores=scores,
            plan=plan,
            checkpoint=made.written,
            verification=made.verification,
            benchmarks=benchmarks,
            generation=generation,
            speed=find_speed(run, plan, folder, choices.timed, repo_id=repo_id, benchmarks=benchmarks),
            snippet=run_snippet(run, plan, folder, repo_id=repo_id, tag=tag, template=choices.template),
            published=None,
            environment=run.environment,
            seconds=run.store.seconds,
            notes=choices.notes,
            fingerprint={part: dict(values) for part, values in depends_on.items()},
            stage_keys=run.store.keys,
        )
        files = assemble(run, folder, report, card_template=choices.template)
        yield Product(folder, files, report)


def _scored(run: Run) -> tuple[LayerScores | None, DropPlan]:
    scores = scores_if_needed(run)
    return scores, make_plan(run, scores)


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
        overwrite=options.replaces,
        excuse=_excuse(run) if options.dry_run else None,
    )
    run.task_texts, run.task_sources  # noqa: B018
    run.reporter.note(f"base {run.base.name} at {str(run.base.commit)[:12]}, target {target.repo_id}")
    return target


def _excuse(run: Run) -> Callable[[HubpruneError], None]:
    return lambda error: run.reporter.warn(f"The publish itself would be refused: {error}")


def _check_resources(run: Run, options: PublishOptions) -> None:
    """Check what only a run that computes needs: room on the disk, texts, a device, a base of one piece, memory."""
    check_disk(run.base, folder=run.store.folder, written=has_checkpoint(run), loads_back=not options.dry_run)
    check_data(run)
    run.environment  # noqa: B018
    run.examined  # noqa: B018
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
    Unfinished(run.store.folder, target, endpoint=run.session.endpoint).begin()
    published = send(
        folder,
        target=target,
        files=product.files,
        message=f"Publish {run.recipe.default_name}",
        tag=manifest.checkpoint_tag(report.checkpoint),
        session=run.session,
        reporter=run.reporter,
        base=report.base if options.primer else None,
        overwrite=options.replaces,
    )
    return _end(run, report.model_copy(update={"published": published, "upload": None}), target, options, folder=folder)


def _end(
    run: Run, report: PublishReport, target: Target, options: PublishOptions, *, folder: Path | None = None
) -> PublishReport:
    """Tell what is published, and load it back where that was not done; the report is written down even if that fails.

    Args:
        run: the run.
        report: with what is published.
        target: where that is.
        options: say where report and files go.
        folder: with the files; None where none were written.
    """
    published, unfinished = report.published, Unfinished(run.store.folder, target, endpoint=run.session.endpoint)
    if published is None:  # pragma: no cover - only what is published comes here
        return report
    run.reporter.note(f"{_how(published)}: {published.pull_request_url or published.url}")
    _write_report(report, options)
    try:
        if unfinished:
            report = report.model_copy(update={"loaded_back": _load_back(run, published, report)})
    except VerificationError as error:
        _finish(run, folder, report, options)
        raise _does_not_load(published, target, error) from error
    if target.staged and published.pull_request_url:
        published = merge(published, target=target, tag=manifest.checkpoint_tag(report.checkpoint), session=run.session)
        run.reporter.note(f"merged: {published.url}")
        report = report.model_copy(update={"published": published})
    unfinished.end()
    announce(run.recipe.target, published, session=run.session, reporter=run.reporter)
    return _finish(run, folder, report, options)


def _how(published: PublishedCommit) -> str:
    """Say in two words how it came to be there."""
    if published.pull_request_url:
        return "proposed" if published.created else "proposed before"
    return "committed" if published.created else "up to date"


def _does_not_load(published: PublishedCommit, target: Target, error: VerificationError) -> VerificationError:
    where = f"published at {published.url}"
    if target.staged and published.pull_request_url:
        where = f"proposed at {published.pull_request_url} and was not merged"
    return VerificationError(f"It is {where}, but: {error.message}", hint=error.hint)


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
        overwrite=options.replaces,
    )


def _finish(run: Run, folder: Path | None, report: PublishReport, options: PublishOptions) -> PublishReport:
    """Write the report and put the files where they were asked for."""
    _write_report(report, options)
    if options.out and folder:
        move_folder(folder, options.out)
    if options.dry_run:
        where = f"; the files are in {options.out or folder}" if folder else ", which is up to date"
        run.reporter.note(f"dry run: nothing was written to the Hub{where}")
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
        check=lambda folder: check_arrived(published, folder),
    )
    if loaded.parameters != report.checkpoint.parameters:
        raise VerificationError(
            f"it loads with {loaded.parameters:,} parameters instead of {report.checkpoint.parameters:,}."
        )
    return LoadedBack(prompt=prompt, text=loaded.text, parameters=loaded.parameters)
