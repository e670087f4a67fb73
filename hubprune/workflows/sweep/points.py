"""The points of a sweep: nested sets of drops, the lowest scores first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hubprune.core.architectures import Architecture
from hubprune.core.artifacts import DropPlan, LayerScores, Metric, Ranking, SublayerKind, SweepOrder
from hubprune.core.errors import PlanError
from hubprune.core.weights import Weights
from hubprune.pruning.inventory import count_parameters
from hubprune.pruning.layouts import require_every_kind
from hubprune.pruning.selection import Shape, make_plan
from hubprune.workflows.sweep.request import SweepRequest, drop_spec, too_many


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


def make_points(request: SweepRequest, ranked: Ranked) -> tuple[Point, ...]:
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
