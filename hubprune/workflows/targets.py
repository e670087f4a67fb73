"""Find the plan that reaches a target at the least loss: from one pass that leaves out each thing that may go.

left_out          the pass: what the base loses by each change alone; kept, so that every target of a base shares it
find              the plan, by adding these up; then one pass with all of it gone at once
draw_frontier     loss against saving, from the same pass
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from hubprune.core.artifacts import (
    Artifact,
    DocumentScores,
    DroppedSublayer,
    DropPlan,
    Frontier,
    ImportanceScores,
    LayerScores,
    LeftOut,
    Method,
    NarrowerLoss,
    Ranking,
    Reached,
    TargetFound,
    WidthPlan,
)
from hubprune.core.errors import PlanError
from hubprune.core.files import key_of
from hubprune.pruning import frontier as frontiers
from hubprune.pruning.aggregation import aggregate
from hubprune.pruning.frontier import Found, search
from hubprune.pruning.selection import finish, ranked
from hubprune.pruning.variants import Variant, scores_of, without_each
from hubprune.workflows.reachable import Opened, Searched, measured_costs, refuse

if TYPE_CHECKING:
    from hubprune.pruning.calibration import CalibrationSet
    from hubprune.pruning.importance import Scoring

Drawn = Callable[[], "tuple[CalibrationSet, Scoring]"]


class RealLoss(Artifact):
    """Rise of the loss of a plan as a whole."""

    value: float


# ---- the pass --------------------------------------------------------------------------------------------------------


def left_out(run: Opened, searched: Searched, *, draw: Drawn, key: str) -> LeftOut:
    """Return what the base loses by each change alone, or take what an earlier run found."""
    parts, layers = searched.drop.parts, searched.shape.num_hidden_layers
    kinds = tuple(part for part in parts if part != "width")
    narrower = [
        Variant(layer, "width", width) for layer, found in searched.widths.items() for width in found
        if "width" in parts
    ]  # fmt: skip

    def compute() -> LeftOut:
        from hubprune.pruning.leave_one_out import LeaveOneOut

        drawn, scoring = draw()
        variants = [*without_each(kinds, layers, absent=searched.shape.absent), *narrower]
        opened = LeaveOneOut(run.runnable.folder, drawn, scoring, variants)
        with run.reporter.progress("leaving out", total=opened.cost(), unit="batches") as advance:
            losses = opened.run(advance)
        run.reporter.note(
            f"{opened.layer_runs:,.0f} runs of a layer for {len(variants)} changes, as many as "
            f"{opened.layer_runs / layers:.1f} passes over the base"
        )
        rows = scores_of(losses, "loss", drawn.documents, kinds=kinds, layers=layers)
        told = {"dtype": scoring.dtype, "device": scoring.device}
        scores = aggregate(rows, drawn.record, metric="loss", aggregation=scoring.aggregation, **told)
        base, *rest = _means(scores, [losses.base, *(losses.rise(variant) for variant in narrower)], losses.predicted)
        found = [NarrowerLoss(layer=v.layer, width=v.width, loss=x) for v, x in zip(narrower, rest, strict=True)]
        return LeftOut(scores=scores, narrower=tuple(found), base_loss=base, layer_runs=opened.layer_runs)

    widths = [[variant.layer, variant.width] for variant in narrower]
    return run.store.run("left-out", key_of(key, parts, widths), LeftOut, compute)


def _means(scores: LayerScores, columns: Sequence[Sequence[float]], predicted: Sequence[int]) -> list[float]:
    """Average values per document as some scores were averaged."""
    sources = iter([row.source for row in scores.per_document])
    rows = []
    for number, tokens in enumerate(predicted):
        if tokens:
            values = ImportanceScores(attn=tuple(column[number] for column in columns), mlp=(), block=())
            rows.append(DocumentScores(source=next(sources), tokens=tokens, scores=values))
    found = aggregate(
        rows, scores.calibration, aggregation=scores.aggregation, dtype=scores.dtype, device=scores.device
    )  # fmt: skip
    return list(found.mean.attn)


def _real_loss(run: Opened, found: Found, left: LeftOut, *, draw: Drawn, key: str) -> float:
    """Return the rise of the loss with all of a plan gone at once: one more pass."""

    def compute() -> RealLoss:
        from hubprune.pruning.leave_one_out import LeaveOneOut

        drawn, scoring = draw()
        opened = LeaveOneOut(run.runnable.folder, drawn, scoring, ())
        for choice in found.choices:
            for kind in choice.gone:
                opened.bypass(kind, choice.layer)
            if choice.part == "width":
                opened.narrow(choice.layer, choice.width)
        with run.reporter.progress("the plan as a whole", total=opened.cost(), unit="batches") as advance:
            losses = opened.run(advance)
        return RealLoss(value=_means(left.scores, [losses.base], losses.predicted)[0] - left.base_loss)

    changes = [found.layers("attn"), found.layers("mlp"), found.widths]
    return run.store.run("target-loss", key_of(key, changes), RealLoss, compute).value


# ---- the plan --------------------------------------------------------------------------------------------------------


def find(run: Opened, *, draw: Drawn, key: str) -> tuple[LayerScores, DropPlan]:
    """Find the plan that reaches the targets of a recipe at the least loss, and measure what it really loses.

    Raises:
        PlanError: no plan reaches them.
    """
    wanted = run.recipe.drop.target or {}
    costs, table = measured_costs(run)
    refuse(run, costs, list(wanted))
    searched = Searched.of(run.recipe, run.base, costs, list(wanted))
    left = left_out(run, searched, draw=draw, key=key)
    choices = searched.choices(left)
    found = search(choices, searched.shape, searched.needs)
    if found is None:  # pragma: no cover - refused before
        raise PlanError(f"No plan for {run.base.name} reaches the target.", hint="Ask for less.")
    measured = _real_loss(run, found, left, draw=draw, key=key)
    reached = [
        Reached(goal=goal, asked=wanted[goal], before=costs.before(goal), after=costs.before(goal) - saved)
        for goal, saved in zip(searched.goals, found.saved, strict=True)
    ]
    target = TargetFound(
        reached=tuple(reached), predicted=found.loss, measured=measured, latency=table,
        frontier=_frontier(run, searched, left, choosing=(found, measured)),
    )  # fmt: skip
    return left.scores, _plan(searched, found, left, target)


def _plan(searched: Searched, found: Found, left: LeftOut, target: TargetFound) -> DropPlan:
    dropped, shape = [], searched.shape
    for choice in found.choices:
        for kind in choice.gone:
            ranking: Ranking = "block" if choice.part == "block" else kind
            order = [candidate.layer for candidate in ranked(ranking, shape, left.scores)]
            score = float(getattr(left.scores.mean, ranking)[choice.layer])
            rank = order.index(choice.layer) + 1
            dropped.append(DroppedSublayer(kind=kind, layer=choice.layer, score=score, rank=rank, ranking=ranking))
    asked = {row.ranking for row in dropped}
    widths, methods = None, [method for ranking, method in _METHODS.items() if ranking in asked]
    if found.widths:
        kept = [*searched.costs.widths]
        for layer, width in found.widths:
            kept[layer] = width
        widths = WidthPlan(before=searched.costs.widths, kept=tuple(kept))
        methods.append("mlp-width")
    plan = finish(searched.drop, dropped, shape, metric="loss")
    told = {"methods": tuple(methods), "selected_by": "score", "widths": widths, "target": target}
    return plan.model_copy(update={**told, "protected": searched.drop.protect})


_METHODS: Mapping[Ranking, Method] = {"attn": "attn-drop", "mlp": "mlp-drop", "block": "block-drop"}


def draw_frontier(run: Opened, *, draw: Drawn, key: str) -> Frontier:
    """Return what every saving of the first target costs at the least: losses added up, from one pass."""
    costs, _ = measured_costs(run)
    searched = Searched.of(run.recipe, run.base, costs, list(run.recipe.drop.target or {}))
    return _frontier(run, searched, left_out(run, searched, draw=draw, key=key))


def _frontier(
    run: Opened, searched: Searched, left: LeftOut, *, choosing: tuple[Found, float] | None = None
) -> Frontier:
    one = replace(searched, goals=searched.goals[:1])
    points = [found.point() for found in frontiers.thinned(frontiers.frontier(one.choices(left), one.shape))]
    if choosing:
        found, measured = choosing
        own = found.point(measured=measured)
        points = [point for point in points if point.saved != own.saved] + [own]
    base = Found(0.0, (0,)).point(measured=0.0)
    points = [base, *sorted(points, key=lambda point: point.saved)]
    return Frontier(
        base=run.base.name, goal=one.goals[0], before=searched.costs.before(one.goals[0]), over=searched.drop.parts,
        context=searched.costs.context, batch=searched.costs.batch, base_loss=left.base_loss,
        layer_runs=left.layer_runs, points=tuple(points),
    )  # fmt: skip
