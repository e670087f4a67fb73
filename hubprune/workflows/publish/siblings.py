"""The repos beside a pruned one: looked at with it, made after it was published, each in one commit of its own.

    fits? -> names, rights, what is there -> (the pruned repo) -> up to date? -> make -> one commit -> load back

What fails here leaves the pruned repo as it is, and the same command goes on with what is left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from hubprune.cards import manifest
from hubprune.cards.card import Fingerprint, card_part
from hubprune.cards.markdown import listing
from hubprune.cards.sibling import told
from hubprune.core import __version__
from hubprune.core.artifacts import (
    LoadedBack,
    PublishedCommit,
    PublishReport,
    SiblingKind,
    SiblingLink,
    SiblingReport,
    UploadPlan,
)
from hubprune.core.config import needs_modeling_file, read_config
from hubprune.core.devices import library_versions
from hubprune.core.errors import HubpruneError, MissingDependencyError, RecipeError, VerificationError
from hubprune.core.extras import install, is_installed
from hubprune.core.files import check_new_folder, move_folder
from hubprune.core.privacy import scrub_all
from hubprune.core.recipe import Recipe
from hubprune.core.requests import JobRequest, PublishRequest
from hubprune.core.specs import HEALED_SUFFIX
from hubprune.exporting.quantizing import check_outtype
from hubprune.exporting.writing import check_writer, plan_content, read_layers, read_vocabulary
from hubprune.hub.announcing import announce, merge
from hubprune.hub.commit import publish as send
from hubprune.hub.preflight import Excuse, preflight_beside
from hubprune.hub.remote import Overwrite
from hubprune.hub.repos import small_files, stored_shapes
from hubprune.hub.target import Target
from hubprune.hub.transfer import check_arrived
from hubprune.hub.upload_plan import plan_upload
from hubprune.pruning import verify
from hubprune.pruning.base_files import shapes_in
from hubprune.quantizing.schemes import find_matrices, require_fit
from hubprune.workflows.card import CardChoices
from hubprune.workflows.publish.before import MOVE_BYTES, as_published, calibration_part, fingerprint, last_sibling
from hubprune.workflows.publish.healing import check_given, check_healing, weights_digest
from hubprune.workflows.publish.making import Place, SiblingProduct, gguf_name, made, versions_of
from hubprune.workflows.publish.stages import Unfinished, compare_back, kept_checkpoint
from hubprune.workflows.run import Run

SUFFIX = "-GGUF"
LOADED_TOKENS = 40
"""New tokens that a sibling writes after it was loaded back."""


@dataclass(frozen=True, kw_only=True)
class Beside:
    """A sibling that a publish makes, and where it goes."""

    kind: SiblingKind
    target: Target
    told: str
    given: Path | None = None
    """Folder with a checkpoint that was trained elsewhere."""

    @property
    def link(self) -> SiblingLink:
        """How the other cards name it."""
        return SiblingLink(repo_id=self.target.repo_id, told=self.told)


def suffixes(recipe: Recipe, *, given: object = None) -> dict[SiblingKind, str]:
    """Return what the names of the siblings of a recipe end with, in the order in which they are made.

    `given` is what was trained elsewhere, if anything was.
    """
    found: dict[SiblingKind, str] = {"healed": HEALED_SUFFIX} if recipe.heal or given else {}
    if recipe.quantize:
        found["quantized"] = recipe.quantize.suffix
    return {**found, **({"gguf": SUFFIX} if recipe.gguf else {})}


# ---- before anything is computed ---------------------------------------------------------------------------------


def look(run: Run, request: PublishRequest, target: Target, *, excuse: Excuse | None) -> tuple[Beside, ...]:
    """Check in seconds all that could keep the siblings of a recipe from being made or published.

    Raises:
        HubpruneError: the first thing that is wrong.
    """
    check_fit(run)
    given = Path(request.healed) if request.healed else None
    check_healing(run, given, here=not (isinstance(request, JobRequest) and request.runs_elsewhere))
    found = []
    for kind, suffix in suffixes(run.recipe, given=given).items():
        repo_id = f"{target.repo_id}{suffix}"
        if request.out:
            check_new_folder(out_of(Path(request.out), suffix))
        name = target.repo_id.split("/")[-1]
        files = [gguf_name(name, outtype) for outtype in run.recipe.gguf or ()] if kind == "gguf" else []
        there = preflight_beside(
            repo_id, kind, of=target.repo_id, recipe=run.recipe, base=run.base, files=files, session=run.session,
            overwrite=request.replaces, excuse=excuse,
        )  # fmt: skip
        run.reporter.note(f"beside it {repo_id}: {told(run.recipe, kind)}")
        own = given if kind == "healed" else None
        found.append(Beside(kind=kind, target=there, told=told(run.recipe, kind), given=own))
    return tuple(found)


def check_fit(run: Run) -> None:
    """Refuse what cannot be made of this base at all, by its config.json and the headers of its weights.

    Raises:
        MissingDependencyError: a package is not installed.
        RecipeError: a group size does not fit, or there is no such type.
        UnsupportedArchitectureError: llama.cpp has no such family.
    """
    recipe, base = run.recipe, run.base
    if spec := recipe.quantize:
        from hubprune.quantizing.packing import require_package

        require_package()
        shapes = shapes_in(Path(base.folder)) if base.folder else stored_shapes(base, session=run.session)
        try:
            require_fit(find_matrices(shapes, run.architecture), spec, name=base.name)
        except RecipeError as error:
            error.hint = (error.hint or "").replace("--scheme", "--quantize")
            raise
    if recipe.gguf:
        check_writer()
        if find_spec("llama_cpp") is None:
            raise MissingDependencyError(
                "llama-cpp-python is not installed, by which GGUF files are compared with transformers.",
                hint=f"Only what was compared is published: {install('gguf')}",
            )
        for outtype in recipe.gguf:
            check_outtype(outtype)
        read_layers(base.config, name=base.name)
        folder = small_files(base, session=run.session)
        with _called(folder, base.name):
            read_vocabulary(folder, base.config, size=int(base.config["vocab_size"]))


@contextmanager
def _called(folder: Path, name: str) -> Iterator[None]:
    """Call a folder in errors by the name of the repo whose files it holds."""
    try:
        yield
    except HubpruneError as error:
        error.message = error.message.replace(str(folder), name)
        error.args = (error.message,)
        raise


def check_written(recipe: Recipe, folder: Path, *, name: str, given: Path | None = None) -> None:
    """Refuse, before anything is measured, what cannot be made of a written checkpoint, by its headers.

    Raises:
        HubpruneError: as of `check_fit`.
    """
    with _called(folder, name):
        if given:
            check_given(folder, given)
        for outtype in recipe.gguf or ():
            plan_content(folder, read_config(folder), name=name, outtype=check_outtype(outtype))


def out_of(out: Path, suffix: str) -> Path:
    """Return the folder that keeps a sibling's files, beside that of the pruned model."""
    return out.with_name(f"{out.name}{suffix}")


