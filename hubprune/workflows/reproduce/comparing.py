"""Read what was published, with the SHA-256 that every file really has, and compare it with the same run anew."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hubprune.cards.manifest import CARD, MANIFEST, NOT_LISTED, RECIPE, content_digest, read_manifest
from hubprune.cards.markdown import refuse_unsafe
from hubprune.cards.provenance import without_times
from hubprune.cards.records import parse_sibling
from hubprune.core.artifacts import ComparedPart, Difference, RuntimeComparison, Scalar, SiblingReport, SpeedReport
from hubprune.core.console import Reporter
from hubprune.core.devices import LIBRARIES
from hubprune.core.errors import CheckpointError, RecipeError
from hubprune.core.files import existing_folder, list_files
from hubprune.core.privacy import TASK_FOLDER
from hubprune.core.recipe import REPO_ID, Recipe, read_recipe
from hubprune.core.strict import parse_json
from hubprune.hub import repos as hub
from hubprune.hub.session import HubSession
from hubprune.hub.transfer import download

READ_ALWAYS = (MANIFEST, RECIPE, CARD)
Values = Mapping[str, Any]
CLOCKED = frozenset({"seconds", "self_check", "batch_size", "device", "lm_eval", "transformers", "runtimes"})
"""Keys whose values tell where a run took place, or how much memory there was, and not what came of it."""
WHERE_RUN = ("Hardware", "Platform", "hubprune", "Python", "Training time", "Libraries", *LIBRARIES)
"""Rows of the card's table that do the same."""
SHOWN = 200
"""Characters of a list or mapping that stands where something else was expected."""

# ---- what was published ------------------------------------------------------------------------------------------


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
    def runtimes(self) -> RuntimeComparison | None:
        """What other runtimes made of it, which a card of the same run anew takes over: this machine may have none."""
        seen = self.manifest.get("verification")
        try:
            return RuntimeComparison.model_validate(seen.get("in_runtimes") if isinstance(seen, Mapping) else None)
        except ValidationError:
            return None

    @property
    def sibling(self) -> SiblingReport | None:
        """What it says of itself where it is one; None for a pruned repo."""
        if not isinstance(self.manifest.get("sibling"), dict):
            return None
        return parse_sibling(json.dumps(self.manifest).encode(), where=f"{MANIFEST} of {self.name}").report

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
        name=name, commit=commit, folder=folder, manifest=manifest, recipe=recipe,
        files={path: sha256 for path, sha256 in files.items() if not path.startswith(NOT_LISTED)},
    )  # fmt: skip


def _not_published(name: str, missing: str) -> CheckpointError:
    return CheckpointError(
        f"{name} has no {missing}, so there is nothing that says how it was made.",
        hint=f"Only what hubprune publish wrote can be reproduced. Compare it with its base: hubprune verify {name}",
    )


def _files_of_repo(
    name: str, revision: str | None, *, session: HubSession, reporter: Reporter
) -> tuple[Path, str, dict[str, str]]:
    """Fetch what is small and what is read; of a large file the Hub itself says the SHA-256."""
    repo = hub.find_repo(name, revision=revision, session=session, needs_config=False)
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


# ---- part by part, pure ------------------------------------------------------------------------------------------


def compare(published: Published, *, values: Values, files: Mapping[str, str], card: bytes) -> tuple[ComparedPart, ...]:
    """Compare all parts of a published result.

    The same run anew gave the manifest `values`, `files` as path -> SHA-256, and the README.md `card`.
    """
    ours, theirs = values, published.manifest
    refreshed = bool(theirs.get("refreshed"))
    parts = [
        _manifest_part(published),
        _json_part("recipe", theirs.get("recipe"), ours.get("recipe"), unit="settings"),
        _json_part("scores", theirs.get("scores"), ours.get("scores")),
        _json_part("plan", theirs.get("plan"), ours.get("plan")),
        _files_part(published.files, files),
        _json_part("checkpoint", _checkpoint(theirs), _checkpoint(ours)),
        _json_part("benchmarks", theirs.get("benchmarks"), ours.get("benchmarks")),
        *([_json_part("sibling", theirs.get("sibling"), ours.get("sibling"))] if theirs.get("sibling") else []),
        _json_part("free text", _texts(theirs, refreshed=refreshed), _texts(ours, refreshed=refreshed)),
    ]
    if theirs.get("speed") is not None:
        detail = "times of two runs do not compare: the card takes over what was published"
        parts.append(ComparedPart(name="speed", outcome="not compared", detail=detail))
    if published.runtimes:
        detail = "this machine may have none of them: the card takes over what was published"
        parts.append(ComparedPart(name="other runtimes", outcome="not compared", detail=detail))
    return (*parts, _card_part(published, card=card, templates=ours.get("card_templates")))


