"""Options of `hubprune score` that may be lists, and the recipes that they stand for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hubprune.commands.options import SCORING
from hubprune.commands.recipes import make_recipe
from hubprune.core.errors import RecipeError

if TYPE_CHECKING:
    from hubprune.core.artifacts import StudyKind
    from hubprune.core.recipe import Recipe

STUDY = "Side by side (one of these may be a list)"
Revisions = Annotated[
    str | None,
    typer.Option(
        metavar="A,B,...",
        help="Score the base at several branches, tags or commits, as in step1000,step2000.",
        rich_help_panel=STUDY,
    ),
]
Calibrations = Annotated[
    str | None,
    typer.Option(
        "--calibration",
        metavar="A[,B,...]",
        help="`cosmopedia` (the default), `c4`, `codealpaca`, `mathinstruct`, `lima`, a .yaml with a mix, or a file "
        "of documents.  Several: scores side by side.",
        rich_help_panel=STUDY,
    ),
]
Samples = Annotated[
    str | None,
    typer.Option(
        "--num-samples",
        metavar="N[,N,...]",
        help="Calibration documents in all, or packed sequences. Default: the mix's own, 400 for cosmopedia.  Several: "
        "how stable the order is.",
        rich_help_panel=STUDY,
    ),
]
Plot = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Draw the scores as PNG and SVG into this folder.", rich_help_panel=SCORING),
]


@dataclass(frozen=True)
class Asked:
    """What a command asks to be scored."""

    kind: StudyKind | None
    """What varies; None for one pass and no study."""
    recipes: dict[str, Recipe]
    """Label -> recipe of every pass."""
    counts: tuple[int, ...] = ()
    """Numbers of samples, ascending, where these vary; the one pass takes the largest."""


def read_variants(given: Mapping[str, Any]) -> Asked:
    """Make the recipes of a score command, one per pass that it takes.

    Args:
        given: options by the names of their parameters, None where not given.

    Raises:
        RecipeError: more than one option is a list, or a value cannot be used.
    """
    revisions, mixes, counts = _names(given.get("revisions")), _mixes(given), _counts(given)
    asked = {
        "--revisions": given.get("revisions") is not None,
        "--calibration": len(mixes) > 1,
        "--num-samples": len(counts) > 1,
    }
    lists = [option for option, several in asked.items() if several]
    if len(lists) > 1:
        raise RecipeError(f"{' and '.join(lists)} are both lists.", hint="A study varies one thing: keep one of them.")
    one = {**given, "calibration": next(iter(mixes), None), "num_samples": max(counts, default=None)}
    if lists == ["--revisions"]:
        return Asked("revisions", _by_revision(one, revisions))
    if lists == ["--calibration"]:
        return Asked("calibration", _by_mix(one, mixes))
    recipe = {"scores": make_recipe(one)}
    return Asked("samples", recipe, tuple(sorted(counts))) if lists else Asked(None, recipe)


def _by_revision(given: Mapping[str, Any], revisions: Sequence[str]) -> dict[str, Recipe]:
    if given.get("base_revision") is not None:
        raise RecipeError("--revisions and --base-revision exclude each other.", hint="Pass one of them.")
    if not revisions:
        raise RecipeError("--revisions names no revision.", hint="Write it like --revisions step1000,step2000.")
    return {revision: make_recipe({**given, "base_revision": revision}) for revision in revisions}


def _by_mix(given: Mapping[str, Any], mixes: Sequence[str]) -> dict[str, Recipe]:
    """Label every recipe with the name of its mix, which holds no local path; equal names with what was asked for."""
    recipes = {mix: make_recipe({**given, "calibration": mix}) for mix in mixes}
    names = [recipe.calibration.name for recipe in recipes.values()]
    return {
        recipe.calibration.name if names.count(recipe.calibration.name) == 1 else mix: recipe
        for mix, recipe in recipes.items()
    }


def _mixes(given: Mapping[str, Any]) -> tuple[str, ...]:
    text = given.get("calibration")
    # The name of a file may have a comma in it.
    return (text,) if text is not None and Path(text).is_file() else _names(text)


def _counts(given: Mapping[str, Any]) -> tuple[int, ...]:
    text = given.get("num_samples")
    names = _names(text)
    if text is not None and not (names and all(name.isdecimal() and int(name) for name in names)):
        raise RecipeError(
            f"--num-samples {text!r} is neither a number of 1 or more nor a list of them.",
            hint="Write it like --num-samples 8,32,128.",
        )
    return tuple({int(name): None for name in names})


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in (text or "").split(",") if part.strip()))
