"""What a sweep is asked for, and its points: nested sets of drops, the lowest scores first."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, get_args

from hubprune.core.artifacts import DropPlan, LayerScores, Metric, Ranking, SweepOrder
from hubprune.core.errors import PlanError, RecipeError
from hubprune.core.files import check_new_folder, make_writable
from hubprune.core.recipe import parse
from hubprune.core.requests import SweepRequest
from hubprune.core.specs import DropSpec
from hubprune.pruning.layouts import require_every_kind
from hubprune.pruning.selection import NOUNS, Shape, check_request, make_plan

RANKINGS: tuple[Ranking, ...] = get_args(Ranking)
MOST_POINTS = 1000
MOST_TRIED = 12
"""Largest count of the default, and of a publish that looks for its number."""
_RANGE = re.compile(r"(\d{1,6})(?::(\d{1,6})(?::(\d{1,6}))?)?", re.ASCII)
_HINT = "Write it like --counts 0:12 (12 included), --counts 0:12:3 or --counts 0,2,4."
REPORT = "sweep.json"


def parse_counts(given: str | Sequence[int]) -> tuple[int, ...]:
    """Read numbers of drops: single ones, ranges whose end is included, ranges with a step, or several by commas.

    Returns:
        The numbers, ascending and each once.  0, the base, is always among them: everything is compared with it.

    Raises:
        RecipeError: it is none of these, names nothing but 0, or far too many.
    """
    counts, text = {0}, given if isinstance(given, str) else ",".join(map(str, given))
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


def parse_methods(given: str | Sequence[str]) -> tuple[Ranking, ...]:
    """Read the names of methods, each once and in a fixed order.

    Raises:
        RecipeError: a name is unknown, or there is none.
    """
    names = {part.strip() for part in (given.split(",") if isinstance(given, str) else given)} - {""}
    known = ", ".join(RANKINGS)
    if unknown := sorted(names - set(RANKINGS)):
        raise RecipeError(f"There is no method {unknown[0]!r}.", hint=f"Methods: {known}.")
    if not names:
        raise RecipeError("--method names no method.", hint=f"Methods: {known}.")
    return tuple(ranking for ranking in RANKINGS if ranking in names)


def drop_spec(method: Ranking, count: int, *, protect: tuple[int, ...]) -> DropSpec:
    """Return the request for so many drops of one method; of 0 it asks for nothing."""
    return parse(DropSpec, {"protect": protect, **({f"{method}_drop": count} if count else {})})


def check_counts(request: SweepRequest, shape: Shape, *, protect: tuple[int, ...]) -> None:
    """Refuse counts that a method cannot drop; needs no scores.

    Raises:
        PlanError: with the most that it can.
    """

    last = parse_counts(request.counts)[-1]
    for method in parse_methods(request.method):
        if (most := most_that_fit(method, last, shape, protect=protect)) < last:
            raise too_many(method, last, most, shape.text)


def most_that_fit(method: Ranking, last: int, shape: Shape, *, protect: tuple[int, ...]) -> int:
    """Return the largest count up to `last` that a method can drop; needs no scores."""

    def fits(count: int) -> bool:
        """Tell whether it can drop so many."""
        try:
            check_request(drop_spec(method, count, protect=protect), shape)
        except PlanError:
            return False
        return True

    return next((n for n in range(last, 0, -1) if fits(n)), 0)


def too_many(method: Ranking, count: int, most: int, text: str) -> PlanError:
    """Make the error for a count that is beyond what a method can drop."""
    hint = f"Pass --counts 0:{most} or less for --method {method}." if most else f"Leave {method} out of --method."
    return PlanError(f"Cannot drop {count} {NOUNS[method]}: {text}, and {most} of them can go.", hint=hint)


def check_measures(request: SweepRequest, tasks: tuple[str, ...]) -> None:
    """Refuse a sweep that measures nothing.

    Raises:
        RecipeError: it does.
    """
    if not tasks and not request.perplexity and not request.speed:
        raise RecipeError("There is nothing to measure.", hint="Pass --tasks, --perplexity FILE or --speed.")


def check_out(folder: Path | None) -> None:
    """Make sure that the result can be written: into a new folder, or over an earlier sweep.

    Raises:
        RecipeError: the folder holds something else, or cannot be written.
    """
    if folder is None:
        return
    if not (folder / REPORT).is_file():
        check_new_folder(folder)
    make_writable(folder)


@dataclass(frozen=True)
class Point:
    """So many drops of one method."""

    method: Ranking
    count: int
    plan: DropPlan


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """What the order of drops comes from."""

    shape: Shape
    scores: LayerScores | None
    metric: Metric
    seed: int
    protect: tuple[int, ...]
    config: Mapping[str, Any]
    """The base's config.json."""

    def plan(self, method: Ranking, count: int) -> DropPlan:
        """Make the plan of a point.

        Raises:
            PlanError: the base cannot do without these.
        """
        spec = drop_spec(method, count, protect=self.protect)
        plan = make_plan(spec, self.scores, self.shape, metric=self.metric, seed=self.seed)
        require_every_kind(plan, self.config)
        return plan

    def can_drop(self, method: Ranking, count: int) -> bool:
        """Tell whether the base can do without so many."""
        try:
            self.plan(method, count)
        except PlanError:
            return False
        return True


def make_points(request: SweepRequest, ranked: Ranked) -> tuple[Point, ...]:
    """Make all points, method by method; each drops what the one before drops, and more.

    Raises:
        PlanError: a count leaves no attention or MLP of some kind; the message names the most that can go.
    """
    made: list[Point] = []
    for method, count in product(parse_methods(request.method), parse_counts(request.counts)):
        try:
            made.append(Point(method, count, ranked.plan(method, count)))
        except PlanError as error:
            most = next(n for n in range(count - 1, -1, -1) if ranked.can_drop(method, n))
            hint = too_many(method, count, most, "").hint
            raise PlanError(f"{method}, {count} drops: {error.message}", hint=hint) from error
    return tuple(made)


def order_of(points: Sequence[Point], method: Ranking) -> SweepOrder:
    """Return the order in which a method drops, as far as the sweep goes."""
    last = max((point for point in points if point.method == method), key=lambda point: point.count)
    return SweepOrder(method=method, dropped=last.plan.dropped)
