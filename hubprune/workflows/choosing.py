"""What goes, by what is asked for: from a recipe and a base, and scores or losses, to a plan with widths and a layout.

What a number of drops takes is a plan of its ranking.  What a target takes is found: `left_out` computes what the base
loses by every change alone, in one pass that all targets of a base share, `find` adds these up, takes the plan that
reaches the target at the least loss, and measures it with one pass more; `draw_frontier` tells loss against saving.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from hubprune.core.artifacts import (
    BY_LOSS,
    Artifact,
    BaseCheckpoint,
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
    ScoreKind,
    TargetFound,
    WidthPlan,
)
from hubprune.core.config import read_structure
from hubprune.core.console import Reporter
from hubprune.core.errors import PlanError
from hubprune.core.files import key_of
from hubprune.core.recipe import Recipe
from hubprune.pruning import frontier as frontiers
from hubprune.pruning import iterative, selection
from hubprune.pruning.aggregation import KINDS, aggregate
from hubprune.pruning.frontier import Found, search
from hubprune.pruning.layouts import choose_layout
from hubprune.pruning.runs import plan_run
from hubprune.pruning.selection import finish, plan_widths, ranked, shape_of
from hubprune.pruning.variants import RANKED, Variant, scores_of, without_each
from hubprune.workflows.reachable import Opened, Searched, measured_costs, refuse

if TYPE_CHECKING:
    from hubprune.pruning.calibration import CalibrationSet
    from hubprune.pruning.importance import Scoring


def ranked_kinds(recipe: Recipe) -> tuple[ScoreKind, ...]:
    """Return what a recipe ranks, of the three kinds of scores; all of them where one pass has them all."""
    asked = {kind for ranking in recipe.drop.amounts for kind in RANKED[ranking]}
    asked |= {kind for kind in KINDS if kind in recipe.drop.parts}
    return tuple(kind for kind in KINDS if kind in asked or recipe.metric not in (*BY_LOSS, "angular"))


def plan_of(
    recipe: Recipe, scores: LayerScores | None, base: BaseCheckpoint, *, shape: selection.Shape | None = None
) -> DropPlan:
    """Make the plan of a recipe by the scores of the whole base, which may be None where it needs none.

    `shape` is the base's, where it holds more than its config.json tells: what its sublayers save.
    """
    if recipe.metric == "angular" and scores:
        return laid_out(recipe, plan_run(recipe.drop, scores, shape_of(base)), base)
    plan = selection.make_plan(recipe.drop, scores, shape or shape_of(base), metric=recipe.metric, seed=recipe.seed)
    return laid_out(recipe, iterative.in_rounds(plan) if recipe.schedule == "iterative" else plan, base)


def laid_out(recipe: Recipe, plan: DropPlan, base: BaseCheckpoint) -> DropPlan:
    """Complete a plan of sublayers with the widths that were asked for, and with the layout that fits all of it."""
    if plan.target is None:
        widths = widths_of(recipe, base, gone=plan.layers("mlp"))
        plan = plan.model_copy(update={"methods": recipe.methods, "widths": widths})
    return plan.model_copy(update={"layout": choose_layout(recipe.layout, plan, base.config)})


def widths_of(recipe: Recipe, base: BaseCheckpoint, *, gone: Collection[int]) -> WidthPlan | None:
    """Return how wide every MLP becomes, where the layers of `gone` lose theirs; None where all stay as they are."""
    if recipe.width is None:
        return None
    structure = read_structure(base.config, name=base.name)
    return plan_widths(recipe.width, structure, base.config, name=base.name, gone=gone)


def say_plan(plan: DropPlan, *, reporter: Reporter) -> None:
    """Say what goes."""
    for kind, noun in selection.OWN.items():
        if layers := plan.layers(kind):
            word = "layer" if len(layers) == 1 else "layers"
            reporter.note(f"dropping the {noun} of {word} {', '.join(map(str, layers))}")
    for (before, kept), layers in plan.widths.changes.items() if plan.widths else ():
        word = "layer" if len(layers) == 1 else "layers"
        reporter.note(f"keeping {kept:,} of {before:,} neurons in the MLP of {word} {', '.join(map(str, layers))}")
    for reached in plan.target.reached if plan.target else ():
        reporter.note(f"{reached.goal}: {reached.change:+.1%}, asked for {reached.asked}")
    if found := plan.target:
        reporter.note(
            f"loss on the calibration texts: {found.predicted:+.4f} nats per token predicted by adding up, "
            f"{found.measured:+.4f} measured, from {found.frontier.base_loss:.4f}"
        )
    for margin in plan.margins:
        if margin.near_tie:
            reporter.note(
                f"near tie: the {selection.OWN[margin.kinds[0]]} of layer {margin.last_dropped} and the "
                f"{selection.OWN[margin.kinds[1]]} of layer {margin.first_kept} are within two standard errors"
            )


# ---- targets ---------------------------------------------------------------------------------------------------------

Drawn = Callable[[], "tuple[CalibrationSet, Scoring]"]


class RealLoss(Artifact):
    """Rise of the loss of a plan as a whole."""

    value: float


# ---- the pass --------------------------------------------------------------------------------------------------------


def left_out(run: Opened, searched: Searched, *, draw: Drawn, key: str) -> LeftOut:
    """Return what the base loses by each change alone, or take what an earlier run found."""
    parts, layers = searched.drop.parts, searched.shape.num_hidden_layers
    kinds: tuple[ScoreKind, ...] = tuple(part for part in parts if part != "width") or ("mlp",)  # a table needs one
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
    return run.store.run("left-out", key_of(key, kinds, widths), LeftOut, compute)


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