# ---- values ------------------------------------------------------------------------------------------------------


def differences(published: Any, found: Any, *, place: str = "") -> Iterator[Difference]:
    """Yield every value in which two JSON values differ; a key that is absent is as good as one that holds null."""
    if isinstance(published, Mapping) and isinstance(found, Mapping):
        for key in sorted({*published, *found} - CLOCKED):
            yield from differences(published.get(key), found.get(key), place=f"{place}.{key}" if place else key)
    elif isinstance(published, list) and isinstance(found, list):
        if len(published) != len(found):
            yield Difference(place=f"number of {place}", published=len(published), found=len(found))
        for index, pair in enumerate(zip(published, found, strict=False)):
            label = str(index)  # from 0, as of layers; what has a name is called by what it is about
            if isinstance(pair[0], Mapping) and isinstance(task := pair[0].get("task"), str):
                label = f"{task} {pair[0].get('metric')}"
            yield from differences(*pair, place=f"{place}[{label}]")
    elif published != found or isinstance(published, bool) != isinstance(found, bool):
        yield Difference(place=place, published=_scalar(published), found=_scalar(found))


def _scalar(value: Any) -> Scalar:
    if value is None or isinstance(value, str | int | float | bool):
        return value
    text = json.dumps(value, sort_keys=True)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def _count(value: Any) -> int:
    if isinstance(value, Mapping):
        return sum(_count(item) for key, item in value.items() if key not in CLOCKED)
    return sum(map(_count, value)) if isinstance(value, list) else 1


def _json_part(name: str, published: Any, found: Any, *, unit: str = "values") -> ComparedPart:
    if published is None and found is None:
        return ComparedPart(name=name, outcome="nothing to compare", detail="the recipe asks for none")
    seen = tuple(differences(published, found))
    if not seen:
        return ComparedPart(name=name, outcome="equal", detail=f"{_count(published):,} {unit}")
    gaps = []
    for row in seen:
        pair = [v for v in (row.published, row.found) if isinstance(v, int | float) and not isinstance(v, bool)]
        gaps += [(abs(pair[0] - pair[1]), row.place)] if len(pair) == 2 else []
    largest = max(gaps, default=None, key=lambda gap: gap[0])
    told = f", numbers by {largest[0]:.3g} at most ({largest[1]})" if largest else ""
    return ComparedPart(
        name=name,
        outcome="differs",
        detail=f"{len(seen):,} of {_count(published):,} {unit} differ{told}",
        largest_difference=largest[0] if largest else None,
        differences=seen,
    )


def _checkpoint(values: Values) -> Any:
    """Take the figures of the checkpoint, and what a fresh process counted in it."""
    seen, counted = values.get("verification"), ("parameters", "cache_bytes", "cache_tokens")
    verified = {key: seen.get(key) for key in counted} if isinstance(seen, Mapping) else None
    # Which files there are is compared by itself, and manifests of the first version do not say it here.
    figures = {key: value for key, value in _mapping(values.get("checkpoint")).items() if key != "files"}
    return {"figures": figures or None, "verified": verified}


def _texts(values: Values, *, refreshed: bool) -> Any:
    """Take the free text, and what the card's code printed, which was run on the files before a refresh."""
    generation, snippet = values.get("generation"), values.get("snippet")
    printed = snippet.get("output") if isinstance(snippet, Mapping) and not refreshed else None
    return {"free text": generation, "printed by the card's code": printed} if generation or printed else None


# ---- files -------------------------------------------------------------------------------------------------------


def _manifest_part(published: Published) -> ComparedPart:
    """Compare the manifest with itself and with the files beside it: no run is needed for that."""
    claimed = read_manifest(json.dumps(published.manifest).encode())
    digest, told = content_digest(published.manifest), []
    seen = list(_other_files(claimed.files, published.files))
    if claimed.content_sha256 != digest:
        told.append(f"{MANIFEST} was edited after it was written")
    if wrong := [row.place for row in seen]:
        told.append(f"the files beside it are others: {', '.join(wrong)}")
    if claimed.content_sha256 != digest:
        seen.insert(0, Difference(place="content_sha256", published=claimed.content_sha256, found=digest))
    detail = "; ".join(told) or f"as it was written, and {len(claimed.files)} files have their SHA-256"
    return ComparedPart(name="manifest", outcome="differs" if seen else "equal", detail=detail, differences=tuple(seen))


def _files_part(published: Mapping[str, str], found: Mapping[str, str]) -> ComparedPart:
    """Compare the SHA-256 of all files but the two that name the machine, whose parts are compared by themselves."""
    kept = [{path: sha for path, sha in files.items() if path not in (CARD, MANIFEST)} for files in (published, found)]
    seen = tuple(_other_files(*kept))
    detail = f"{len(kept[0])} files have the same SHA-256"
    if seen:
        detail = f"{len(seen)} of {len(kept[0])} files differ: {', '.join(row.place for row in seen)}"
    return ComparedPart(name="files", outcome="differs" if seen else "equal", detail=detail, differences=seen)