# ---- after the pruned repo ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SiblingDelivery:
    """How siblings are delivered; as of the pruned repo."""

    replaces: Overwrite
    tell: Callable[[PublishReport], None]
    """Told the whole report each time that there is more of it."""
    dry_run: bool = False
    force: bool = False
    only_if_changed: bool = False
    out: Path | None = None


def publish_all(
    run: Run, report: PublishReport, beside: tuple[Beside, ...], delivery: SiblingDelivery, *, choices: CardChoices,
    folder: Path | None,
) -> PublishReport:  # fmt: skip
    """Publish what is not up to date of the siblings of a pruned repo, and return its report with theirs.

    `folder` holds the pruned checkpoint; None where it has to be found, or written again, in the work folder.

    Raises:
        HubpruneError: one could not be made or published; it says what is published, and how to go on.
    """
    with ExitStack() as stack:
        here = folder
        for number, each in enumerate(beside):
            others = tuple(other.link for other in beside if other is not each)
            place = Place(
                kind=each.kind, repo_id=each.target.repo_id, tagged=each.target.is_tagged, others=others,
                given=each.given,
            )  # fmt: skip
            try:
                done = None if delivery.force else _up_to_date(run, report, each, place, choices, delivery)
                if done is None:
                    here = here or _checkpoint(run, report, stack)
                    depends_on = depends(run, report, place, choices)
                    with made(run, report, here, place, choices=choices, depends_on=depends_on) as product:
                        done = _deliver(run, product, each.target, delivery)
                        if delivery.out:
                            suffix = suffixes(run.recipe, given=each.given)[each.kind]
                            move_folder(product.folder, out_of(delivery.out, suffix))
            except HubpruneError as error:
                error.advise(_left(report, [one.target.repo_id for one in beside[number:]]))
                raise
            report = report.model_copy(update={"siblings": (*report.siblings, done)})
            delivery.tell(report)
    return report


