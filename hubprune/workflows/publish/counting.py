"""Find the number of drops that a publish leaves open: `--attn-drop auto` sweeps first, `--from-sweep` reads a sweep.

The rule is the sweep's own: the largest count at which, as at every smaller one, nothing loses more than the limit.
The recipe that is published names the number, so that it can be run again without a sweep.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import ValidationError

from hubprune.core.amounts import AUTO
from hubprune.core.artifacts import Ranking, Recommendation, SweepReport
from hubprune.core.console import Reporter
from hubprune.core.errors import PlanError, RecipeError
from hubprune.core.privacy import DEFAULT_ENDPOINT
from hubprune.core.recipe import MEAN
from hubprune.core.requests import PublishRequest, SweepRequest
from hubprune.core.specs import OPTIONS
from hubprune.pruning.selection import shape_of
from hubprune.workflows import sweep as sweeping
from hubprune.workflows.recipes import budget, recipe_of
from hubprune.workflows.run import Run, open_run
from hubprune.workflows.sweep import too_much, with_error
from hubprune.workflows.sweep.points import MOST_TRIED, REPORT, most_that_fit

Asked = TypeVar("Asked", bound=PublishRequest)
SAME = (
    "base", "limit", "endpoint", "max_memory", "quiet", "protect", "base_revision", "calibration", "num_samples",
    "max_tokens", "metric", "aggregation", "score_batch_size", "seed", "device", "dtype", "tasks", "num_fewshot",
    "include_path", "batch_size", "eval_backend", "apply_chat_template", "calibration_chat_template",
)  # fmt: skip
"""Options of a publish that its sweep takes over: it scores the same texts, and measures the same tasks."""
NOT_SWEPT = "attn_layers", "mlp_layers", "neuron_drop", "mlp_width", "expansion_ratio", "target", "per"
"""Options by which something else goes than a sweep measures."""
RANKED_BY = (
    "protect", "calibration", "calibration_chat_template", "num_samples", "max_tokens", "metric", "aggregation",
)  # fmt: skip
"""Options by which another order comes out than that of a sweep."""

NUMBERS = "num_samples", "max_tokens", "batch_size", "seed"
SWITCHES = {
    f"--{word}{name.replace('_', '-')}": (name, not word)
    for name in ("apply_chat_template", "calibration_chat_template") for word in ("", "no-")
}  # fmt: skip
"""Options without a value, as they are typed -> their name and what they say."""


def open_ranking(request: PublishRequest) -> Ranking | None:
    """Return the ranking whose number is to be found; None where all numbers are given, or a sweep says which it is.

    Raises:
        RecipeError: several are to be found, or something goes beside it that no sweep measures.
    """
    given = {ranking: getattr(request, f"{ranking}_drop") for ranking in get_args(Ranking)}
    found: list[Ranking] = [ranking for ranking, value in given.items() if value == AUTO]
    if not found and request.from_sweep is None:
        return None
    option = f"{OPTIONS[found[0]]} auto" if found else "--from-sweep"
    others = [OPTIONS[r] for r, value in given.items() if found and value is not None and r != found[0]]
    others += [f"--{name.replace('_', '-')}" for name in NOT_SWEPT if getattr(request, name) is not None]
    others += ["--schedule iterative"] if request.schedule == "iterative" else []
    others += ["--metric angular"] if request.metric == "angular" else []
    if others:
        raise RecipeError(
            f"{option} finds one number, with nothing else that goes, and {others[0]} is there too.",
            hint="Pass one of them.",
        )
    return found[0] if found else None


def with_count(
    request: Asked, *, reporter: Reporter, sweeps: bool = True, check: Callable[[Run], object] = lambda run: None
) -> Asked:
    """Put the number that a sweep finds in its place; a request that gives all numbers is returned as it is.

    Where `sweeps` is false, what would have to be measured first is refused.  `check` looks, before anything is
    measured, for what would stop the publish afterwards, at a run that drops one.

    Raises:
        PlanError: not even one keeps to the limit; the hint says what it would take.
        RecipeError: what was asked for leaves nothing to find, or the sweep is of something else.
    """
    ranking = open_ranking(request)
    if request.recipe and (ranking or request.from_sweep is not None):
        option = "--from-sweep" if request.from_sweep is not None else f"{OPTIONS[ranking or 'attn']} auto"
        raise RecipeError(
            f"{option} and --recipe do not go together: a recipe says what to drop.", hint="Pass one of them."
        )
    if request.from_sweep is not None:
        return _from_report(request, ranking, Path(request.from_sweep), reporter)
    if ranking is None:
        return request
    if not sweeps:
        raise RecipeError(
            f"{OPTIONS[ranking]} auto measures first, on this machine.",
            hint="Run hubprune sweep, and pass the number it recommends, or --from-sweep with its folder.",
        )
    asked = SweepRequest(method=ranking, counts="0:1", max_loss=_limit(request), **_same(request))
    check(open_run(recipe_of(counting(request, ranking, 1)), request.endpoint, Reporter(quiet=True)))
    run = open_run(recipe_of(asked, drop={f"{ranking}_drop": "1"}), request.endpoint, reporter)
    most = most_that_fit(ranking, MOST_TRIED, shape_of(run.base), protect=run.recipe.drop.protect)
    report = sweeping.sweep_run(run, replace(asked, counts=f"0:{max(most, 1)}"))
    (found,) = report.recommendations
    number = _number(found, report, reporter)
    for doubt in doubts(report, number, limit=asked.max_loss):
        reporter.warn(doubt)
    return counting(request, ranking, number)


def counting(request: Asked, ranking: Ranking, number: int) -> Asked:
    """Put a number of drops in its place."""
    numbers: dict[str, Any] = {f"{ranking}_drop": number}
    return replace(request, **numbers)


def _limit(request: PublishRequest) -> float:
    """Return the points that the mean may lose."""
    given = budget(request.max_loss)
    if given is None:
        return SweepRequest.max_loss
    if list(given) != [MEAN]:
        raise RecipeError("A number that is to be found needs one limit for the mean.", hint="Pass --max-loss 1.0.")
    return given[MEAN]


def _same(request: PublishRequest) -> dict[str, Any]:
    return {name: getattr(request, name) for name in SAME}


def _number(found: Recommendation, report: SweepReport, reporter: Reporter) -> int:
    """Return the number that was found, and say what decided."""
    if not found.count:
        raise PlanError(
            f"Not even one drop of {report.base} keeps to the limit: {found.reason}.",
            hint=found.takes or f"Pass {OPTIONS[found.method]} 1 to publish it all the same.",
        )
    reporter.note(f"{OPTIONS[found.method]} {found.count} chosen: {found.reason}")
    return found.count


def doubts(report: SweepReport, number: int, *, limit: float) -> Iterator[str]:
    """Say what makes a number that was found unsure: too few documents, or a base that guesses.

    No change on n documents is no change of nothing: up to 3 in n may still differ (the rule of three, at 95 %).
    """
    change = next((point.mean_change for point in report.points if point.count == number), None)
    if change and (ends := change.ends):
        apart = (ends[1] - ends[0]) / 2
        if not apart and report.limit:
            apart = 300 / (report.limit * len(report.tasks))
        if apart > limit:
            yield (
                f"So few documents know the mean to ± {apart:.1f} points, and the limit is {limit:g}: the number may be"
                " chance. Pass a larger --limit."
            )
    if names := [task.task for task in report.points[0].tasks if task.at_chance]:
        yield f"The base itself only guesses on {', '.join(names)}: what a drop costs there cannot be seen."


# ---- from a sweep that was run before ----------------------------------------------------------------------------


def _from_report(request: Asked, ranking: Ranking | None, path: Path, reporter: Reporter) -> Asked:
    """Do what the report of a sweep recommends, with its options where the request has none."""
    report = _read(path / REPORT if path.is_dir() else path)
    limit = (budget(request.max_loss) or {}).get(MEAN)
    rows = [_within(row, report, limit) for row in report.recommendations if ranking in (None, row.method)]
    numbers = [ranking for ranking in get_args(Ranking) if getattr(request, f"{ranking}_drop") not in (None, AUTO)]
    if numbers:
        names = OPTIONS[numbers[0]]
        raise RecipeError(f"{names} is a number, and --from-sweep brings one.", hint="Pass one of them.")
    if not rows:
        offered = " or ".join(f"{OPTIONS[row.method]} auto" for row in report.recommendations)
        if not offered:
            raise RecipeError(f"The sweep in {path} recommends nothing.", hint="Sweep with --tasks or --perplexity.")
        told = ", ".join(f"{OPTIONS[row.method]} {row.count}" for row in report.recommendations)
        asked = f", none for {OPTIONS[ranking]}" if ranking else ""
        raise RecipeError(f"The sweep in {path} recommends {told}{asked}.", hint=f"Pass {offered} beside it.")
    found = _only(rows, report, path)
    typed = dict(_pairs(found, report)) if found.count else {}
    number = _number(found, report, reporter)
    if request.base not in (None, typed["base"]):
        raise RecipeError(
            f"The sweep in {path} is of {typed['base']}, not of {request.base}.", hint="Leave out the base."
        )
    address = (request.endpoint or os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")
    if typed.get("endpoint") not in (None, address):
        raise RecipeError(  # which a token would be sent to, by a file that may be somebody else's
            f"The sweep in {path} was run against {typed['endpoint']}.",
            hint="Pass --endpoint with that address if you trust it.",
        )
    if other := [n for n in RANKED_BY if getattr(request, n) not in (None, typed.get(n))]:
        reporter.warn(f"--{other[0].replace('_', '-')} is another one than in the sweep, whose number is for its own.")
    missing: dict[str, Any] = {name: value for name, value in typed.items() if getattr(request, name) is None}
    return counting(replace(request, **missing, from_sweep=None), found.method, number)


def _only(rows: Sequence[Recommendation], report: SweepReport, path: Path) -> Recommendation:
    """Return what all of them come to, where those that drop anything drop the same.

    Raises:
        RecipeError: they differ; the message says what each recommends.
    """
    dropped = {(point.method, point.count): frozenset(point.dropped) for point in report.points}
    plans: dict[object, Recommendation] = {}
    for row in rows:
        if row.count:
            place = row.method, row.count
            plans.setdefault(dropped.get(place, place), row)
    if len(plans) > 1:
        what = ", ".join(f"{OPTIONS[row.method]} {row.count}" for row in plans.values())
        autos = " or ".join(f"{OPTIONS[row.method]} auto" for row in plans.values())
        raise RecipeError(f"The sweep in {path} recommends {what}.", hint=f"Pass {autos} beside it.")
    return next(iter(plans.values()), rows[0])


def _within(found: Recommendation, report: SweepReport, limit: float | None) -> Recommendation:
    """Take as many fewer as it needs for the mean to lose no more than a limit of one's own."""
    points = sorted((point for point in report.points if point.method == found.method), key=lambda point: point.count)
    for before, point in pairwise(points):
        change = point.mean_change
        if limit is not None and change and -change.value > limit and point.count <= found.count:
            reason, takes = too_much(point, max_loss=limit)
            if before.count:
                reason = f"with {point.count}, mean {with_error(change)} points (limit −{limit:g})"
            return found.model_copy(update={"count": before.count, "reason": reason, "takes": takes})
    return found


def _read(path: Path) -> SweepReport:
    try:
        return SweepReport.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no report of a sweep"
        hint = f"Pass the folder of hubprune sweep --out, or its {REPORT}."
        raise RecipeError(f"Cannot read {path}: {reason}.", hint=hint) from error


def _pairs(found: Recommendation, report: SweepReport) -> Iterator[tuple[str, Any]]:
    """Yield the options of a recommended command, by name."""
    try:
        typed = shlex.split(found.command or "")
    except ValueError:  # a quotation mark that does not close
        typed = []
    words = [word for word in typed if word not in SWITCHES]
    if words[:2] != ["hubprune", "publish"] or len(words) % 2 == 0:
        hint = f"Publishing takes a base on the Hub. What it recommends: {found.command}"
        raise RecipeError(f"The sweep of {report.base} recommends no publish.", hint=hint)
    yield "base", words[2]
    yield from (SWITCHES[word] for word in typed if word in SWITCHES)
    for flag, value in zip(words[5::2], words[6::2], strict=True):
        name = flag.removeprefix("--").replace("-", "_")
        if name in sweeping.PASSED_ON:
            yield name, int(value) if name in NUMBERS and value.isdecimal() else value
