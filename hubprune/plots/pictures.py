"""Pictures of what was found: scores of a base, changes of its benchmarks, a study of scores, a sweep."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from hubprune import plots
from hubprune.core.artifacts import (
    BenchmarkComparison,
    DropPlan,
    Frontier,
    Goal,
    HealingRecord,
    ImportanceScores,
    LayerScores,
    Ranking,
    ScoreKind,
    ScoreStudy,
    StudyKind,
    SublayerKind,
    SweepPoint,
    SweepReport,
)
from hubprune.core.privacy import scrub

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES: Mapping[ScoreKind, str] = {"attn": "attention", "mlp": "MLP", "block": "block"}
CARD_PICTURE = "assets/importance.png"
"""Path of a card's picture of the scores in its repo."""
BENCHMARK_PICTURE = "assets/benchmarks.png"
"""Path of a card's picture of the changes in its repo."""
FRONTIER_PICTURE = "assets/frontier.png"
"""Path of a card's picture of loss against saving in its repo."""
TRAINING_PICTURE = "assets/training.png"
"""Path of a card's picture of its training in its repo."""
VARIES: dict[StudyKind, str] = {
    "revisions": "revision of the base", "calibration": "calibration mix", "samples": "number of samples",
}  # fmt: skip
METHODS: Mapping[Ranking, str] = {
    "attn": "attention drop", "mlp": "MLP drop", "block": "block drop", "joint": "joint drop",
}  # fmt: skip
OUTSIDE = 1e6
"""Perplexities are drawn up to here: beyond, a model knows nothing."""


def draw_scores(scores: LayerScores, plan: DropPlan, folder: Path, *, base: str) -> tuple[Path, Path]:
    """Draw the scores of one pass, with what a plan drops, and return the paths of the PNG and of the SVG."""
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

    There is none where no task has a metric that changes in points.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    if figure := changes_figure(comparison, base=base):
        plots.save_png(figure, folder / BENCHMARK_PICTURE)
    return BENCHMARK_PICTURE if figure else None


def draw_training(record: HealingRecord, folder: Path, *, name: str) -> str:
    """Draw loss and held-out KL over the steps of a training into a checkpoint's folder, and return the path there.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    losses = [(point.step, point.loss) for point in record.curve if point.loss is not None]
    held_out = [(point.step, point.held_out.kl) for point in record.curve]
    ppl = [(point.step, point.held_out.perplexity) for point in record.curve]
    figure = plots.training(
        losses, held_out, ppl, base_perplexity=record.base_perplexity, title=scrub(f"Training of {name}")
    )
    plots.save_png(figure, folder / TRAINING_PICTURE)
    return TRAINING_PICTURE


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
    mean, errors = panels(scores.mean), panels(scores.standard_error)
    if scores.metric == "angular" and plan:
        name = f"runs of {plan.num_hidden_layers + 1 - len(scores.mean.block)} layers, each at its first one"
        mean, errors = {name: scores.mean.block}, {name: scores.standard_error.block}
        dropped, absent = {name: (min(row.layer for row in plan.dropped),)}, {}
    return plots.importance(
        mean,
        errors=errors,
        dropped=dropped,
        absent=absent,
        title=scrub(f"Importance of {base} on {record.documents} {record.unit} of {record.mix}"),
        measure=measure_name(scores.metric),
    )


def panels(scores: ImportanceScores) -> dict[str, tuple[float, ...]]:
    """Return the scores of every kind that was computed, by the name that a picture gives it."""
    return {name: getattr(scores, kind) for kind, name in NAMES.items() if kind in scores.kinds}


def measure_name(metric: str) -> str:
    """Name the axis of a metric."""
    names = {
        "cosine": plots.MEASURE, "loss": "rise of loss (nats)", "kl": "KL to the base (nats)", "angular": "angle / π",
    }  # fmt: skip
    return names.get(metric, metric)


SAVED: Mapping[Goal, str] = {
    "params": "parameters", "bytes": "bytes of the weights", "flops": "operations per token", "kv": "KV cache",
    "memory": "weights and KV cache", "latency": "time per token",
}  # fmt: skip


def frontier_figure(found: Frontier) -> Figure:
    """Draw loss against saving, in percent of what the base takes; nothing is written yet."""
    share = [(100 * point.saved / found.before, point) for point in found.points]
    at = "" if found.goal in ("params", "bytes") else f", {found.batch} x {found.context:,} tokens"
    return plots.frontier(
        [(percent, point.loss) for percent, point in share],
        [(percent, p.loss, p.measured) for percent, p in share if p.measured is not None and p.saved],
        title=scrub(f"What saving costs {found.base}"), xlabel=f"{SAVED[found.goal]} saved (%{at})",
        base_loss=found.base_loss,
    )  # fmt: skip


def draw_frontier(found: Frontier, folder: Path) -> tuple[Path, Path]:
    """Draw a frontier, and return the paths of the PNG and of the SVG."""
    return plots.save(frontier_figure(found), folder, "frontier")


def draw_frontier_for_card(found: Frontier, folder: Path) -> str:
    """Draw the same into a checkpoint's folder, and return the path in it that the card links.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    plots.save_png(frontier_figure(found), folder / FRONTIER_PICTURE)
    return FRONTIER_PICTURE