def deliver_all(
    run: Run, report: PublishReport, products: Sequence[tuple[SiblingProduct, Target]], delivery: SiblingDelivery
) -> PublishReport:
    """Publish siblings that were made before; the errors are those of `publish_all`."""
    for number, (product, target) in enumerate(products):
        try:
            done = _deliver(run, product, target, delivery)
        except HubpruneError as error:
            error.advise(_left(report, [other.repo_id for _, other in products[number:]]))
            raise
        report = report.model_copy(update={"siblings": (*report.siblings, done)})
        delivery.tell(report)
    return report


def _left(report: PublishReport, names: Sequence[str]) -> str:
    if report.published is None:
        return "The same command goes on from what was computed."
    return (
        f"{report.repo_id} is published. The same command leaves it as it is and goes on with {listing(names)} from"
        " what was computed."
    )


def _checkpoint(run: Run, report: PublishReport, stack: ExitStack) -> Path:
    """Return the published checkpoint in the work folder; it is written again where it is not there.

    Raises:
        VerificationError: what is written now is not what was published.
    """
    run.reporter.note("the pruned model is taken from the work folder, or written there again")
    folder, again = stack.enter_context(kept_checkpoint(run, report.plan))
    if manifest.checkpoint_tag(again.written) != manifest.checkpoint_tag(report.checkpoint):
        raise VerificationError(
            f"What is published in {report.repo_id} is not what this version would write.",
            hint="Pass --force to publish both anew.",
        )
    return folder


def depends(run: Run, report: PublishReport, place: Place, choices: CardChoices) -> Fingerprint:
    """Say what a sibling depends on, part by part."""
    recipe, kind = run.recipe, place.kind
    whole = fingerprint(run, repo_id=report.repo_id, tagged=place.tagged, choices=choices)
    libraries = {name: number for name, number in library_versions().items() if name not in MOVE_BYTES}
    asked = {"healed": recipe.heal, "quantized": recipe.quantize, "gguf": None}[kind]
    spec = asked.model_dump(mode="json", exclude_none=True) if asked else {}
    parts = {
        "pruned model": {"repo": report.repo_id, "files": manifest.checkpoint_tag(report.checkpoint)},
        {"healed": "healing", "quantized": "quantization", "gguf": "files"}[kind]: (
            {"types": ",".join(recipe.gguf or ())} if kind == "gguf" else {n: str(value) for n, value in spec.items()}
        ),
        "trained elsewhere": {"weights": weights_digest(place.given)} if place.given else {},
        "calibration": calibration_part(run) if asked else {},
        **({"benchmarks": whole["benchmarks"]} if kind != "gguf" else {}),
        "target": {**whole["target"], "repo": place.repo_id},
        "versions": {"hubprune": __version__, **libraries, **versions_of(place.kind)},
        "snippet": whole["snippet"],
        "card": card_part(notes=None, templates=choices.template, beside=place.others),
    }
    public: Fingerprint = scrub_all({part: values for part, values in parts.items() if values})
    return public


