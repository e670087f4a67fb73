"""Read what a sweep is asked for: methods and numbers of drops."""

from __future__ import annotations

import re
from typing import get_args

from hubprune.core.artifacts import Ranking
from hubprune.core.errors import RecipeError

RANKINGS: tuple[Ranking, ...] = get_args(Ranking)
MOST_POINTS = 1000
_RANGE = re.compile(r"(\d{1,6})(?::(\d{1,6})(?::(\d{1,6}))?)?", re.ASCII)
_HINT = "Write it like --counts 0:12 (12 included), --counts 0:12:3 or --counts 0,2,4."


def parse_counts(text: str) -> tuple[int, ...]:
    """Read numbers of drops: single ones, ranges whose end is included, ranges with a step, or several by commas.

    Returns:
        The numbers, ascending and each once.  0, the base, is always among them: everything is compared with it.

    Raises:
        RecipeError: it is none of these, names nothing but 0, or far too many.
    """
    counts = {0}
    for part in text.split(","):
        found = _RANGE.fullmatch(part.strip())
        first, last, step = (int(group) if group else None for group in found.groups()) if found else (None,) * 3
        if first is None or step == 0 or (last is not None and last < first):
            raise RecipeError(f"--counts {text!r} is no list of numbers.", hint=_HINT)
        counts.update(range(first, (first if last is None else last) + 1, step or 1))
        if len(counts) > MOST_POINTS:
            raise RecipeError(f"--counts {text!r} is more than {MOST_POINTS} points.", hint=_HINT)
    if counts == {0}:
        raise RecipeError(f"--counts {text!r} drops nothing.", hint=_HINT)
    return tuple(sorted(counts))


def parse_methods(text: str) -> tuple[Ranking, ...]:
    """Read the names of methods, each once and in a fixed order.

    Raises:
        RecipeError: a name is unknown, or there is none.
    """
    names = {part.strip() for part in text.split(",") if part.strip()}
    known = ", ".join(RANKINGS)
    if unknown := sorted(names - set(RANKINGS)):
        raise RecipeError(f"There is no method {unknown[0]!r}.", hint=f"Methods: {known}.")
    if not names:
        raise RecipeError("--method names no method.", hint=f"Methods: {known}.")
    return tuple(ranking for ranking in RANKINGS if ranking in names)
