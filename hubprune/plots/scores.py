"""Importance scores layer by layer: of one base, on several data sets, and over numbers of samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from hubprune.plots.style import (
    COLOURS,
    INK,
    MEASURE,
    PANEL,
    QUIET,
    add_legend,
    legend_height,
    look,
    new_figure,
    shown,
    styled,
    whole_numbers,
)

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Panels = Mapping[str, Sequence[float]]
"""Kind, as in `attention` -> one score per layer."""
TALLER = 3.0
"""How many times the second highest score may be before the highest is cut off, so that the others can be seen."""


@styled
def importance(
    panels: Panels,
    *,
    dropped: Mapping[str, Sequence[int]] | None = None,
    absent: Mapping[str, Sequence[int]] | None = None,
    errors: Panels | None = None,
    title: str,
    measure: str = MEASURE,
) -> Figure:
    """Draw a bar per layer and kind, those that go marked by colour and hatch (Figure 2 of arXiv 2406.15786).

    Args:
        panels: kind -> one score per layer.
        dropped: kind -> layers that go.
        absent: kind -> layers that lack it already; a cross stands for their score, which says nothing.
        errors: kind -> one standard error per layer, drawn as a whisker of two of them to each side.
        title: of the picture.
        measure: name of the scores.
    """
    gone = {kind: set((dropped or {}).get(kind, ())) for kind in panels}
    figure = new_figure(title, height=_height(len(panels)))
    rows = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (kind, scores) in zip(rows, panels.items(), strict=True):
        _bars(axes, scores, gone[kind])
        if lacking := (absent or {}).get(kind):
            axes.plot(lacking, [0.0] * len(lacking), "x", color=QUIET, markersize=7, clip_on=False, zorder=5)
        whiskers = [2 * error for error in (errors or {}).get(kind, ())]
        if whiskers:
            axes.errorbar(range(len(scores)), scores, yerr=whiskers, fmt="none", ecolor=INK, elinewidth=0.9, capsize=2)
        _finish_panel(axes, kind, [scores], measure)
    _finish_axis(rows[-1])
    add_legend(
        figure, _bar_entries(gone=any(gone.values()), absent=any((absent or {}).values()), whiskers=errors is not None)
    )
    return figure


def _bars(axes: Axes, scores: Sequence[float], gone: set[int]) -> None:
    kept = [layer for layer in range(len(scores)) if layer not in gone]
    axes.bar(kept, [scores[layer] for layer in kept], color=COLOURS[0], width=0.8)
    if not gone:
        return
    marked = sorted(gone)
    heights = [scores[layer] for layer in marked]
    axes.bar(marked, heights, color=COLOURS[1], width=0.8, hatch="////", edgecolor=PANEL, linewidth=0)
    # A score near zero leaves no bar to see: a mark on the axis says all the same that the layer goes.
    axes.plot(marked, [0.0] * len(marked), "v", color=COLOURS[1], markersize=6, clip_on=False, zorder=5)


def _bar_entries(*, gone: bool, absent: bool, whiskers: bool) -> list[tuple[Artist, str]]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    entries: list[tuple[Artist, str]] = [(Patch(facecolor=COLOURS[0]), "kept")]
    if gone:
        entries.append((Patch(facecolor=COLOURS[1], hatch="////", edgecolor=PANEL, linewidth=0), "dropped"))
    if absent:
        entries.append((Line2D([], [], color=QUIET, marker="x", markersize=7, linestyle="none"), "not in the base"))
    if whiskers:
        entries.append((Line2D([], [], color=INK, marker="|", markersize=9, linestyle="none"), "± 2 standard errors"))
    return entries


@styled
def side_by_side(series: Mapping[str, Panels], *, title: str, measure: str = MEASURE) -> Figure:
    """Draw the scores of several calibration sets as lines over each other (Figure 3 of arXiv 2406.15786).

    Args:
        series: label of the data set -> kind -> one score per layer; the kinds are the same for all.
        title: of the picture.
        measure: name of the scores.
    """
    kinds = list(next(iter(series.values())))
    labels = [shown(label) for label in series]
    figure = new_figure(title, height=_height(len(kinds)) + legend_height(labels))
    rows = figure.subplots(len(kinds), 1, sharex=True, squeeze=False)[:, 0]
    drawn = [
        _panel(axes, kind, [panels[kind] for panels in series.values()], measure)
        for axes, kind in zip(rows, kinds, strict=True)
    ]
    _finish_axis(rows[-1])
    add_legend(figure, list(zip(drawn[0], labels, strict=True)))
    return figure


@styled
def stability(
    series: Mapping[int, Panels],
    *,
    agreement: Mapping[str, Sequence[tuple[int, float]]],
    title: str,
    measure: str = MEASURE,
) -> Figure:
    """Draw scores for several numbers of samples, and how well their order agrees (Figure 10 of arXiv 2406.15786).

    Args:
        series: documents -> kind -> one score per layer, in ascending order of documents.
        agreement: kind -> (documents, Spearman's rho with the largest number of documents).
        title: of the picture.
        measure: name of the scores.
    """
    kinds = list(next(iter(series.values())))
    labels = [*(f"{count:,} documents" for count in series), *(f"agreement, {shown(kind)}" for kind in agreement)]
    figure = new_figure(title, height=_height(len(kinds) + 1) + legend_height(labels) + 0.3)
    rows = figure.subplots(len(kinds) + 1, 1, squeeze=False)[:, 0]
    drawn = [
        _panel(axes, kind, [panels[kind] for panels in series.values()], measure)
        for axes, kind in zip(rows[:-1], kinds, strict=True)
    ]
    for axes in rows[: len(kinds) - 1]:
        axes.sharex(rows[len(kinds) - 1])
        axes.tick_params(labelbottom=False)
    _finish_axis(rows[-2])
    agreeing = _agreement(rows[-1], agreement, counts=list(series))
    add_legend(figure, list(zip([*drawn[0], *agreeing], labels, strict=True)))
    return figure


def _agreement(
    axes: Axes, agreement: Mapping[str, Sequence[tuple[int, float]]], *, counts: Sequence[int]
) -> list[Artist]:
    from matplotlib.ticker import NullLocator

    drawn: list[Artist] = []
    for number, points in enumerate(agreement.values(), start=len(counts)):
        drawn += axes.plot([count for count, _ in points], [rho for _, rho in points], **look(number))
    axes.set_ylim(top=1 + 0.05 * (1 - axes.get_ylim()[0]))  # no rho is above 1
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set(xlabel="calibration documents", ylabel="Spearman's ρ")
    axes.set_title("agreement of the order with the largest number", loc="left")
    return drawn


def _panel(axes: Axes, kind: str, lines: Sequence[Sequence[float]], measure: str) -> list[Artist]:
    drawn: list[Artist] = [axes.plot(range(len(line)), line, **look(number))[0] for number, line in enumerate(lines)]
    _finish_panel(axes, kind, lines, measure)
    return drawn


def _finish_panel(axes: Axes, kind: str, lines: Sequence[Sequence[float]], measure: str) -> None:
    axes.set_title(shown(kind), loc="left")
    axes.set(ylabel=shown(measure))
    _cut_tall(axes, lines)


def _cut_tall(axes: Axes, lines: Sequence[Sequence[float]]) -> None:
    """Cut the axis below a layer that towers over all others, and say so; the first layer does so in most models."""
    tops = [max(line[layer] for line in lines) for layer in range(len(lines[0]))]
    order = sorted(range(len(tops)), key=lambda layer: tops[layer])
    axes.set_ylim(bottom=min(0.0, *tops))
    if len(order) < 3 or tops[order[-1]] <= TALLER * tops[order[-2]] or tops[order[-2]] <= 0:
        return
    layer = order[-1]
    low, high = min(line[layer] for line in lines), tops[layer]
    value = f"{high:.3g}" if f"{low:.3g}" == f"{high:.3g}" else f"{low:.3g} to {high:.3g}"
    axes.set_ylim(top=1.25 * tops[order[-2]])
    axes.set_title(f"↑ layer {layer} is cut off: {value}", loc="right", fontsize=10)


def _finish_axis(axes: Axes) -> None:
    axes.set(xlabel="layer of the base")
    whole_numbers(axes)


def _height(panels: int) -> float:
    return 1.3 + 3.2 if panels == 1 else 1.3 + 1.75 * panels
