"""What a publish depends on, collected without computing anything, beside what the last one left on its branch.

From the moment that it was sent until it was loaded back, a mark in the work folder says so, in case it is killed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hubprune import __version__
from hubprune.cards.card import CARD_PART, Change, Fingerprint, card_part, changes, sha256, snippet_part, told
from hubprune.cards.manifest import CARD, MANIFEST, PublishRecord, parse_record
from hubprune.core import templates
from hubprune.core.architectures import Architecture
from hubprune.core.console import Reporter
from hubprune.core.devices import library_versions
from hubprune.core.errors import CheckpointError, RecipeError
from hubprune.core.files import key_of, write_atomically
from hubprune.core.privacy import public_name, scrub, scrub_all
from hubprune.core.specs import Settings
from hubprune.hub.remote import RemoteState, is_same, read_remote
from hubprune.hub.session import HubSession
from hubprune.hub.target import Target
from hubprune.pruning.calibration import file_hashes
from hubprune.workflows.card import CardChoices
from hubprune.workflows.run import Run

MOVE_BYTES = ("huggingface_hub", "hf-xet")
"""Libraries that change nothing in what they carry."""
MODELING_PART = "modeling file"
"""The part that a refresh brings up to date without computing."""


def fingerprint(run: Run, *, repo_id: str, tagged: bool, choices: CardChoices) -> Fingerprint:
    """Say what a result depends on, part by part.

    The Hub is asked for the commits of the base and of all data sets; nothing else is read of them.

    Args:
        run: its recipe, its base.
        repo_id: of the result, which its card names.
        tagged: whether its card names a tag of its files.
        choices: what the author adds to the card.
    """
    recipe, target, texts = run.recipe, run.recipe.target, run.recipe.evaluation
    libraries = {name: version for name, version in library_versions().items() if name not in MOVE_BYTES}
    parts = {
        "base": {"repo": run.base.name, "commit": str(run.base.commit)},
        "pruning": {
            **_settings(recipe.drop),
            # The settings of narrower MLPs have names of their own: a metric is among them, too.
            **{f"width {name}": value for name, value in _settings(recipe.width).items()},
            "metric": recipe.metric,
            "schedule": recipe.schedule,
            "aggregation": recipe.aggregation,
            "layout": recipe.layout,
            "dtype": recipe.dtype,
            "seed": str(recipe.seed),
        },
        "calibration": _calibration(run),
        "benchmarks": _benchmarks(run),
        "free text": {"prompts": sha256(_text(texts.prompt_texts())), "max_new_tokens": str(texts.max_new_tokens)},
        "speed": {} if choices.timed == "never" else {"timed": "yes"},
        "target": {
            "repo": repo_id,
            "tag": "named" if tagged else "not named",
            **({"licence": target.license} if target.license else {}),
            **({"name": "allowed"} if target.allow_name else {}),
        },
        "versions": {"hubprune": __version__, **libraries},
        MODELING_PART: modeling_part(run.architecture),
        "snippet": snippet_part(choices.template),
        "pictures": {"drawn": "yes" if find_spec("matplotlib") else "no"},
        CARD_PART: card_part(notes=choices.notes, templates=choices.template),
    }
    public: Fingerprint = scrub_all(parts)
    return public


def modeling_part(architecture: Architecture) -> dict[str, str]:
    """Say what the modeling file of a family depends on."""
    return {"template": sha256(templates.modeling_code(architecture))}


def _settings(settings: Settings | None, *, without: frozenset[str] = frozenset()) -> dict[str, str]:
    """Write what was set, as JSON where it is no text."""
    values: Mapping[str, Any] = settings.model_dump(mode="json", exclude_defaults=True) if settings else {}
    return {name: _text(value) for name, value in values.items() if name not in without}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _joined(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Collect values by their names, in their order: two files of one name are both part of it."""
    values: dict[str, list[str]] = {}
    for name, value in pairs:
        values.setdefault(name, []).append(value)
    return {name: ", ".join(found) for name, found in values.items()}


def _calibration(run: Run) -> dict[str, str]:
    """Name mix, data sets and files; how a revision was spelled changes nothing, its commit does."""
    mix = run.recipe.calibration
    if not run.recipe.needs_scores:
        return {}
    subsets = [
        {**subset.model_dump(mode="json", exclude={"revision"}), "dataset": public_name(subset.dataset)}
        for subset in mix.subsets
    ]
    pairs = zip(mix.subsets, run.data_commits, strict=True)
    commits = _joined((f"data set {subset.dataset}", commit) for subset, commit in pairs if commit)
    files = _joined((f"file {public_name(path)}", digest) for path, digest in file_hashes(mix).items())
    asked = mix.model_dump(mode="json", include={"name", "num_samples", "max_tokens", "packed", "shuffle_buffer"})
    return {name: _text(value) for name, value in asked.items()} | {"subsets": sha256(_text(subsets))} | commits | files


