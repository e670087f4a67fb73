"""What is asked of Hugging Face Jobs: the command, the machine, and the recipe in the job's environment."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from hubprune import __version__
from hubprune.core.endpoint import DEFAULT_ENDPOINT
from hubprune.core.errors import RecipeError
from hubprune.core.privacy import is_local_data
from hubprune.core.recipe import Recipe

__all__ = ["HERE_ONLY", "JobOrder", "Machine", "refuse_local"]

IMAGE = "ghcr.io/astral-sh/uv:python3.12-bookworm"
"""The client's own image for jobs of uv; torch brings its CUDA libraries along."""
RECIPE_VARIABLE = "HUBPRUNE_RECIPE"
LABEL = "hubprune-job"
"""Label by which a job is found again whose answer was lost."""
LONGEST_RECIPE = 64_000
"""Bytes; an environment variable of Linux holds twice as much."""
HERE_ONLY: Mapping[str, str] = {
    "notes": "--notes", "card_template": "--card-template", "out": "--out", "report": "--report",
}  # fmt: skip
"""Options that name files of this machine."""
UNFIT_FOR_NAMES = re.compile(r"[^A-Za-z0-9_-]")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where a job runs, and for how long at most."""

    flavor: str
    """As `hf jobs hardware` lists them."""
    timeout: str = "12h"
    """A number with s, m, h or d; the job is ended after it."""
    namespace: str | None = None
    """Who runs and pays the job; None for the user whose token it is."""
    requirement: str = f"hubprune[plots]=={__version__}"
    """What uv installs in the job: this very version, as a rule."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\d+(\.\d+)?[smhd]?", self.timeout):
            raise RecipeError(f"--timeout {self.timeout!r} is no time span.", hint="Write it like 90m, 12h or 1d.")


@dataclass(frozen=True, kw_only=True)
class JobOrder:
    """One job, ready to be sent."""

    recipe: Recipe
    """With the full name of its target, which does not depend on whose token the job has."""
    machine: Machine
    flags: tuple[str, ...]
    """Further options of `hubprune publish`, such as --overwrite-card."""
    run_id: str
    """Tells this order from all others."""
    endpoint: str

    @property
    def command(self) -> list[str]:
        """The command of the job: write the recipe, then publish by it."""
        publish = shlex.join(["hubprune", "publish", "--recipe", "recipe.yaml", *self.flags])
        install = shlex.join(["uv", "run", "--no-project", "--with", self.machine.requirement])
        return ["bash", "-euc", f"printf '%s' \"${RECIPE_VARIABLE}\" > recipe.yaml; exec {install} {publish}"]

    @property
    def environment(self) -> dict[str, str]:
        """The variables of the job, which anybody who may see the job can read: there is no token among them."""
        elsewhere = {"HF_ENDPOINT": self.endpoint} if self.endpoint != DEFAULT_ENDPOINT else {}
        return {RECIPE_VARIABLE: self.recipe.to_yaml(), "HF_HUB_DISABLE_PROGRESS_BARS": "1", **elsewhere}

    @property
    def name(self) -> str:
        """A name for the list of jobs."""
        return UNFIT_FOR_NAMES.sub("-", f"hubprune-{str(self.recipe.target.repo_id).split('/')[-1]}")

    @property
    def labels(self) -> dict[str, str]:
        """By which the job can be found."""
        return {LABEL: self.run_id, "hubprune": UNFIT_FOR_NAMES.sub("-", __version__)}


def refuse_local(recipe: Recipe, given: Mapping[str, object]) -> None:
    """Refuse what only this machine has: the job could not find it.

    Args:
        recipe: what is asked for.
        given: options of the command by the names of their parameters.

    Raises:
        RecipeError: with the first such thing.
    """
    for what in _local(recipe, given):
        raise RecipeError(
            f"{what} is on this machine, and the job runs on another.",
            hint="Put the data on the Hub and name it there, or run without --on.",
        )
    if len(recipe.to_yaml().encode()) > LONGEST_RECIPE:
        raise RecipeError("The recipe is too long for a job's environment.", hint="Shorten its prompts.")


def _local(recipe: Recipe, given: Mapping[str, object]) -> Iterator[str]:
    for name, option in HERE_ONLY.items():
        if given.get(name) is not None:
            yield f"What {option} names"
    if recipe.evaluation.include_path:
        yield f"The folder of tasks {recipe.evaluation.include_path}"
    if recipe.needs_scores:
        yield from (
            f"The calibration file {subset.dataset}"
            for subset in recipe.calibration.subsets
            if is_local_data(subset.dataset)
        )
