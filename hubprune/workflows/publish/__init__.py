"""Publish what comes of a recipe: its stages in their order, each of which goes on from what an earlier run found.

    resolve and check -> download -> score -> prune and verify -> benchmark -> card -> one commit -> load back
    -> the same for its siblings, where the recipe asks for them

In comes a request, out comes the report of what is on the Hub.  Libraries that compute are imported by the stages that
need them: what fails fast must not wait for torch.

    counting  the number of drops, where it is to be found
    before    what a result depends on, what the last publish left on the branch, what of it need not be computed again
    stages    the checkpoint in the work folder, benchmarks, free text, timing, and the repo that is made of it
    siblings  what is published beside it: checked with it, and delivered after it
    making    a sibling from the checkpoint to the repo that is made of it
    healing   the same of the one that was trained, here or elsewhere
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from hubprune.cards import manifest
from hubprune.cards.limits import check_budget
from hubprune.cards.records import PublishRecord
from hubprune.core import fresh
from hubprune.core.artifacts import LoadedBack, PublishedCommit, PublishReport, RepoFile
from hubprune.core.config import needs_modeling_file
from hubprune.core.console import Reporter
from hubprune.core.errors import EditedError, HubpruneError, OverBudgetError, VerificationError
from hubprune.core.extras import is_installed, require
from hubprune.core.files import check_new_folder, make_writable, move_folder, write_atomically
from hubprune.core.requests import PublishRequest
from hubprune.hub.announcing import announce, merge
from hubprune.hub.commit import publish as send
from hubprune.hub.preflight import check_disk, preflight
from hubprune.hub.remote import Overwrite
from hubprune.hub.repos import small_files
from hubprune.hub.target import Target, check_name_loads
from hubprune.hub.transfer import check_arrived
from hubprune.hub.upload_plan import plan_upload
from hubprune.pruning import verify
from hubprune.workflows.card import AS_SHIPPED, CardChoices, Timed
from hubprune.workflows.chat import check_texts
from hubprune.workflows.choosing import say_plan
from hubprune.workflows.publish import siblings
from hubprune.workflows.publish.before import (
    Before,
    fingerprint,
    last_publish,
    offer_results,
    proposed_before,
    scores_before,
    without_computing,
)
from hubprune.workflows.publish.counting import with_count
from hubprune.workflows.publish.siblings import Beside, SiblingDelivery
from hubprune.workflows.publish.stages import (
    Unfinished,
    assemble,
    benchmark,
    compare_back,
    find_runtimes,
    find_speed,
    free_text,
    has_checkpoint,
    kept_checkpoint,
    open_pair,
    run_snippet,
)
from hubprune.workflows.recipes import recipe_of
from hubprune.workflows.run import Run, check_data, make_plan, open_run, say_computing, scores_if_needed
from hubprune.workflows.runtimes import choose

STAGES = (
    "Base and preflight", "Scores", "Prune and verify", "Benchmarks", "Free text and card", "Publish and load back",
)  # fmt: skip
WHEN_TIMED: Mapping[bool | None, Timed] = {None: "if it fits", True: "now", False: "never"}
"""What was asked of timing -> when it takes place."""
LOADED_TOKENS = 40
"""New tokens that the published model writes after it was loaded back."""


def publish(
    request: PublishRequest, *, reporter: Reporter, told: Callable[[PublishReport], None] = lambda report: None
) -> PublishReport:
    """Run the stages of a recipe whose result is not published yet, and publish it in one commit.

    `told` is called with the report each time that it is written, or would be.

    Raises:
        HubpruneError: the first thing that is wrong; what fails fast is checked before anything is computed.
    """
    if request.adopt:
        from hubprune.workflows.adopt import opened_adopted

        with opened_adopted(request, reporter=reporter) as (run, asked):
            return publish_run(run, asked, told=told)
    request = with_count(request, reporter=reporter, check=partial(_check_before_counting, request=request))
    return publish_run(open_run(recipe_of(request), request.endpoint, reporter), request, told=told)


def publish_run(
    run: Run, request: PublishRequest, *, told: Callable[[PublishReport], None] = lambda report: None
) -> PublishReport:
    """Do the same over a run that is open already; of the request, what is no part of the recipe."""
    asked = siblings.suffixes(run.recipe, given=request.healed)
    stage = announcer(run.reporter, (*STAGES, *(["Siblings"] if asked else [])))
    stage()
    choices = _choices(request)
    target, beside = check(run, request)
    choices = replace(choices, beside=tuple(each.link for each in beside))
    delivery = Delivery(
        replaces=request.replaces, primer=request.primer, dry_run=request.dry_run,
        out=Path(request.out) if request.out else None, report=Path(request.report) if request.report else None,
        told=told,
    )  # fmt: skip
    shown: dict[str, Any] = {"repo_id": target.repo_id, "tagged": target.is_tagged}
    now = fingerprint(run, **shown, choices=choices)
    before = last_publish(target, now, session=run.session, reporter=run.reporter)
    report = without_computing(run, before, choices, target, request) if before else None
    if report or (report := proposed_before(run, target, now, request)):
        done = _finish(run, report, delivery) if request.dry_run else _end(run, report, target, delivery)
        return _beside(run, done, beside, request, delivery, choices)
    _check_resources(run, loads_back=not request.dry_run)
    if before:
        offer_results(before, run)
    given = Path(request.healed) if request.healed else None
    with produced(run, stage, **shown, choices=choices, before=before, given=given) as product:
        stage()
        with _kept(product.folder, delivery.out):
            done = deliver(run, product, target, delivery)
            if beside:
                stage()
            return _beside(run, done, beside, request, delivery, choices, folder=product.folder)


def _beside(
    run: Run, report: PublishReport, beside: tuple[Beside, ...], request: PublishRequest, delivery: Delivery,
    choices: CardChoices, *, folder: Path | None = None,
) -> PublishReport:  # fmt: skip
    """Publish the siblings, each of which goes into the report."""
    how = SiblingDelivery(
        replaces=delivery.replaces, dry_run=delivery.dry_run, force=request.force, out=delivery.out,
        only_if_changed=request.only_if_changed,
        tell=lambda told: write_report(told, delivery),
    )  # fmt: skip
    return siblings.publish_all(run, report, beside, how, choices=choices, folder=folder)


def _choices(request: PublishRequest) -> CardChoices:
    return CardChoices.read(
        notes=request.notes, template=request.card_template, timed=WHEN_TIMED[request.speed],
        runtimes=choose(request.runtimes or "auto"),
    )  # fmt: skip


def _check_before_counting(run: Run, *, request: PublishRequest) -> None:
    """Check what could fail after the sweep that finds the number; `run` has another one."""
    _choices(request)
    try:
        check(run, request)
    except EditedError:
        if request.repo_id:  # else the repo is called by the number, and this is not it
            raise


def check(run: Run, request: PublishRequest) -> tuple[Target, tuple[Beside, ...]]:
    """Check in seconds all that could fail hours later; nothing is downloaded or written before it is through.

    Raises:
        HubpruneError: the first thing that is wrong.
    """
    if request.out:
        check_new_folder(Path(request.out))
    if request.report:
        make_writable(Path(request.report).absolute().parent)

    def excuse(error: HubpruneError) -> None:
        run.reporter.warn(f"The publish itself would be refused: {error}")

    excused = excuse if request.dry_run else None
    target = preflight(run.recipe, base=run.base, session=run.session, overwrite=request.replaces, excuse=excused)
    run.task_texts, run.task_sources  # noqa: B018
    run.reporter.note(f"base {run.base.name} at {str(run.base.commit)[:12]}, target {target.repo_id}")
    return target, siblings.look(run, request, target, excuse=excused)


def _check_resources(run: Run, *, loads_back: bool) -> None:
    """Check what only a run that computes needs: room on the disk, texts, a device, a base of one piece, memory."""
    check_disk(run.base, folder=run.store.folder, written=has_checkpoint(run), loads_back=loads_back)
    check_data(run)
    run.environment  # noqa: B018
    check_texts(run, small_files(run.examined, session=run.session))
    say_computing(run)


def announcer(reporter: Reporter, stages: Sequence[str] = STAGES) -> Callable[[], None]:
    """Return a function that announces the next of some stages each time it is called."""
    titles = iter(enumerate(stages, start=1))

    def announce() -> None:
        number, title = next(titles)
        reporter.stage(number, len(stages), title)

    return announce


# ---- computing ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Product:
    """All that a repo consists of, and how it came to be."""

    folder: Path
    files: tuple[RepoFile, ...]
    """All files of the folder with their hashes."""
    report: PublishReport


@contextmanager
def produced(
    run: Run, stage: Callable[[], None], *, repo_id: str, tagged: bool, choices: CardChoices = AS_SHIPPED,
    before: Before[PublishRecord] | None = None, measured: bool = True, given: Path | None = None,
) -> Iterator[Product]:  # fmt: skip
    """Run all stages from the download to the manifest, and yield what came of them; nothing is published.

    While the block runs, no other run can use the folder.  `stage` is called at the start of each of the four stages
    after the download; `tagged` says whether the card names a tag of its files; what would come out again is taken
    from what the last publish found, `before`.  Benchmarks and free text are left out where it is not to be measured.
    """
    depends_on = fingerprint(run, repo_id=repo_id, tagged=tagged, choices=choices)
    run.downloaded  # noqa: B018
    stage()
    taken = scores_before(before, run, depends_on)
    scores = taken[0] if taken else scores_if_needed(run)
    plan = taken[1] if taken else make_plan(run, scores)
    say_plan(plan, reporter=run.reporter)
    if needs_modeling_file(plan):
        check_name_loads(repo_id)
    stage()
    with ExitStack() as loading, ExitStack() as kept:
        loading.enter_context(fresh.warm())  # for the verification and the code of the card, and gone before the rest
        folder, made = kept.enter_context(kept_checkpoint(run, plan))
        siblings.check_written(run.recipe, folder, name=repo_id, given=given)
        tag = manifest.checkpoint_tag(made.written) if tagged else None
        snippet = run_snippet(run, plan, folder, repo_id=repo_id, tag=tag, template=choices.template)
        verification = made.verification.model_copy(
            update={"in_runtimes": find_runtimes(run, plan, folder, choices.runtimes, repo_id=repo_id)}
        )
        loading.close()
        stage()
        with open_pair(run, plan, folder) as pair:
            benchmarks = benchmark(run, plan, pair) if measured else None
            stage()
            generation = free_text(run, plan, pair) if measured else None
        report = PublishReport(
            recipe=run.pinned_recipe.model_dump(mode="json", exclude_none=True), repo_id=repo_id,
            endpoint=run.session.endpoint, base=run.base.model_copy(update={"config": run.downloaded.config}),
            scores=scores, plan=plan, checkpoint=made.written, verification=verification, benchmarks=benchmarks,
            generation=generation,
            speed=find_speed(run, plan, folder, choices.timed, repo_id=repo_id, benchmarks=benchmarks),
            snippet=snippet, published=None, environment=run.environment, seconds=run.store.seconds,
            notes=choices.notes, beside=choices.beside,
            fingerprint={part: dict(values) for part, values in depends_on.items()}, stage_keys=run.store.keys,
        )  # fmt: skip
        files = assemble(run, folder, report, card_template=choices.template)
        yield Product(folder, files, report)


# ---- delivering --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """Where a result goes beside its repo, and what may happen there; none of it changes the result."""

    replaces: Overwrite = "nothing"
    """What of other people's work may be replaced."""
    primer: bool = True
    """Ask the Hub, before the upload, which chunks of the base it has."""
    dry_run: bool = False
    """Do everything but write to the Hub."""
    out: Path | None = None
    """Folder that keeps the published files."""
    report: Path | None = None
    """File for the report as JSON; written as soon as there is a commit, and again at the end."""
    told: Callable[[PublishReport], None] = lambda report: None
    """Called with the report each time that it is written, or would be."""