def _benchmarks(run: Run) -> dict[str, str]:
    """Name tasks, their settings, files and data sets."""
    spec = run.recipe.evaluation
    if not spec.tasks:
        return {}
    own = {"include_path", "prompts", "max_new_tokens", "tasks"}
    files = {f"file {name}": sha256(scrub(text)) for name, text in run.task_texts.items()}
    data = {f"data set {name}": state for name, state in _data(run).items()}
    return {"tasks": ",".join(spec.tasks)} | _settings(spec, without=frozenset(own)) | files | data


def _data(run: Run) -> dict[str, str]:
    """Name the state of every data set: a commit, or the SHA-256 of local files, whose times mean nothing."""
    from hubprune.evaluation.sources import is_commit
    from hubprune.evaluation.tasks import local_data

    sources = run.task_sources
    hub = {public_name(name): state or "not known" for name, state in sources.items() if not state or is_commit(state)}
    return hub | (_joined(local_data(run.recipe.evaluation)) if len(hub) < len(sources) else {})


# ---- before --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Before:
    """A repo as the last publish left it, beside the fingerprint of this one."""

    remote: RemoteState
    record: PublishRecord
    changes: tuple[Change, ...]
    """What a publish depends on and is another now."""
    strays: tuple[str, ...]
    """Files that are not there as they were published; the card is not among them."""

    @property
    def is_up_to_date(self) -> bool:
        """Whether nothing is left to do."""
        return self.only_the_card and not self.changes and self._card_is_as_written

    @property
    def only_the_card(self) -> bool:
        """Whether at most the card has to be rendered again."""
        return not self.strays and all(change.part == CARD_PART for change in self.changes)

    @property
    def _card_is_as_written(self) -> bool:
        listed = self.record.files.get(CARD)
        return listed is not None and listed.sha256 == self.remote.card_sha256

    @property
    def told(self) -> str:
        """What changed, in one line."""
        strays = f"not as published: {', '.join(self.strays)}" if self.strays else ""
        edited = "" if self._card_is_as_written else f"{CARD} was edited by hand"
        return "; ".join(filter(None, (told(self.changes), strays, edited)))


def last_publish(target: Target, now: Fingerprint, *, session: HubSession, reporter: Reporter) -> Before | None:
    """Look at the branch that a publish goes to; None where nothing there can be compared.

    Args:
        target: from the preflight.
        now: what this publish depends on.
        session: which Hub.
        reporter: told of a manifest that is of no use.
    """
    if not target.branch_exists or target.parent is None:
        return None
    return publish_at(target.parent, target, now, session=session, reporter=reporter)


def publish_at(
    commit: str, target: Target, now: Fingerprint, *, session: HubSession, reporter: Reporter
) -> Before | None:
    """Look at a commit of the target's repo; None where nothing there can be compared.

    Args:
        commit: 40 hex digits.
        target: from the preflight.
        now: what this publish depends on.
        session: which Hub.
        reporter: told of a manifest that is of no use.
    """
    remote = read_remote(target.repo_id, commit=commit, session=session)
    if remote.manifest is None:
        return None
    try:
        record = parse_record(remote.manifest.data, where=f"{MANIFEST} of {target.repo_id}")
    except (CheckpointError, RecipeError) as error:
        reporter.note(f"everything is run: {error.message}")
        return None
    strays = (path for path, file in record.files.items() if path != CARD and not is_same(file, remote.files.get(path)))
    return Before(
        remote=remote, record=record, changes=changes(record.report.fingerprint, now), strays=tuple(sorted(strays))
    )


# ---- unfinished ----------------------------------------------------------------------------------------------------


class Unfinished:
    """A mark in the work folder, from the moment before a commit until its result was loaded back."""

    def __init__(self, work_folder: Path, target: Target, *, endpoint: str) -> None:
        self._path = work_folder / "unfinished" / key_of(endpoint, target.repo_id, target.revision, target.create_pr)

    def begin(self) -> None:
        """Set the mark."""
        write_atomically(self._path, "")

    def end(self) -> None:
        """Take it away."""
        self._path.unlink(missing_ok=True)

    def __bool__(self) -> bool:
        """Tell whether an earlier run did not come to its end."""
        return self._path.exists()
