"""Draw a sweep: what is left of accuracy or perplexity, what goes in which order, and what was won in speed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hubprune.core.artifacts import Ranking, SublayerKind, SweepPoint, SweepReport
from hubprune.plots import CellState, Step, curve, dropping_order, save, speed_curve

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES: Mapping[Ranking, str] = {
    "attn": "attention drop", "mlp": "MLP drop", "block": "block drop", "joint": "joint drop",
}  # fmt: skip
OUTSIDE = 1e6
"""Perplexities are drawn up to here: beyond, a model knows nothing."""


def draw(report: SweepReport, folder: Path) -> tuple[Path, ...]:
    """Write all pictures of a sweep as PNG and SVG, and return their paths.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    return tuple(path for name, figure in figures(report) for path in save(figure, folder, name))


def figures(report: SweepReport) -> Iterator[tuple[str, Figure]]:
    """Draw all pictures of a sweep, each with the name of its file; nothing is written yet."""
    first = report.points[0]
    mean = _series(report, lambda point: point.mean)
    perplexity = _series(
        report, lambda point: min(point.perplexity or OUTSIDE, OUTSIDE) if point.perplexity_change else None
    )
    if mean:
        series, steps = _with_steps(report, mean)
        ylabel, title = "mean of the benchmarks (%)", f"{report.base}: mean of the benchmarks"
        figure = curve(
            series, baseline=first.mean, ylabel=ylabel, title=title, xlabel="drops", chance=report.chance, steps=steps
        )
        yield "accuracy", figure
    if perplexity:
        series, steps = _with_steps(report, perplexity)
        ylabel, title = "perplexity (log scale)", f"{report.base}: perplexity"
        figure = curve(
            series, baseline=first.perplexity, ylabel=ylabel, title=title, xlabel="drops", steps=steps, scale="log"
        )
        yield "perplexity", figure
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
            intervals.setdefault(NAMES[point.method], []).append((100 * (ends[0] - 1), 100 * (ends[1] - 1)))
    return speed_curve(
        series,
        intervals=intervals,
        sdr=_series(report, lambda point: point.sdr.value if point.sdr else None) or None,
        title=f"{report.base}: speed of decoding",
        xlabel="drops",
    )


def _order(report: SweepReport, method: Ranking) -> Figure:
    points = [point for point in report.points if point.method == method]
    gone = [{*report.absent, *point.dropped} for point in points]
    rows = [[_state(layer, sublayers) for sublayers in gone] for layer in range(report.num_hidden_layers)]
    return dropping_order(
        rows, counts=[point.count for point in points], title=f"{report.base}: order of {NAMES[method]}", ylabel="drops"
    )


def _state(layer: int, gone: set[tuple[SublayerKind, int]]) -> CellState:
    attn, mlp = ("attn", layer) in gone, ("mlp", layer) in gone
    return "gone" if attn and mlp else "dropped-attn" if attn else "dropped-mlp" if mlp else "kept"


def _series(report: SweepReport, value: Callable[[SweepPoint], float | None]) -> dict[str, Sequence[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for point in report.points:
        if (number := value(point)) is not None:
            found.setdefault(NAMES[point.method], []).append((point.count, number))
    return dict(found)


def _with_steps(
    report: SweepReport, series: Mapping[str, Sequence[tuple[int, float]]]
) -> tuple[dict[str, Sequence[tuple[int, float]]], dict[str, list[Step]]]:
    """Say of every point of a joint drop what went last, where no count is left out; the base's own point goes."""
    name = NAMES["joint"]
    counts = [count for count, _ in series.get(name, ())]
    order = next((order.dropped for order in report.orders if order.method == "joint"), ())
    if not counts or counts != list(range(len(order) + 1)):
        return dict(series), {}
    return {**series, name: series[name][1:]}, {name: [sublayer.kind for sublayer in order]}
