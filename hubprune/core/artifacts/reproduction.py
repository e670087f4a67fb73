"""Artifacts of `hubprune reproduce`: a published result beside what the same recipe gives again."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from hubprune.core.artifacts.artifact import Artifact
from hubprune.core.artifacts.environment import Environment

Scalar = str | int | float | bool | None
Outcome = Literal["equal", "differs", "nothing to compare", "not compared"]
"""`nothing to compare`: there never was such a part; `not compared`: it cannot be equal, and the detail says why."""


class Difference(Artifact):
    """One value that should be equal and is not."""

    place: str
    """Where in the JSON of its part, as in `mean.attn[3]`, or the path of a file."""
    published: Scalar
    """None where there is none."""
    found: Scalar
    """The reproduced value; of the manifest, what the published files really are."""


class ComparedPart(Artifact):
    """One part of a result."""

    name: str
    outcome: Outcome
    detail: str
    """How much was compared, or what is wrong in one sentence."""
    largest_difference: float | None = None
    """Between two numbers that should be equal; None where all numbers are."""
    differences: tuple[Difference, ...] = ()


class Reproduction(Artifact):
    """What is equal and what differs between a published result and the same run anew."""

    schema_version: Literal[1] = 1
    name: str
    """Folder or repo id, as it was asked for."""
    commit: str | None
    """Of the repo; None for a folder."""
    base: str
    base_commit: str
    equal: bool
    """Whether everything is that should be."""
    parts: tuple[ComparedPart, ...]
    causes: tuple[str, ...]
    """What differed from the published run and may be why; versions are named even where nothing came of it."""
    folder: str | None = None
    """Where the reproduced files are; None where they were equal and not asked for."""
    environment: Environment
    """Where it was reproduced."""
    seconds: dict[str, float] = Field(default_factory=dict)
    """Wall-clock seconds per stage."""
