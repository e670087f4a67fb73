"""Pictures of a card, made of what was measured: the scores of a base, and what its benchmarks changed by."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from hubprune import plots
from hubprune.core.artifacts import BenchmarkComparison, DropPlan, ImportanceScores, LayerScores, ScoreKind
from hubprune.core.privacy import scrub

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES: Mapping[ScoreKind, str] = {"attn": "attention", "mlp": "MLP", "block": "block"}
CARD_PICTURE = "assets/importance.png"
"""Path of a card's picture of the scores in its repo."""
BENCHMARK_PICTURE = "assets/benchmarks.png"
"""Path of a card's picture of the changes in its repo."""


def draw_scores(scores: LayerScores, plan: DropPlan, folder: Path, *, base: str) -> tuple[Path, Path]:
    """Draw the scores of one pass, with what a plan drops.

    Returns:
        Paths of the PNG and of the SVG.
    """
    return plots.save(importance_figure(scores, plan, base=base), folder, "importance")


def draw_for_card(scores: LayerScores, plan: DropPlan, folder: Path, *, base: str) -> str:
    """Draw the same into a checkpoint's folder, and return the path in it that the card links.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    plots.save_png(importance_figure(scores, plan, base=base), folder / CARD_PICTURE)
    return CARD_PICTURE


def draw_changes(comparison: BenchmarkComparison, folder: Path, *, base: str) -> str | None:
    """Draw what the benchmarks gained and lost into a checkpoint's folder, and return the path that the card links.

    Returns:
        None where no task has a metric that changes in points.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    if figure := changes_figure(comparison, base=base):
        plots.save_png(figure, folder / BENCHMARK_PICTURE)
    return BENCHMARK_PICTURE if figure else None


def changes_figure(comparison: BenchmarkComparison, *, base: str) -> Figure | None:
    """Draw the same, and write nothing yet; None where no task has a metric that changes in points."""
    rows = []
    for row in comparison.main_metrics():
        if found := row.points:
            mark = (row.paired.mark if row.paired else None) or "not tested"
            rows.append(plots.Change(label=row.task, points=found.value, low=found.low, high=found.high, mark=mark))
    if not rows:
        return None
    mean = comparison.mean_points
    ends = plots.Change(label="mean", points=mean.value, low=mean.low, high=mean.high) if mean and rows[1:] else None
    return plots.changes(rows, mean=ends, title=scrub(f"Benchmarks against {base}"))


def importance_figure(scores: LayerScores, plan: DropPlan | None, *, base: str) -> Figure:
    """Draw the three scores of every layer, with what a plan drops, if there is one; nothing is written yet."""
    record, dropped, absent = scores.calibration, {}, {}
    if plan:
        lost = plan.absent_layers
        lost_whole = sorted({*lost["attn"]} & {*lost["mlp"]})
        removed = [layer for layer in plan.removed_layers if layer not in lost_whole]
        dropped = {NAMES[kind]: plan.layers(kind) for kind in ("attn", "mlp")} | {"block": removed}
        absent = {NAMES[kind]: lost[kind] for kind in ("attn", "mlp")} | {"block": lost_whole}
    return plots.importance(
        panels(scores.mean),
        errors=panels(scores.standard_error),
        dropped=dropped,
        absent=absent,
        title=scrub(f"Importance of {base} on {record.documents} {record.unit} of {record.mix}"),
        measure=measure_name(scores.metric),
    )


def panels(scores: ImportanceScores) -> dict[str, tuple[float, ...]]:
    """Return the scores of every kind by the name that a picture gives it."""
    return {name: getattr(scores, kind) for kind, name in NAMES.items()}


def measure_name(metric: str) -> str:
    """Name the axis of a metric."""
    return plots.MEASURE if metric == "cosine" else metric