def _up_to_date(
    run: Run, report: PublishReport, each: Beside, place: Place, choices: CardChoices, delivery: SiblingDelivery
) -> SiblingReport | None:
    """Report a sibling that is there as it would come out again; None where something is to be done, which is said."""
    target, session = each.target, run.session
    before = last_sibling(target, depends(run, report, place, choices), session=session, reporter=run.reporter)
    if before is None or not before.is_up_to_date or (delivery.out and not delivery.only_if_changed):
        if before is not None and before.told:
            run.reporter.note(f"{target.repo_id}, changed since the last publish: {before.told}")
        return None
    tag = manifest.files_tag(before.record.report.files) if target.is_tagged else None
    missing = "leave" if delivery.dry_run else "tag"
    published = as_published(before, tag, target=target, session=session, missing=missing)  # type: ignore[arg-type]
    if published is None or _unfinished(run, target):
        return None
    run.reporter.note(f"up to date: {target.repo_id}")
    return before.record.report.model_copy(update={"published": published})


def _unfinished(run: Run, target: Target) -> Unfinished:
    return Unfinished(run.store.folder, target, endpoint=run.session.endpoint)


def _deliver(run: Run, product: SiblingProduct, target: Target, delivery: SiblingDelivery) -> SiblingReport:
    """Commit a sibling and load it back, or say what a dry run would have sent."""
    report, session, reporter = product.report, run.session, run.reporter
    if delivery.dry_run:
        upload = _planned(run, product, target, delivery)
        reporter.note(f"dry run: {target.repo_id} was made and not sent")
        return report.model_copy(update={"upload": upload})
    unfinished, tag = _unfinished(run, target), manifest.files_tag(report.files)
    unfinished.begin()
    published = send(
        product.folder, target=target, files=product.files, message=f"Publish {target.repo_id.split('/')[-1]}", tag=tag,
        session=session, reporter=reporter, overwrite=delivery.replaces,
    )  # fmt: skip
    here = published.pull_request_url
    reporter.note(f"{'proposed' if here else 'committed'}: {here or published.url}")
    report = report.model_copy(update={"published": published})
    if report.kind != "gguf":
        try:
            report = report.model_copy(update={"loaded_back": _load_back(run, published, report)})
        except VerificationError as error:
            where = f"proposed at {here} and was not merged" if target.staged and here else "published"
            error.message = f"{target.repo_id} is {where}, but: {error.message}"
            error.args = (error.message,)
            raise
    if target.staged and here:
        published = merge(published, target=target, tag=tag, session=session)
        reporter.note(f"merged: {published.url}")
        report = report.model_copy(update={"published": published})
    unfinished.end()
    spec = run.recipe.target.model_copy(update={"supersedes": None})
    announce(spec, published, session=session, reporter=reporter)
    return report


def _planned(run: Run, product: SiblingProduct, target: Target, delivery: SiblingDelivery) -> UploadPlan:
    return plan_upload(
        product.folder, files=product.files, target=target, base=run.base, session=run.session, reporter=run.reporter,
        scratch=run.store.folder, primer=False, overwrite=delivery.replaces,
    )  # fmt: skip


def _load_back(run: Run, published: PublishedCommit, report: SiblingReport) -> LoadedBack | None:
    """Load a sibling as its readers will."""
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
    own = report.quantized or report.healed
    expected = own.verification.parameters if own else loaded.parameters
    if loaded.parameters != expected:
        raise VerificationError(f"it loads with {loaded.parameters:,} parameters instead of {expected:,}.")
    return LoadedBack(prompt=prompt, text=loaded.text, parameters=loaded.parameters)