def _other_files(published: Mapping[str, str], found: Mapping[str, str]) -> Iterator[Difference]:
    for path in sorted({*published, *found}):
        if published.get(path) != found.get(path):
            yield Difference(place=path, published=published.get(path), found=found.get(path))


def _card_part(published: Published, *, card: bytes, templates: Any) -> ComparedPart:
    name, theirs = CARD, published.manifest.get("card_templates")
    if theirs != templates:
        detail = "it was rendered from other templates, which are not published: --card-template FOLDER names a copy"
        return ComparedPart(name=name, outcome="not compared", detail=detail)
    if published.manifest.get("refreshed"):  # what was measured was measured with other files
        detail = "it tells of a refresh, and of what was measured with the files before"
        return ComparedPart(name=name, outcome="not compared", detail=detail)
    lost, new = (_only(a, b) for a, b in ((published.card, card), (card, published.card)))
    detail = "the same but for times, machine and versions"
    if lost or new:
        detail = f"{max(len(lost), len(new))} lines differ, times, machine and versions left aside"
    rows = [lost + [None] * (len(new) - len(lost)), new + [None] * (len(lost) - len(new))]
    seen = tuple(Difference(place="line", published=a, found=b) for a, b in zip(*rows, strict=True))
    return ComparedPart(name=name, outcome="differs" if seen else "equal", detail=detail, differences=seen)


def _only(card: bytes, other: bytes) -> list[Scalar]:
    """List the lines that a card has and another has not, in order, without those that tell where a run took place."""
    rows = tuple(f"| {name} |" for name in WHERE_RUN)
    own, others = (without_times(text).decode(errors="replace").splitlines() for text in (card, other))
    left = Counter(others)
    only: list[Scalar] = []
    for line in own:
        left[line] -= 1
        if left[line] < 0 and not line.replace("\\", "").startswith(rows):
            only.append(line)
    return only


# ---- causes ------------------------------------------------------------------------------------------------------


def causes(published: Values, found: Values, *, machine: str, parts: Iterable[ComparedPart]) -> tuple[str, ...]:
    """Name what differs between two runs and may be why their results do.

    Both come as manifests; `machine` is where the second one took place.
    """
    named = list(_different(published, found))
    differing = {part.name for part in parts if part.outcome == "differs"}
    if differing - {"manifest", CARD} and not named:
        named.append(f"no version differs: it may be the machine, which is {machine} here; the card names the other")
    return tuple(named)


def _different(published: Values, found: Values) -> Iterator[str]:
    """Name versions, data and files that two runs do not share."""
    theirs, ours = ({"hubprune": m.get("hubprune"), **_mapping(m.get("versions"))} for m in (published, found))
    for name in ("hubprune", *sorted({*theirs, *ours} - {"hubprune"})):
        if theirs.get(name) != ours.get(name):
            yield f"{name} {ours.get(name) or 'is missing'} instead of {theirs.get(name) or 'none'}"
    if published.get("card_templates") != found.get("card_templates"):
        yield "other card templates"
    devices = [str(_mapping(values.get("scores")).get("device")) for values in (published, found)]
    if devices[0] != devices[1]:
        yield f"scored on {devices[1]} instead of {devices[0]}"
    if any(row.place.endswith(".token_sha256") for row in differences(published.get("scores"), found.get("scores"))):
        yield "other calibration texts: their token ids have another SHA-256"
    yield from dict.fromkeys(
        f"the data set of {row.place.partition('[')[2].rsplit(' ', 1)[0]} is at commit {row.found} instead of "
        f"{row.published}"
        for row in differences(published.get("benchmarks"), found.get("benchmarks"))
        if row.place.endswith(".dataset_commit")
    )
    for part in ("benchmarks", "generation"):
        days = [_mapping(_mapping(values.get(part)).get("chat")).get("date") for values in (published, found)]
        if days[0] != days[1]:
            told = {"benchmarks": "benchmarks", "generation": "free text"}[part]
            yield f"the chat template wrote another day into the prompts of {told}: {days[1]} instead of {days[0]}"
    refreshed = published.get("refreshed")
    first = refreshed[0] if isinstance(refreshed, list) and refreshed else None
    if isinstance(first, Mapping):
        yield (
            f"the repo was refreshed: it was measured with the files of hubprune {first.get('from_version')} at"
            f" {first.get('tag') or first.get('commit')}"
        )


def _mapping(values: Any) -> Values:
    return values if isinstance(values, Mapping) else {}
