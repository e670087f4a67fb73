"""Run a published recipe again, in a work folder of its own, and say what is equal; nothing is published.

In comes a folder or repo that a publish wrote; out comes a `Reproduction`: all parts, and likely causes of differences.

    comparing    what was published, part by part against the same run anew, and what may be why they differ
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hubprune.cards.card import check_templates
from hubprune.cards.manifest import CARD, MANIFEST, RECIPE
from hubprune.core.artifacts import Reproduction
from hubprune.core.console import Reporter
from hubprune.core.errors import (
    BaseError,
    BaseNotFoundError,
    CalibrationError,
    CheckpointError,
    EvaluationError,
    HubpruneError,
    RecipeError,
)
from hubprune.core.files import check_new_folder, key_of, make_writable, move_folder, work_folder, write_atomically
from hubprune.core.privacy import TASK_FOLDER, is_local_data, public_name
from hubprune.core.recipe import REPO_ID, Recipe, parse
from hubprune.core.requests import ReproduceRequest
from hubprune.hub.preflight import check_disk
from hubprune.hub.session import HubSession
from hubprune.workflows import publish as pipeline
from hubprune.workflows.card import CardChoices
from hubprune.workflows.publish import siblings
from hubprune.workflows.publish.making import Place, SiblingProduct, made
from hubprune.workflows.publish.stages import has_checkpoint
from hubprune.workflows.reproduce.comparing import Published, causes, compare, read_published
from hubprune.workflows.run import Run, check_data, open_session, open_store, say_computing
from hubprune.workflows.runtimes import NOTHING

STAGES = ("What was published", "Scores", "Prune and verify", "Benchmarks", "Free text and card", "Compare")
COMMIT = re.compile(r"[0-9a-f]{40}")


def reproduce(request: ReproduceRequest, *, reporter: Reporter, session: HubSession | None = None) -> Reproduction:
    """Run the recipe of a published folder or repo again and compare all that comes of it.

    Nothing is taken from the work of ordinary runs, so that the publisher's own machine computes anew as well.  What a
    stopped reproduction finished is kept until everything was equal.

    No token is needed for what is public.

    Raises:
        HubpruneError: something is missing that the recipe needs; found out before anything is computed.
    """
    session = session or open_session(request.endpoint)
    out, template, report = (Path(p) if p else None for p in (request.out, request.card_template, request.report))
    if report:
        make_writable(report.absolute().parent)
    stage = pipeline.announcer(reporter, STAGES)
    stage()
    if out:
        check_new_folder(out)
    if template:
        check_templates(template)
    published = read_published(request.published, revision=request.revision, session=session, reporter=reporter)
    _refuse_unknown(published)
    # The work folder of this published result; another manifest has another one.
    key = key_of(published.manifest, published.recipe.model_dump(mode="json"))
    folder = work_folder() / "reproductions" / f"{Path(published.name).resolve().name}-{key}"
    if request.fresh:
        shutil.rmtree(folder, ignore_errors=True)
    store = open_store(folder, reporter, earlier="reproduction")
    run = Run(_recipe_to_run(published, request, tasks=folder / TASK_FOLDER), session, reporter, store)
    _preflight(run, published)
    choices = CardChoices(
        published.notes, template, timed=published.speed or "never", runtimes=published.runtimes or NOTHING
    )
    with _again(run, stage, published, choices) as product:
        stage()
        seen = _compared(published, product)
        kept = out or (None if seen.equal else product.folder)
        if out:
            move_folder(product.folder, out)
    if seen.equal:
        shutil.rmtree(folder)
    seen = seen.model_copy(update={"folder": str(kept) if kept else None})
    if report:
        write_atomically(report, f"{seen.model_dump_json(indent=2)}\n")
    return seen


def _refuse_unknown(published: Published) -> None:
    """Refuse what was trained elsewhere: nobody here knows how."""
    sibling = published.sibling
    if sibling and sibling.elsewhere:
        raise CheckpointError(
            f"{published.name} was trained elsewhere, and nothing in it says how: it cannot be made again.",
            hint=f"What it was trained from can: hubprune reproduce {sibling.pruned}. This one can be compared with its"
            f" base: hubprune verify {published.name}",
        )


def _is_export(published: Published) -> bool:
    """Tell whether it is a sibling of which no benchmark was run."""
    return published.sibling is not None and published.sibling.kind == "gguf"


@contextmanager
def _again(
    run: Run, stage: Callable[[], None], published: Published, choices: CardChoices
) -> Iterator[pipeline.Product | SiblingProduct]:
    """Make anew what was published: a pruned repo, or one that is made of it."""
    repo_id, tagged = published.shown_as
    of = published.sibling
    with pipeline.produced(
        run, stage, repo_id=of.pruned if of else repo_id, tagged=tagged, choices=choices,
        measured=not _is_export(published),
    ) as product:  # fmt: skip
        if of is None:
            yield product
            return
        place = Place(kind=of.kind, repo_id=repo_id, tagged=tagged, others=of.beside)
        depends_on = siblings.depends(run, product.report, place, choices)
        with made(run, product.report, product.folder, place, choices=choices, depends_on=depends_on) as own:
            yield own


def _compared(published: Published, product: pipeline.Product | SiblingProduct) -> Reproduction:
    values: Mapping[str, Any] = json.loads((product.folder / MANIFEST).read_bytes())
    files = {file.path: file.sha256 or "" for file in product.files}
    files[RECIPE] = _recipe_digest(product.folder, device=published.recipe.device)
    parts = compare(published, values=values, files=files, card=(product.folder / CARD).read_bytes())
    report = product.report
    threads = report.environment.threads
    machine = f"{report.environment.machine} with {threads} thread{'s'[: threads - 1]}"
    return Reproduction(
        name=published.name, commit=published.commit, base=report.base.name, base_commit=str(report.base.commit),
        equal=all(part.outcome != "differs" for part in parts), parts=parts,
        causes=causes(published.manifest, values, machine=machine, parts=parts), environment=report.environment,
        seconds=report.seconds,
    )  # fmt: skip


def _recipe_digest(folder: Path, *, device: str) -> str:
    """Hash the recipe as it would be with the published device: another one here makes it no other recipe."""
    text = (folder / RECIPE).read_text(encoding="utf-8")
    return hashlib.sha256(re.sub(r"(?m)^device: .*$", f"device: {device}", text).encode()).hexdigest()


def _recipe_to_run(published: Published, request: ReproduceRequest, *, tasks: Path) -> Recipe:
    """Return the recipe with what only this machine knows: where the local files are, and a copy of its tasks."""
    recipe, name = published.recipe, published.name
    if request.device:
        recipe = parse(Recipe, {**recipe.model_dump(exclude_none=True), "device": request.device})
    base = recipe.base
    if not REPO_ID.fullmatch(base.repo_id) or not COMMIT.fullmatch(base.revision):
        raise CheckpointError(
            f"The recipe of {name} pins no commit of a base on the Hub: it says {base.repo_id} at {base.revision}.",
            hint=f"With a copy of the base, check what was published: hubprune verify {name} --base FOLDER",
        )
    if recipe.evaluation.include_path and recipe.evaluation.tasks and not request.trust_tasks:
        raise EvaluationError(
            f"{name} brings benchmark definitions of its own, whose templates can run code on this machine.",
            hint=f"Read the files in its folder tasks, then: hubprune reproduce {name} --trust-tasks",
        )
    recipe = _with_files(recipe, name=name, given=[Path(file) for file in request.calibration or ()])
    if recipe.evaluation.include_path is None:
        return recipe
    shutil.rmtree(tasks, ignore_errors=True)
    if (source := published.folder / TASK_FOLDER).is_dir():
        shutil.copytree(source, tasks)  # since in the cache of a Hub a file is a link to somewhere else
    evaluation = recipe.evaluation.model_copy(update={"include_path": str(tasks)})
    return recipe.model_copy(update={"evaluation": evaluation})


def _with_files(recipe: Recipe, *, name: str, given: Sequence[Path]) -> Recipe:
    """Put the given files in the place of the names that a published recipe has for local ones."""
    subsets, known = recipe.calibration.subsets, {path.name: path for path in given}
    wanted = {public_name(s.dataset) for s in subsets if is_local_data(s.dataset)} if recipe.reads_texts else set()
    if strange := sorted(known.keys() - wanted):
        raise RecipeError(
            f"{name} was scored on no local file called {strange[0]}.",
            hint=f"It was scored on {', '.join(sorted(wanted))}." if wanted else "Leave --calibration out.",
        )
    if missing := sorted(wanted - known.keys()):
        raise CalibrationError(
            f"{name} was scored on {missing[0]}, a file of its publisher that is not part of what was published.",
            hint=f"With a copy of it: hubprune reproduce {name} --calibration PATH/{missing[0]}. "
            f"Without, hubprune verify {name} still checks files and logits.",
        )
    found = [known.get(public_name(s.dataset)) for s in subsets]
    placed = [s.model_copy(update={"dataset": str(p)}) if p else s for s, p in zip(subsets, found, strict=True)]
    calibration = recipe.calibration.model_copy(update={"subsets": tuple(placed)})
    return recipe.model_copy(update={"calibration": calibration})


def _preflight(run: Run, published: Published) -> None:
    """Find out in seconds whether all is still there that the recipe names."""
    wanted = run.recipe.base
    with _explained(published, what=f"its base, {wanted.repo_id} at commit {wanted.revision}"):
        base = run.base
    with _explained(published, what="what it was scored on"):
        check_data(run)
    with _explained(published, what="what it was measured on"):
        run.task_texts, run.task_sources  # noqa: B018
    siblings.check_fit(run)
    check_disk(base, folder=run.store.folder, written=has_checkpoint(run), loads_back=False)
    say_computing(run)
    run.reporter.note(f"base {base.name} at {str(base.commit)[:12]}")
    try:
        now = run.session.ask(lambda api: api.model_info(base.name), doing=f"look up {base.name}").sha
    except HubpruneError:
        return
    if now and now != base.commit:
        run.reporter.note(f"the base has moved on, main is at {now[:12]}: the recipe's commit is used all the same")


@contextmanager
def _explained(published: Published, *, what: str) -> Iterator[None]:
    """Say of something that is gone what it is for, and what can be checked without it."""
    try:
        yield
    except (BaseError, CalibrationError, EvaluationError) as error:
        copy = " --base FOLDER, with a copy of the base" if isinstance(error, BaseNotFoundError) else ""
        raise type(error)(
            f"{published.name} cannot be reproduced without {what}. {error.message}",
            hint=f"Files and logits can still be checked: hubprune verify {published.name}{copy}",
        ) from error
