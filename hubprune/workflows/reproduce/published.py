"""Read what was published: manifest, recipe, card and tasks, and the SHA-256 that every file really has."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hubprune.cards.manifest import CARD, MANIFEST, NOT_LISTED, RECIPE
from hubprune.cards.markdown import refuse_unsafe
from hubprune.core.artifacts import SpeedReport
from hubprune.core.console import Reporter
from hubprune.core.errors import CheckpointError, RecipeError
from hubprune.core.files import existing_folder, list_files
from hubprune.core.privacy import TASK_FOLDER
from hubprune.core.recipe import REPO_ID, Recipe, read_recipe
from hubprune.core.strict import parse_json
from hubprune.hub import repos as hub
from hubprune.hub.session import HubSession
from hubprune.hub.transfer import download

READ_ALWAYS = (MANIFEST, RECIPE, CARD)


@dataclass(frozen=True, kw_only=True)
class Published:
    """What a publish left."""

    name: str
    """Folder or repo id, as it was asked for."""
    commit: str | None
    """Of the repo; None for a folder."""
    folder: Path
    """Holds the files that are read; of a repo not the weights."""
    manifest: Mapping[str, Any]
    """As anybody may have edited it."""
    recipe: Recipe
    files: Mapping[str, str]
    """Path -> SHA-256 as it is, whatever the manifest says, of all files that a manifest lists."""

    @property
    def card(self) -> bytes:
        """README.md, empty where there is none."""
        path = self.folder / CARD
        return path.read_bytes() if path.is_file() else b""

    @property
    def notes(self) -> str | None:
        """The author's own words; None where somebody put into them what no author may write."""
        notes = self.manifest.get("notes")
        try:
            return refuse_unsafe(notes, name="The notes") if isinstance(notes, str) else None
        except RecipeError:
            return None

    @property
    def speed(self) -> SpeedReport | None:
        """What was timed: times of two runs do not compare, so that a card of the same run anew takes these over."""
        try:
            return SpeedReport.model_validate(self.manifest.get("speed"))
        except ValidationError:
            return None

    @property
    def shown_as(self) -> tuple[str, bool]:
        """What its card calls it, and whether the card names a tag."""
        snippet = self.manifest.get("snippet")
        values = snippet if isinstance(snippet, dict) else {}
        named = values.get("repo_id")
        if isinstance(named, str) and REPO_ID.fullmatch(named):
            return named, values.get("revision") is not None
        return (self.name if self.commit else self.recipe.target.repo_id or self.recipe.default_name), True


def read_published(name: str, *, revision: str | None, session: HubSession, reporter: Reporter) -> Published:
    """Read what a publish left in a folder or repo; of a repo everything but large files is downloaded.

    Raises:
        BaseNotFoundError: there is no such folder or repo.
        CheckpointError: `hubprune publish` did not write it.
        RecipeError: its recipe has a value that cannot be used.
    """
    if there := existing_folder(name):
        folder, commit = there, None
        total = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        with reporter.progress("hashing what was published", total=total, unit="B") as advance:
            files = {file.path: file.sha256 or "" for file in list_files(folder, advance=advance)}
    else:
        folder, commit, files = _files_of_repo(name, revision, session=session, reporter=reporter)
    for needed in (MANIFEST, RECIPE):
        if not (folder / needed).is_file():
            raise _not_published(name, needed)
    manifest = parse_json((folder / MANIFEST).read_bytes(), where=f"{MANIFEST} of {name}")
    recipe = read_recipe(folder / RECIPE)
    if recipe.evaluation.include_path is not None:  # whatever folder it names, only the published one is meant
        evaluation = recipe.evaluation.model_copy(update={"include_path": TASK_FOLDER})
        recipe = recipe.model_copy(update={"evaluation": evaluation})
    return Published(
        name=name,
        commit=commit,
        folder=folder,
        manifest=manifest,
        recipe=recipe,
        files={path: sha256 for path, sha256 in files.items() if not path.startswith(NOT_LISTED)},
    )


def _not_published(name: str, missing: str) -> CheckpointError:
    return CheckpointError(
        f"{name} has no {missing}, so there is nothing that says how it was made.",
        hint=f"Only what hubprune publish wrote can be reproduced. Compare it with its base: hubprune verify {name}",
    )


def _files_of_repo(
    name: str, revision: str | None, *, session: HubSession, reporter: Reporter
) -> tuple[Path, str, dict[str, str]]:
    """Fetch what is small and what is read; of a large file the Hub itself says the SHA-256."""
    repo = hub.find_repo(name, revision=revision, session=session)
    commit, paths = str(repo.commit), {file.path for file in repo.files}
    for needed in (MANIFEST, RECIPE):
        if needed not in paths:
            raise _not_published(name, needed)
    fetched = [
        file
        for file in repo.files
        if file.sha256 is None or file.path in READ_ALWAYS or file.path.startswith(f"{TASK_FOLDER}/")
    ]
    folder = download(fetched, repo_id=name, commit=commit, session=session, reporter=reporter)
    # The cache's folder of a commit may hold other files of it, so only those that were asked for are looked at.
    own = {file.path: hashlib.sha256((folder / file.path).read_bytes()).hexdigest() for file in fetched}
    return folder, commit, {file.path: file.sha256 or "" for file in repo.files} | own
