"""The card of a published folder or repo: rendered again from its hubprune.json, or shown in a browser."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hubprune.cards import card
from hubprune.cards.card import CARD_PART, card_part
from hubprune.cards.manifest import CARD, MANIFEST, replace_card
from hubprune.cards.markdown import read_notes
from hubprune.cards.records import PublishRecord, read_record
from hubprune.core.artifacts import RuntimeComparison, SiblingLink, SpeedReport
from hubprune.core.console import Reporter
from hubprune.core.errors import BaseNotFoundError, CheckpointError, ConflictError, RecipeError
from hubprune.core.files import existing_folder
from hubprune.core.options import Place
from hubprune.core.recipe import REPO_ID, BaseModelSpec
from hubprune.core.requests import CardRequest
from hubprune.hub import repos as hub
from hubprune.hub.session import HubSession
from hubprune.hub.transfer import download
from hubprune.plots.pictures import BENCHMARK_PICTURE, CARD_PICTURE, FRONTIER_PICTURE
from hubprune.workflows.run import open_session
from hubprune.workflows.runtimes import NOTHING, Chosen

if TYPE_CHECKING:
    from hubprune.localhub import Preview

SHOWN = (CARD, "*.png", "*.jpg", "*.jpeg", "*.gif", "*.webp", "*.svg")
"""Files of a repo that its card may show."""
Timed = Literal["now", "if it fits", "never"] | SpeedReport
"""Whether base and result are timed: as asked, since this machine has a GPU, or not; or what was found."""


@dataclass(frozen=True)
class CardChoices:
    """What an author adds to a card, which no recipe holds."""

    notes: str | None = None
    """The author's own words, as `read_notes` returns them."""
    template: Path | None = None
    """Folder whose templates override the shipped ones."""
    timed: Timed = "never"
    """Whether base and result are timed for it, or what was found when they were."""
    beside: tuple[SiblingLink, ...] = ()
    """The siblings that it names."""
    runtimes: Chosen | RuntimeComparison = NOTHING
    """Which runtimes the result is run in, or what was found when it was."""

    @classmethod
    def read(
        cls, *, notes: Place | None, template: Place | None, timed: Timed = "never", runtimes: Chosen = NOTHING
    ) -> CardChoices:
        """Read the notes and check the templates, before anything is computed.

        Raises:
            RecipeError: something in them is not allowed, or cannot be read.
        """
        folder = Path(template) if template else None
        if folder:
            card.check_templates(folder)
        return cls(read_notes(Path(notes)) if notes else None, folder, timed, runtimes=runtimes)


AS_SHIPPED = CardChoices()


@dataclass(frozen=True, kw_only=True)
class CardWritten:
    """What became of a card."""

    path: Path
    sha256: str
    outcome: Literal["unchanged", "written"]


def write_card(folder: Path, choices: CardChoices = AS_SHIPPED, *, overwrite_card: bool = False) -> CardWritten:
    """Write README.md of a published folder anew, and the manifest with it; where nothing changed, no file is touched.

    Notes of `choices` win over those in the manifest; a card that was edited by hand is replaced only on request.

    Raises:
        RecipeError: a template of the user's own does not do.
        CheckpointError: it is no such folder, or its manifest is broken, changed, or of another version.
        ConflictError: the card was edited by hand.
    """
    record = read_record(folder)
    used = CardChoices(choices.notes or record.report.notes, choices.template, beside=record.report.beside)
    text = render_again(record, used)
    path, digest = folder / CARD, hashlib.sha256(text.encode()).hexdigest()
    if path.is_file() and not overwrite_card:
        found, listed = hashlib.sha256(path.read_bytes()).hexdigest(), record.files.get(CARD)
        if found not in (digest, listed and listed.sha256):
            hint = "Pass --overwrite-card to replace it."
            raise ConflictError(f"{path} was edited by hand since it was written.", hint=hint)
    written = put_card(folder, record, used, text=text)
    return CardWritten(path=path, sha256=digest, outcome="written" if written else "unchanged")


