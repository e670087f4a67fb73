"""Keep tokens, home folders and local paths out of everything that is published."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from hubprune.core.artifacts import BaseCheckpoint
from hubprune.core.recipe import Recipe

__all__ = ["TASK_FOLDER", "is_local_data", "public_name", "public_recipe", "scrub", "scrub_all"]

TASK_FOLDER = "tasks"
"""Folder of a published repo that holds the task YAMLs of `include_path`."""

TOKEN = re.compile(
    r"(?:hf|api_org)_[A-Za-z0-9]{16,}"
    r"|hf_(?:jwt|oauth)_[\w.-]{16,}"  # of trusted publishers, and of a login in the browser
    r"|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]+",  # the identity that a job shows
    re.ASCII,
)
"""Wherever it begins: a token that is stuck to the word before it is still one."""
LOCAL_DATA = (".jsonl", ".json", ".parquet", ".txt", ".csv")


def scrub(text: str) -> str:
    """Replace access tokens, and the home folder by `~`."""
    text = TOKEN.sub("hf_…", text)
    home = os.path.expanduser("~")  # noqa: PTH111, pathlib raises where a user has none
    return re.sub(re.escape(home) + r"(?=[/\\\s:'\"]|$)", "~", text) if len(home) > 1 else text


def scrub_all(value: Any) -> Any:
    """Scrub every string in a JSON value."""
    if isinstance(value, str):
        return scrub(value)
    if isinstance(value, Mapping):
        return {scrub(key): scrub_all(item) for key, item in value.items()}
    return [scrub_all(item) for item in value] if isinstance(value, (list, tuple)) else value


def is_local_data(dataset: str) -> bool:
    """Return whether a calibration data set is a file on this machine, by the rule of the recipe."""
    return dataset.endswith(LOCAL_DATA) or dataset.startswith(("/", "~", ".")) or "\\" in dataset


def public_name(dataset: str) -> str:
    """Return the name that a data set is published under: a local file keeps its file name only."""
    return PurePath(dataset.replace("\\", "/")).name if is_local_data(dataset) else dataset


def public_recipe(recipe: Recipe, *, base: BaseCheckpoint) -> Recipe:
    """Return the recipe as it is published: the base pinned to its commit, and names instead of local paths.

    The target keeps its name and loses its namespace and what follows a publish, so that whoever runs the recipe
    publishes as themselves.
    """
    calibration = recipe.calibration
    subsets = tuple(s.model_copy(update={"dataset": public_name(s.dataset)}) for s in calibration.subsets)
    tasks = TASK_FOLDER if recipe.evaluation.include_path else None
    name = (recipe.target.repo_id or "").rsplit("/", 1)[-1] or None
    target = {"repo_id": name, "create_pr": False, "staged": False, "collection": None, "supersedes": None}
    pinned = {"repo_id": base.name, "revision": base.commit or recipe.base.revision}
    return recipe.model_copy(
        update={
            "base": recipe.base.model_copy(update=pinned),
            "calibration": calibration.model_copy(update={"subsets": subsets}),
            "evaluation": recipe.evaluation.model_copy(update={"include_path": tasks}),
            "target": recipe.target.model_copy(update=target),
        }
    )