def deliver(run: Run, product: Product, target: Target, delivery: Delivery) -> PublishReport:
    """Commit, then load back; what was committed is told and written down even if the rest fails.

    Raises:
        OverBudgetError: the result lost more than the recipe allows; nothing was sent.
        HubpruneError: it could not be published, or does not load.
    """
    folder, report = product.folder, product.report
    if target.staged and not delivery.dry_run:
        require("torch", doing="--staged, which merges what was loaded back,")
    try:
        check_budget(run.recipe.evaluation.max_loss, report.benchmarks, report.generation)
    except OverBudgetError:
        _finish(run, report, delivery, folder=folder)
        raise
    if delivery.dry_run:
        upload = plan_upload(
            folder, files=product.files, target=target, base=run.downloaded, session=run.session,
            reporter=run.reporter, scratch=run.store.folder, primer=delivery.primer, overwrite=delivery.replaces,
        )  # fmt: skip
        return _finish(run, report.model_copy(update={"upload": upload}), delivery, folder=folder)
    Unfinished(run.store.folder, target, endpoint=run.session.endpoint).begin()
    published = send(
        folder, target=target, files=product.files, message=f"Publish {run.recipe.default_name}",
        tag=manifest.checkpoint_tag(report.checkpoint), session=run.session, reporter=run.reporter,
        base=report.base if delivery.primer else None, overwrite=delivery.replaces,
    )  # fmt: skip
    report = report.model_copy(update={"published": published, "upload": None})
    return _end(run, report, target, delivery)