def draw_study(study: ScoreStudy, folder: Path) -> tuple[Path, Path]:
    """Draw a study: a heat map over revisions, lines per mix, or lines and agreement per number of samples.

    Returns the paths of the PNG and of the SVG.
    """
    measure, drawn = measure_name(study.metric), [panels(entry.mean) for entry in study.entries]
    title = f"Importance of {study.base} by {VARIES[study.kind]}"
    labels = [entry.label for entry in study.entries]
    if study.kind == "revisions":
        rows = {name: [panel[name] for panel in drawn] for name in drawn[0]}
        figure = plots.heat_map(rows, labels=labels, title=title, measure=measure)
    elif study.kind == "calibration":
        figure = plots.side_by_side(dict(zip(labels, drawn, strict=True)), title=title, measure=measure)
    else:
        lines: dict[str, list[tuple[int, float]]] = {name: [] for name in NAMES.values()}
        for entry in study.entries:
            for agreement in entry.agreements:
                if agreement.spearman is not None:
                    lines[NAMES[agreement.kind]].append((int(entry.label), agreement.spearman))
        agreeing = {name: [*points, (int(study.reference), 1.0)] for name, points in lines.items()}
        series = {int(label): panel for label, panel in zip(labels, drawn, strict=True)}
        figure = plots.stability(series, agreement=agreeing, title=title, measure=measure)
    return plots.save(figure, folder, f"importance-by-{study.kind}")


def draw_sweep(report: SweepReport, folder: Path) -> tuple[Path, ...]:
    """Write all pictures of a sweep as PNG and SVG, and return their paths.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    return tuple(path for name, figure in sweep_figures(report) for path in plots.save(figure, folder, name))


def sweep_figures(report: SweepReport) -> Iterator[tuple[str, Figure]]:
    """Draw all pictures of a sweep, each with the name of its file; nothing is written yet."""
    first = report.points[0]
    mean = _series(report, lambda point: point.mean)
    perplexity = _series(
        report, lambda point: min(point.perplexity or OUTSIDE, OUTSIDE) if point.perplexity_change else None
    )
    draw = partial(plots.curve, xlabel="drops")
    if mean:
        series, steps = _with_steps(report, mean)
        ylabel, title = "mean of the benchmarks (%)", f"{report.base}: mean of the benchmarks"
        chance = report.chance
        yield "accuracy", draw(series, baseline=first.mean, ylabel=ylabel, title=title, chance=chance, steps=steps)
    if perplexity:
        series, steps = _with_steps(report, perplexity)
        ylabel, title, base = "perplexity (log scale)", f"{report.base}: perplexity", first.perplexity
        yield "perplexity", draw(series, baseline=base, ylabel=ylabel, title=title, steps=steps, scale="log")
    if speed := _speed(report):
        yield "speed", speed
    for order in report.orders:
        yield f"order-{order.method}", _order(report, order.method)


def _speed(report: SweepReport) -> Figure | None:
    series = _series(report, lambda point: point.speed.speedup_percent if point.speed else None)
    if not series:
        return None
    intervals: dict[str, list[tuple[float, float]]] = {}
    for point in report.points:
        if point.speed:
            ends = point.speed.ratio.low, point.speed.ratio.high
            intervals.setdefault(METHODS[point.method], []).append((100 * (ends[0] - 1), 100 * (ends[1] - 1)))
    sdr = _series(report, lambda point: point.sdr.value if point.sdr else None) or None
    title = f"{report.base}: speed of decoding"
    return plots.speed_curve(series, intervals=intervals, sdr=sdr, title=title, xlabel="drops")


def _order(report: SweepReport, method: Ranking) -> Figure:
    points = [point for point in report.points if point.method == method]
    gone = [{*report.absent, *point.dropped} for point in points]

    def state(layer: int, gone: set[tuple[SublayerKind, int]]) -> plots.CellState:
        attn, mlp = ("attn", layer) in gone, ("mlp", layer) in gone
        return "gone" if attn and mlp else "dropped-attn" if attn else "dropped-mlp" if mlp else "kept"

    rows = [[state(layer, sublayers) for sublayers in gone] for layer in range(report.num_hidden_layers)]
    title = f"{report.base}: order of {METHODS[method]}"
    return plots.dropping_order(rows, counts=[point.count for point in points], title=title, ylabel="drops")


def _series(report: SweepReport, value: Callable[[SweepPoint], float | None]) -> dict[str, Sequence[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for point in report.points:
        if (number := value(point)) is not None:
            found.setdefault(METHODS[point.method], []).append((point.count, number))
    return dict(found)


def _with_steps(
    report: SweepReport, series: Mapping[str, Sequence[tuple[int, float]]]
) -> tuple[dict[str, Sequence[tuple[int, float]]], dict[str, list[plots.Step]]]:
    """Say of every point of a joint drop what went last, where no count is left out; the base's own point goes."""
    name = METHODS["joint"]
    counts = [count for count, _ in series.get(name, ())]
    order = next((order.dropped for order in report.orders if order.method == "joint"), ())
    if not counts or counts != list(range(len(order) + 1)):
        return dict(series), {}
    return {**series, name: series[name][1:]}, {name: [sublayer.kind for sublayer in order]}
