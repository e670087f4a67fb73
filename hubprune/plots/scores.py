"""Importance scores layer by layer: of one base, on several data sets, over numbers of samples and over revisions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

# fmt: off
# isort: off
from hubprune.plots.style import (
    COLOURS, INK, MEASURE, PANEL, QUIET, add_legend, key, legend_height, look, new_figure, shown, styled,
    whole_numbers,
)
# isort: on
# fmt: on

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

    In layers that lack a kind already, a cross stands for their score, which says nothing.  Of the standard errors, one
    per layer, a whisker of two is drawn to each side.
    """
    from matplotlib.patches import Patch

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
    entries: list[tuple[Artist, str]] = [(Patch(facecolor=COLOURS[0]), "kept" if any(gone.values()) else "score")]
    if any(gone.values()):
        entries.append((Patch(facecolor=COLOURS[1], hatch="////", edgecolor=PANEL, linewidth=0), "dropped"))
    if any((absent or {}).values()):
        entries.append((key(color=QUIET, marker="x", markersize=7, linestyle="none"), "not in the base"))
    if errors is not None:
        entries.append((key(color=INK, marker="|", markersize=9, linestyle="none"), "± 2 standard errors"))
    add_legend(figure, entries)
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


@styled
def side_by_side(series: Mapping[str, Panels], *, title: str, measure: str = MEASURE) -> Figure:
    """Draw the scores of several calibration sets as lines over each other (Figure 3 of arXiv 2406.15786).

    The series go by the label of their data set; the kinds are the same for all.
    """
    kinds = list(next(iter(series.values())))
    labels = [shown(label) for label in series]
    figure = new_figure(title, height=_height(len(kinds)) + legend_height(labels))
    rows = figure.subplots(len(kinds), 1, sharex=True, squeeze=False)[:, 0]
    drawn = _panels(rows, series, measure)
    _finish_axis(rows[-1])
    add_legend(figure, list(zip(drawn, labels, strict=True)))
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

    The series go by the number of documents, ascending; the agreement holds by kind, for every number of documents,
    Spearman's rho with the largest.
    """
    from matplotlib.ticker import NullLocator

    kinds = list(next(iter(series.values())))
    labels = [*(f"{count:,} documents" for count in series), *(f"agreement, {shown(kind)}" for kind in agreement)]
    figure = new_figure(title, height=_height(len(kinds) + 1) + legend_height(labels) + 0.3)
    rows = figure.subplots(len(kinds) + 1, 1, squeeze=False)[:, 0]
    drawn = _panels(rows[:-1], series, measure)
    for axes in rows[: len(kinds) - 1]:
        axes.sharex(rows[len(kinds) - 1])
        axes.tick_params(labelbottom=False)
    _finish_axis(rows[-2])
    axes = rows[-1]
    agreeing: list[Artist] = []
    for number, points in enumerate(agreement.values(), start=len(series)):
        agreeing += axes.plot([count for count, _ in points], [rho for _, rho in points], **look(number))
    axes.set_ylim(top=1 + 0.05 * (1 - axes.get_ylim()[0]))  # no rho is above 1
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(series), [str(count) for count in series])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set(xlabel="calibration documents", ylabel="Spearman's ρ")
    axes.set_title("agreement of the order with the largest number", loc="left")
    add_legend(figure, list(zip([*drawn, *agreeing], labels, strict=True)))
    return figure


@styled
def heat_map(
    panels: Mapping[str, Sequence[Sequence[float]]],
    *,
    labels: Sequence[str],
    title: str,
    ylabel: str = "revision",
    first_apart: bool = True,
    measure: str = MEASURE,
) -> Figure:
    """Draw importance by layer and revision, light where it is low (Figure 7 of arXiv 2406.15786).

    A panel has a row of scores per label, from top to bottom.  With `first_apart`, layer 0 is left out of the colour
    scale, as in the paper: its score hides all others.
    """
    figure = new_figure(title, height=min(12.0, 1.6 + len(panels) * max(1.3, 0.75 + 0.24 * len(labels))))
    rows = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (name, values) in zip(rows, panels.items(), strict=True):
        apart = first_apart and len(values[0]) > 2
        scaled = [score for row in values for score in (row[1:] if apart else row)]
        low, high = min(scaled), max(scaled)
        image = axes.imshow(values, aspect="auto", cmap="cividis_r", interpolation="nearest", vmin=low, vmax=high)
        over = apart and max(row[0] for row in values) > high
        bar = figure.colorbar(image, ax=axes, extend="max" if over else "neither", pad=0.02)
        bar.set_label(shown(measure))
        axes.set_title(f"{shown(name)}{'  (layer 0 is beyond the colour scale)' if over else ''}", loc="left")
        axes.set_yticks(range(len(labels)), [shown(label, longest=24) for label in labels])
        axes.set(ylabel=ylabel)
        axes.grid(visible=False)
    rows[-1].set(xlabel="layer of the base")
    whole_numbers(rows[-1])
    return figure


def _panels(rows: Any, series: Mapping[Any, Panels], measure: str) -> list[Artist]:
    """Draw a panel per kind with a line for each of a series, and return the lines of the first."""
    drawn: list[Artist] = []
    for axes, kind in zip(rows, next(iter(series.values())), strict=True):
        lines = [panels[kind] for panels in series.values()]
        drawn += [axes.plot(range(len(line)), line, **look(number))[0] for number, line in enumerate(lines)]
        _finish_panel(axes, kind, lines, measure)
    return drawn[: len(series)]


def _finish_panel(axes: Axes, kind: str, lines: Sequence[Sequence[float]], measure: str) -> None:
    axes.set_title(shown(kind), loc="left")
    axes.set(ylabel=shown(measure))
    # Cut the axis below a layer that towers over all others, and say so; the first layer does so in most models.
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
