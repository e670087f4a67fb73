"""The points of a sweep: nested sets of drops, the lowest scores first.

Which count to take: the largest up to which nothing measured goes beyond a stated limit.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hubprune.cards.markdown import plain, signed
from hubprune.core.architectures import Architecture
from hubprune.core.artifacts import (
    DropPlan,
    Estimate,
    LayerScores,
    Metric,
    Ranking,
    Recommendation,
    SublayerKind,
    SweepOrder,
    SweepPoint,
)
from hubprune.core.errors import PlanError
from hubprune.core.specs import OPTIONS
from hubprune.core.weights import Weights
from hubprune.pruning.checkpoint import count_parameters
from hubprune.pruning.modeling import require_every_kind
from hubprune.pruning.selection import Shape, make_plan
from hubprune.workflows.sweep.request import Limits, SweepPlan, drop_spec, too_many

# ---- points --------------------------------------------------------------------------------------------------------


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


def make_points(request: SweepPlan, ranked: Ranked) -> tuple[Point, ...]:
    """Make all points, method by method; each drops what the one before drops, and more.

    Raises:
        PlanError: a count leaves no attention or MLP of some kind; the message names the most that can go.
    """
    return tuple(point for method in request.methods for point in _points(method, request.counts, ranked))


def _points(method: Ranking, counts: Sequence[int], ranked: Ranked) -> list[Point]:
    made: list[Point] = []
    for count in counts:
        try:
            made.append(Point(method, count, ranked.plan(method, count)))
        except PlanError as error:
            most = next(n for n in range(count - 1, -1, -1) if _possible(method, n, ranked))
            raise PlanError(
                f"{method}, {count} drops: {error.message}", hint=too_many(method, count, most, "").hint
            ) from error
    return made


def _possible(method: Ranking, count: int, ranked: Ranked) -> bool:
    try:
        ranked.plan(method, count)
    except PlanError:
        return False
    return True


def order_of(points: Sequence[Point], method: Ranking) -> SweepOrder:
    """Return the order in which a method drops, as far as the sweep goes."""
    last = max((point for point in points if point.method == method), key=lambda point: point.count)
    return SweepOrder(method=method, dropped=last.plan.dropped)


def sublayer_parameters(
    weights: Weights, config: Mapping[str, Any], architecture: Architecture
) -> tuple[int, dict[tuple[SublayerKind, int], int]]:
    """Return the base's parameters, and those of every sublayer by kind and layer."""
    parts: Mapping[SublayerKind, tuple[str, ...]] = {"attn": architecture.attn_parts(), "mlp": architecture.mlp_parts()}
    owners = {part: kind for kind, names in parts.items() for part in names}
    found: dict[tuple[SublayerKind, int], int] = {}
    for _, tensor in weights:
        if tensor.name.startswith(architecture.layers_prefix) and architecture.is_parameter(tensor.name):
            layer, part = tensor.name.removeprefix(architecture.layers_prefix).split(".")[:2]
            if part in owners:
                place = (owners[part], int(layer))
                found[place] = found.get(place, 0) + tensor.parameters
    return count_parameters(weights, config, architecture), found


# ---- rule ----------------------------------------------------------------------------------------------------------


def rule_text(limits: Limits, points: Sequence[SweepPoint]) -> str:
    """State the rule, as far as what was measured decides."""
    parts = []
    if any(point.mean_change for point in points):
        parts.append(f"the mean loses at most {_points_text(limits.points)}")
    if any(point.perplexity_change for point in points):
        parts.append(f"the perplexity rises by at most {limits.perplexity_percent:g} %")
    return f"The largest count at which, as at every smaller one measured, {' and '.join(parts)}." if parts else ""


def _points_text(number: float) -> str:
    return f"{number:g} {'point' if number == 1 else 'points'}"


def recommend(
    method: Ranking,
    points: Sequence[SweepPoint],
    limits: Limits,
    *,
    base: str,
    options: Sequence[str] = (),
    publishable: bool = True,
) -> Recommendation:
    """Pick a count for a method by the rule, and say what decided.

    Args:
        method: one of the sweep's.
        points: of this method, the base among them.
        limits: what the rule keeps to.
        base: repo id or folder, for the next command.
        options: what the next command needs beside the count, where it publishes.
        publishable: whether the base is on a Hub; a folder can only be pruned.
    """
    ordered = sorted(points, key=lambda point: point.count)
    kept = ordered[0]
    beyond = None
    for point in ordered:
        if not _keeps(point, limits):
            beyond = point
            break
        kept = point
    words = [f"{kept.count}: {_numbers(kept, limits)}"] if kept.count else []
    words.append(f"{beyond.count}: {_numbers(beyond, limits)}" if beyond else "no larger count was measured")
    verb, rest = ("publish", options) if publishable else ("prune", ("--out", "pruned"))
    command = ["hubprune", verb, base, OPTIONS[method], str(kept.count), *rest]
    return Recommendation(
        method=method,
        count=kept.count,
        reason="; ".join(words),
        command=shlex.join(command) if kept.count else None,
    )


def _keeps(point: SweepPoint, limits: Limits) -> bool:
    points, rise = point.mean_change, point.perplexity_change
    return (points is None or -points.value <= limits.points) and (
        rise is None or rise.value <= limits.perplexity_percent
    )


def _numbers(point: SweepPoint, limits: Limits) -> str:
    return ", ".join(_number(point, limits))


def _number(point: SweepPoint, limits: Limits) -> Iterator[str]:
    if change := point.mean_change:
        yield f"mean {with_error(change)} points (limit −{limits.points:g})"
    if change := point.perplexity_change:
        yield f"perplexity {with_error(change)} % (limit +{limits.perplexity_percent:g})"


def with_error(change: Estimate) -> str:
    """Write a change with its paired standard error, where it has one."""
    text = signed(change.value)
    return text if change.standard_error is None else f"{text} ± {plain(change.standard_error, digits=2)}"
