"""Draw a sweep: what is left of accuracy or perplexity, what goes in which order, and what was won in speed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from hubprune.core.artifacts import Ranking, SublayerKind, SweepPoint, SweepReport
from hubprune.plots import CellState, Step, curve, dropping_order, save, speed_curve

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
    first = report.points[0]
    mean = _series(report, lambda point: point.mean)
    perplexity = _series(
        report, lambda point: min(point.perplexity or OUTSIDE, OUTSIDE) if point.perplexity_change else None
    )
    paths: list[Path] = []
    if mean:
        series, steps = _with_steps(report, mean)
        ylabel, title = "mean of the benchmarks (%)", f"{report.base}: mean of the benchmarks"
        figure = curve(
            series, baseline=first.mean, ylabel=ylabel, title=title, xlabel="drops", chance=report.chance, steps=steps
        )
        paths += save(figure, folder, "accuracy")
    if perplexity:
        series, steps = _with_steps(report, perplexity)
        ylabel, title = "perplexity (log scale)", f"{report.base}: perplexity"
        figure = curve(
            series, baseline=first.perplexity, ylabel=ylabel, title=title, xlabel="drops", steps=steps, scale="log"
        )
        paths += save(figure, folder, "perplexity")
    paths += _speed(report, folder)
    for order in report.orders:
        paths += _order(report, order.method, folder)
    return tuple(paths)


def _speed(report: SweepReport, folder: Path) -> Sequence[Path]:
    series = _series(report, lambda point: point.speed.speedup_percent if point.speed else None)
    if not series:
        return ()
    intervals: dict[str, list[tuple[float, float]]] = {}
    for point in report.points:
        if point.speed:
            ends = point.speed.ratio.low, point.speed.ratio.high
            intervals.setdefault(NAMES[point.method], []).append((100 * (ends[0] - 1), 100 * (ends[1] - 1)))
    figure = speed_curve(
        series,
        intervals=intervals,
        sdr=_series(report, lambda point: point.sdr.value if point.sdr else None) or None,
        title=f"{report.base}: speed of decoding",
        xlabel="drops",
    )
    return save(figure, folder, "speed")


def _order(report: SweepReport, method: Ranking, folder: Path) -> Sequence[Path]:
    points = [point for point in report.points if point.method == method]
    gone = [{*report.absent, *point.dropped} for point in points]
    rows = [[_state(layer, sublayers) for sublayers in gone] for layer in range(report.num_hidden_layers)]
    figure = dropping_order(
        rows, counts=[point.count for point in points], title=f"{report.base}: order of {NAMES[method]}", ylabel="drops"
    )
    return save(figure, folder, f"order-{method}")


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
