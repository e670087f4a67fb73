"""What goes, by what is asked for and by scores: from a recipe and a base to a plan with widths and a layout."""

from __future__ import annotations

from collections.abc import Collection

from hubprune.core.artifacts import BY_LOSS, BaseCheckpoint, DropPlan, LayerScores, ScoreKind, WidthPlan
from hubprune.core.config import read_structure
from hubprune.core.console import Reporter
from hubprune.core.recipe import Recipe
from hubprune.pruning import iterative, selection
from hubprune.pruning.aggregation import KINDS
from hubprune.pruning.layouts import choose_layout
from hubprune.pruning.runs import plan_run
from hubprune.pruning.selection import plan_widths
from hubprune.pruning.variants import RANKED


def ranked_kinds(recipe: Recipe) -> tuple[ScoreKind, ...]:
    """Return what a recipe ranks, of the three kinds of scores; all of them where one pass has them all."""
    asked = {kind for ranking in recipe.drop.amounts for kind in RANKED[ranking]}
    asked |= {kind for kind in KINDS if kind in recipe.drop.parts}
    return tuple(kind for kind in KINDS if kind in asked or recipe.metric not in (*BY_LOSS, "angular"))


def shape_of(base: BaseCheckpoint) -> selection.Shape:
    """Return what a selection has to know of a base."""
    structure = read_structure(base.config, name=base.name)
    return selection.Shape(
        num_hidden_layers=structure.num_hidden_layers,
        name=base.name,
        absent=structure.absences,
        attention_kinds=tuple(structure.architecture.attention_kinds(base.config)),
    )


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
