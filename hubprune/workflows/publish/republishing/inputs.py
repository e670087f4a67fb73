"""Collect what a run depends on, without computing anything and without a library that computes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from typing import Any

from hubprune import __version__
from hubprune.cards.fingerprint import CARD_PART, Fingerprint, card_part, sha256, snippet_part
from hubprune.core.architectures import Architecture
from hubprune.core.drop_spec import Settings
from hubprune.core.environment import library_versions
from hubprune.core.privacy import public_name, scrub, scrub_all
from hubprune.core.recipe import Recipe
from hubprune.pruning import modeling
from hubprune.pruning.calibration import file_hashes
from hubprune.workflows.card import CardChoices
from hubprune.workflows.run import Run

__all__ = ["MODELING_PART", "fingerprint", "modeling_part"]

MOVE_BYTES = ("huggingface_hub", "hf-xet")
"""Libraries that change nothing in what they carry."""
MODELING_PART = "modeling file"
"""The part that a refresh brings up to date without computing."""
SPEED = {"score_batch_size"}
"""Settings that change how long something takes and not what comes of it."""


def fingerprint(run: Run, *, repo_id: str, tagged: bool, choices: CardChoices) -> Fingerprint:
    """Say what a result depends on, part by part.

    The Hub is asked for the commits of the base and of all data sets; nothing else is read of them.

    Args:
        run: its recipe, its base.
        repo_id: of the result, which its card names.
        tagged: whether its card names a tag of its files.
        choices: what the author adds to the card.
    """
    recipe = run.recipe
    target = recipe.target
    parts = {
        "base": {"repo": run.base.name, "commit": str(run.base.commit)},
        "pruning": _settings(recipe.drop) | _width(recipe) | _ranking(run),
        "calibration": _calibration(run),
        "benchmarks": _benchmarks(run),
        "free text": _free_text(run),
        "speed": {} if choices.timed == "never" else {"timed": "yes"},
        "target": {
            "repo": repo_id,
            "tag": "named" if tagged else "not named",
            **_terms(target.license, target.allow_name),
        },
        "versions": {"hubprune": __version__, **_libraries()},
        MODELING_PART: modeling_part(run.architecture),
        "snippet": snippet_part(choices.template),
        "pictures": {"drawn": "yes" if find_spec("matplotlib") else "no"},
        CARD_PART: card_part(notes=choices.notes, templates=choices.template),
    }
    public: Fingerprint = scrub_all(parts)
    return public


def modeling_part(architecture: Architecture) -> dict[str, str]:
    """Say what the modeling file of a family depends on."""
    return {"template": sha256(modeling.render(architecture))}


def _settings(settings: Settings | None, *, without: frozenset[str] = frozenset()) -> dict[str, str]:
    """Write what was set, as JSON where it is no text."""
    values: Mapping[str, Any] = settings.model_dump(mode="json", exclude_defaults=True) if settings else {}
    return {name: _text(value) for name, value in values.items() if name not in without}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _width(recipe: Recipe) -> dict[str, str]:
    """Name the settings of narrower MLPs apart from those of the ranking, which has a metric of its own."""
    return {f"width {name}": value for name, value in _settings(recipe.width).items()}


def _joined(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Collect values by their names, in their order: two files of one name are both part of it."""
    values: dict[str, list[str]] = {}
    for name, value in pairs:
        values.setdefault(name, []).append(value)
    return {name: ", ".join(found) for name, found in values.items()}


def _ranking(run: Run) -> dict[str, str]:
    recipe = run.recipe
    return {
        "metric": recipe.metric,
        "schedule": recipe.schedule,
        "aggregation": recipe.aggregation,
        "layout": recipe.layout,
        "dtype": recipe.dtype,
        "seed": str(recipe.seed),
    }


def _terms(licence: str | None, allow_name: bool) -> dict[str, str]:  # noqa: FBT001
    return {**({"licence": licence} if licence else {}), **({"name": "allowed"} if allow_name else {})}


def _libraries() -> dict[str, str]:
    return {name: version for name, version in library_versions().items() if name not in MOVE_BYTES}


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


def _free_text(run: Run) -> dict[str, str]:
    spec = run.recipe.evaluation
    return {"prompts": sha256(_text(spec.prompt_texts())), "max_new_tokens": str(spec.max_new_tokens)}