def _end(run: Run, report: PublishReport, target: Target, delivery: Delivery) -> PublishReport:
    """Tell what is published, and load it back where that was not done; the report is written even if that fails."""
    published, unfinished = report.published, Unfinished(run.store.folder, target, endpoint=run.session.endpoint)
    if published is None:  # pragma: no cover - only what is published comes here
        return report
    here = published.pull_request_url
    how = ("proposed", "proposed before") if here else ("committed", "up to date")
    run.reporter.note(f"{how[not published.created]}: {here or published.url}")
    write_report(report, delivery)
    try:
        if unfinished:
            report = report.model_copy(update={"loaded_back": _load_back(run, published, report)})
    except VerificationError as error:
        _finish(run, report, delivery)
        where = f"proposed at {here} and was not merged" if target.staged and here else f"published at {published.url}"
        raise VerificationError(f"It is {where}, but: {error.message}", hint=error.hint) from error
    if target.staged and here:
        published = merge(published, target=target, tag=manifest.checkpoint_tag(report.checkpoint), session=run.session)
        run.reporter.note(f"merged: {published.url}")
        report = report.model_copy(update={"published": published})
    unfinished.end()
    announce(run.recipe.target, published, session=run.session, reporter=run.reporter)
    return _finish(run, report, delivery)


