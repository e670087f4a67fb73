"""What a sweep is asked for beyond the recipe of its run, and the checks that need no weights.

Read what a sweep is asked for: methods and numbers of drops.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from hubprune.core.artifacts import Ranking
from hubprune.core.errors import PlanError, RecipeError
from hubprune.core.files import check_new_folder, make_writable
from hubprune.core.options import as_typed
from hubprune.core.recipe import parse
from hubprune.core.requests import SweepRequest
from hubprune.core.specs import DropSpec
from hubprune.pruning.selection import NOUNS, Shape, check_request

# ---- counts --------------------------------------------------------------------------------------------------------


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


# ---- request -------------------------------------------------------------------------------------------------------


REPORT = "sweep.json"
PASSED_ON = (
    "base_revision", "protect", "calibration", "num_samples", "max_tokens", "metric", "aggregation", "tasks",
    "num_fewshot", "include_path", "batch_size", "eval_backend", "endpoint", "seed", "device", "dtype",
)  # fmt: skip
"""Options of a sweep that a publish after it needs, too, so that it drops the same and measures the same."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the recommended count keeps to."""

    points: float = 1.0
    """Points of the mean that may be lost."""
    perplexity_percent: float = 5.0
    """Percent that the perplexity may rise."""


@dataclass(frozen=True, kw_only=True)
class SpeedPlan:
    """How speed is measured."""

    depth: int = 512
    """Tokens in the KV cache when decoding starts; fewer where the base has no positions for them."""
    new_tokens: int = 32
    rounds: int = 20


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """Which points, what is measured at each, and where the result goes."""

    methods: tuple[Ranking, ...]
    counts: tuple[int, ...]
    """Ascending, 0 among them."""
    perplexity: str | None = None
    """File of documents or mix that perplexity is measured on; None for no perplexity."""
    perplexity_samples: int | None = None
    """Documents of it; None for the default."""
    speed: SpeedPlan | None = None
    limits: Limits = Limits()
    out: Path | None = None
    """Folder for table, report and pictures."""
    next_options: tuple[str, ...] = ()
    """Options of the sweep that the next command needs, too."""

    @classmethod
    def of(cls, request: SweepRequest) -> SweepPlan:
        """Read what is asked for.

        Raises:
            RecipeError: a value that cannot be used.
        """
        return cls(
            methods=parse_methods(_text(request.method)),
            counts=parse_counts(_text(request.counts)),
            perplexity=request.perplexity,
            perplexity_samples=request.perplexity_samples,
            speed=SpeedPlan(depth=request.speed_depth, rounds=request.speed_rounds) if request.speed else None,
            limits=Limits(points=request.max_loss, perplexity_percent=request.max_rise),
            out=Path(request.out) if request.out else None,
            next_options=tuple(as_typed(request, *PASSED_ON)),
        )


def _text(value: str | Sequence[object]) -> str:
    return value if isinstance(value, str) else ",".join(map(str, value))


def drop_spec(method: Ranking, count: int, *, protect: tuple[int, ...]) -> DropSpec:
    """Return the request for so many drops of one method; of 0 it asks for nothing."""
    return parse(DropSpec, {"protect": protect, **({f"{method}_drop": count} if count else {})})


def check_counts(request: SweepPlan, shape: Shape, *, protect: tuple[int, ...]) -> None:
    """Refuse counts that a method cannot drop; needs no scores.

    Raises:
        PlanError: with the most that it can.
    """
    for method in request.methods:
        if _fits(method, request.counts[-1], shape, protect):
            continue
        most = next((n for n in range(request.counts[-1], 0, -1) if _fits(method, n, shape, protect)), 0)
        raise too_many(method, request.counts[-1], most, shape.text)


def too_many(method: Ranking, count: int, most: int, text: str) -> PlanError:
    """Make the error for a count that is beyond what a method can drop."""
    hint = f"Pass --counts 0:{most} or less for --method {method}." if most else f"Leave {method} out of --method."
    return PlanError(f"Cannot drop {count} {NOUNS[method]}: {text}, and {most} of them can go.", hint=hint)


def _fits(method: Ranking, count: int, shape: Shape, protect: tuple[int, ...]) -> bool:
    try:
        check_request(drop_spec(method, count, protect=protect), shape)
    except PlanError:
        return False
    return True


def check_measures(request: SweepPlan, tasks: tuple[str, ...]) -> None:
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
