"""Publish what a dry run made, perhaps on another machine and with another token: nothing is computed again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from pydantic import ValidationError

from hubprune.cards.manifest import CARD, MANIFEST, read_manifest
from hubprune.core.artifacts import PublishReport, RepoFile, SiblingReport
from hubprune.core.console import Reporter
from hubprune.core.errors import ConflictError, RecipeError, VerificationError
from hubprune.core.files import StageStore, list_files, make_writable, work_folder
from hubprune.core.recipe import Recipe, parse
from hubprune.core.requests import PushRequest
from hubprune.hub.preflight import preflight_beside, target_of
from hubprune.hub.remote import missing, read_remote
from hubprune.hub.session import HubSession
from hubprune.hub.target import Target
from hubprune.workflows.publish import Delivery, Product, announcer, deliver, write_report
from hubprune.workflows.publish.making import SiblingProduct
from hubprune.workflows.publish.siblings import SiblingDelivery, deliver_all
from hubprune.workflows.run import Run, open_session

STAGES = ("Check", "Publish and load back")
AGAIN = "Make both again with hubprune publish --dry-run --out FOLDER, which writes FOLDER-report.json beside it."


def push(
    request: PushRequest, *, reporter: Reporter, told: Callable[[PublishReport], None] = lambda report: None
) -> PublishReport:
    """Publish a folder that a dry run wrote, in one commit, if it is still what the dry run saw.

    `told` is called with the report each time that it is written, or would be.

    Raises:
        RecipeError: the report is none.
        VerificationError: a file was changed, added or removed since.
        OverBudgetError: it lost more than its recipe allows.
        HubpruneError: it may not be published there, or could not be.
    """
    session, folder = open_session(request.endpoint), Path(request.folder)
    report = read_report(Path(request.dry_run_report) if request.dry_run_report else report_beside(folder))
    written = Path(request.report) if request.report else None
    delivery = Delivery(replaces=request.replaces, report=written, told=told)
    return push_made(folder, report, delivery, session=session, reporter=reporter)


def push_made(
    folder: Path, report: PublishReport, delivery: Delivery, *, session: HubSession, reporter: Reporter
) -> PublishReport:
    """Do the same with a report that was read; the session goes as well where its token may not read the base."""
    stage = announcer(reporter, (*STAGES, *(["Siblings"] if report.siblings else [])))
    stage()
    if delivery.report:
        make_writable(delivery.report.absolute().parent)
    recipe = parse(Recipe, report.recipe)
    # The target is the one that the card names, which no option can move.
    recipe = recipe.model_copy(update={"target": recipe.target.model_copy(update={"repo_id": report.repo_id})})
    files = _as_verified(folder, report.checkpoint.files)
    target = target_of(recipe, base=report.base, session=session, overwrite=delivery.replaces)
    _refuse_newer(target, report.upload.parent if report.upload else target.parent, files, session=session)
    reporter.note(f"{len(files)} files as the dry run left them, target {target.repo_id}")
    run = Run(recipe, session, reporter, StageStore(work_folder()))
    made = [_sibling(each, folder, report, run, delivery) for each in report.siblings]
    stage()
    # What the dry run expected of the upload is no part of what a publish reports.
    alone = report.model_copy(update={"upload": None, "siblings": ()})
    done = deliver(run, Product(folder, files, alone), target, delivery)
    if made:
        stage()
    how = SiblingDelivery(replaces=delivery.replaces, tell=lambda told: write_report(told, delivery))
    return deliver_all(run, done, made, how)


def _sibling(
    sibling: SiblingReport, folder: Path, report: PublishReport, run: Run, delivery: Delivery
) -> tuple[SiblingProduct, Target]:
    """Look at a sibling's folder, beside that of the pruned model, and at the repo that it goes to.

    Raises:
        HubpruneError: as `push`.
    """
    own = folder.with_name(f"{folder.name}{sibling.repo_id.removeprefix(report.repo_id)}")
    if not own.is_dir():
        raise RecipeError(f"The folder of {sibling.repo_id}, {own}, is not there.", hint=AGAIN)
    files = _as_verified(own, sibling.files)
    target = preflight_beside(
        sibling.repo_id, sibling.kind, of=report.repo_id, recipe=run.recipe, base=report.base,
        files=[made.file for made in sibling.exports], session=run.session, overwrite=delivery.replaces,
    )  # fmt: skip
    _refuse_newer(target, sibling.upload.parent if sibling.upload else target.parent, files, session=run.session)
    run.reporter.note(f"beside it {sibling.repo_id}: {len(files)} files")
    return SiblingProduct(own, files, sibling.model_copy(update={"upload": None})), target


def _refuse_newer(target: Target, seen: str | None, files: tuple[RepoFile, ...], *, session: HubSession) -> None:
    """Refuse to replace what came after the dry run, which saw `seen`: its files were never compared with that.

    Raises:
        ConflictError: it is not what an earlier push of these files sent before it was cut off.
    """
    if target.parent in (None, seen):
        return
    remote = read_remote(target.repo_id, commit=str(target.parent), session=session)
    is_new = seen is None and remote.manifest is None
    if not is_new and missing(files, remote=remote):
        raise ConflictError(
            f"{target.repo_id} has changed since the dry run: {target.revision} was at {seen or 'nothing'} and is "
            f"at {target.parent}.",
            hint=f"Nothing was changed. {AGAIN}",
        )


def report_beside(folder: Path) -> Path:
    """Return where the report of a dry run is, unless something else was asked for: beside what it made."""
    where = folder if folder.name else folder.absolute()
    return where.parent / f"{where.name}-report.json"


def new_report_beside(folder: Path) -> Path:
    """Return the same for a run that will write it, which may replace an earlier report and nothing else.

    Raises:
        RecipeError: there is something else.
    """
    path = report_beside(folder)
    try:
        if path.exists():
            read_report(path)
    except RecipeError as error:
        hint = "Say with --report FILE where the report goes, or choose another --out."
        raise RecipeError(f"{path} exists already, and is no report of this version.", hint=hint) from error
    return path


def read_report(path: Path) -> PublishReport:
    """Read the report of a publish.

    Raises:
        RecipeError: it is none.
    """
    try:
        return PublishReport.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no report of this version"
        raise RecipeError(f"Cannot read the report {path}: {why}.", hint=AGAIN) from error


def _as_verified(folder: Path, verified: tuple[RepoFile, ...]) -> tuple[RepoFile, ...]:
    """List the files of a folder, each of which has to be what the manifest says, and what was verified."""
    if not (folder / MANIFEST).is_file():
        raise RecipeError(f"{folder} holds no {MANIFEST}.", hint=AGAIN)
    files = list_files(folder)
    listed = read_manifest((folder / MANIFEST).read_bytes()).files
    found = {file.path: str(file.sha256) for file in files if file.path != MANIFEST}
    _refuse_difference(found, listed, where=folder)
    checkpoint = {file.path: str(file.sha256) for file in verified}
    _refuse_difference({path: found.get(path, "") for path in checkpoint}, checkpoint, where=folder)
    if CARD not in found:
        raise VerificationError(f"{folder} has no {CARD}.", hint=AGAIN)
    return files


def _refuse_difference(found: Mapping[str, str], expected: Mapping[str, str], *, where: Path) -> None:
    different = sorted(path for path in {*found, *expected} if found.get(path) != expected.get(path))
    if different:
        what = "is not" if different[0] in found else "has gone from"
        rest = f", nor are {len(different) - 1} more" if len(different) > 1 else ""
        raise VerificationError(f"{different[0]} {what} what the dry run left in {where}{rest}.", hint=AGAIN)