@contextmanager
def _kept(folder: Path, out: Path | None) -> Iterator[None]:
    """Put the files where they were asked for when the block ends, with a result that is not good enough too."""
    try:
        yield
    except (OverBudgetError, VerificationError):
        if out and folder.is_dir():
            move_folder(folder, out)
        raise
    if out:
        move_folder(folder, out)


def _finish(run: Run, report: PublishReport, delivery: Delivery, *, folder: Path | None = None) -> PublishReport:
    """Write the report, and say where the files of a dry run are."""
    write_report(report, delivery)
    if delivery.dry_run:
        where = f"; the files are in {delivery.out or folder}" if folder else ", which is up to date"
        run.reporter.note(f"dry run: nothing was written to the Hub{where}")
    return report


def write_report(report: PublishReport, delivery: Delivery) -> None:
    """Tell of a report, and write it where it was asked for."""
    delivery.told(report)
    if delivery.report:
        write_atomically(delivery.report, to_json(report))


def to_json(report: PublishReport) -> str:
    """Write a report as JSON; scores per document are for statistics in the work folder and stay there."""
    return report.model_dump_json(indent=2, exclude={"scores": {"per_document"}}) + "\n"


def _load_back(run: Run, published: PublishedCommit, report: PublishReport) -> LoadedBack | None:
    if not is_installed("torch"):
        compare_back(run, published)
        return None
    run.reporter.note("loading it back from the Hub in a fresh process")
    prompt = run.recipe.evaluation.prompt_texts()[0]
    loaded = verify.load_from_hub(
        published.repo_id, commit=published.commit, prompt=prompt, new_tokens=LOADED_TOKENS,
        custom_code=needs_modeling_file(report.plan), work_folder=run.store.folder,
        check=lambda folder: check_arrived(published, folder),
    )  # fmt: skip
    if loaded.parameters != report.checkpoint.parameters:
        expected = report.checkpoint.parameters
        raise VerificationError(f"it loads with {loaded.parameters:,} parameters instead of {expected:,}.")
    return LoadedBack(prompt=prompt, text=loaded.text, parameters=loaded.parameters)