def render_again(record: PublishRecord, choices: CardChoices) -> str:
    """Render the card of a published result from what its manifest says.

    Raises:
        RecipeError: a template of the user's own does not do.
        CheckpointError: parts of the manifest do not fit one another, as where a score is missing of a layer.
    """
    report = record.report.model_copy(update={"notes": choices.notes, "beside": choices.beside})
    try:
        drawn = (CARD_PICTURE, BENCHMARK_PICTURE, FRONTIER_PICTURE)
        importance, benchmarks, frontier = (path if path in record.files else None for path in drawn)
        pictures = card.Pictures(importance=importance, benchmarks=benchmarks, frontier=frontier)
        context = card.context_of(report, pictures=pictures, overrides=choices.template)
    except card.WRONG_USE as error:
        why = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise CheckpointError(
            f"The parts of {MANIFEST} do not fit one another ({why}).", hint="Take it from the Hub, or publish again."
        ) from error
    return card.render(context, overrides=choices.template)


def put_card(folder: Path, record: PublishRecord, choices: CardChoices, *, text: str) -> bool:
    """Write a card into a folder, and the manifest that lists it; return whether something was written.

    The folder holds what is published, or is empty; the record is its manifest so far.
    """
    depends_on = card_part(notes=choices.notes, templates=choices.template, beside=choices.beside)
    changed = {
        "beside": [link.model_dump(mode="json") for link in choices.beside],
        "notes": choices.notes,
        "card_templates": depends_on["templates"],
        "fingerprint": {**record.report.fingerprint, CARD_PART: depends_on},
    }
    values = {key: part for key, part in {**record.values, **changed}.items() if part or key != "beside"}
    return replace_card(folder, values, card=text)


def preview(request: CardRequest, *, reporter: Reporter, session: HubSession | None = None) -> Preview:
    """Find what a page of a folder or repo shows; of a repo only the card and its pictures are downloaded.

    The session is opened only where a Hub has to be asked.

    Raises:
        RecipeError: options of rendering are given, and the preview shows what is there.
        BaseNotFoundError: there is no such folder or repo, or it has no card.
        MissingDependencyError: the extra `localhub` is not installed.
    """
    changing = {
        "--notes": request.notes, "--card-template": request.card_template, "--overwrite-card": request.overwrite_card,
    }  # fmt: skip
    for option, value in changing.items():
        if value:
            raise RecipeError(
                f"--preview shows a card as it is, and {option} would change it.",
                hint="Run hubprune card twice: first to write the card, then with --preview alone.",
            )
    from hubprune.localhub import Preview

    name = request.published
    if folder := existing_folder(name):
        if not (folder / CARD).is_file():
            raise BaseNotFoundError(f"{folder} holds no {CARD}.", hint=f"Write it with: hubprune card {folder}")
        return Preview(title=folder.resolve().name, subtitle=str(folder), folder=folder)
    repo_id, _, revision = name.partition("@")
    if not REPO_ID.fullmatch(repo_id):
        raise BaseNotFoundError(f"{name} is neither a folder nor a repo id.", hint="A repo id looks like owner/name.")
    session = session or open_session(request.endpoint)
    repo = hub.resolve_repo(BaseModelSpec.of(repo_id, revision=revision or "main"), session=session, needs_config=False)
    shown = tuple(file for file in repo.files if any(fnmatch(file.path, pattern) for pattern in SHOWN))
    if not any(file.path == CARD for file in shown):
        raise BaseNotFoundError(f"{repo_id} has no {CARD} at {repo.commit}.")
    here = download(shown, repo_id=repo_id, commit=str(repo.commit), session=session, reporter=reporter)
    from huggingface_hub import constants

    return Preview(
        title=repo_id,
        subtitle=f"{session.endpoint} at {repo.commit}",
        folder=here,
        linked=(Path(constants.HF_HUB_CACHE),),
        listed={file.path: file.size for file in repo.files},
    )
