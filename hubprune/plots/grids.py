"""Grids of cells: in which order sublayers go, and how important layers are from checkpoint to checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from hubprune.plots.style import COLOURS, INK, MEASURE, PANEL, add_legend, new_figure, shown, styled, whole_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CellState = Literal["kept", "dropped-attn", "dropped-mlp", "gone"]
"""A layer after so many drops: whole, without attention, without MLP, or with neither."""
CELLS: Mapping[CellState, tuple[str, str, str]] = {
    "kept": ("#ece9d8", "", "kept"),
    "dropped-attn": (COLOURS[0], "////", "attention dropped"),
    "dropped-mlp": (COLOURS[5], "....", "MLP dropped"),
    "gone": (COLOURS[1], "xxxx", "both dropped"),
}
"""State -> colour, hatch, name."""


@styled
def dropping_order(
    rows: Sequence[Sequence[CellState]],
    *,
    counts: Sequence[int],
    title: str,
    ylabel: str = "sublayers dropped",
    xlabel: str = "layer of the base",
) -> Figure:
    """Draw what is left of every layer after every number of drops (Figure 6 of arXiv 2406.15786).

    Args:
        rows: one row per layer, in the order of the base; in it one state per number of drops.
        counts: the numbers of drops, one per entry of a row.
        title: of the picture.
        ylabel: what is counted.
        xlabel: what the rows are.

    Raises:
        ValueError: a row has another length than `counts`.
    """
    from matplotlib.patches import Patch

    figure = new_figure(title, height=min(9.0, max(3.2, 1.9 + 0.16 * len(counts))))
    axes = figure.subplots()
    for state in CELLS:
        places = [
            (x, y) for x, row in enumerate(rows) for y, s in zip(range(len(counts)), row, strict=True) if s == state
        ]
        _fill(axes, places, state)
    axes.set(xlabel=xlabel, ylabel=ylabel, xlim=(-0.5, len(rows) - 0.5), ylim=(len(counts) - 0.5, -0.5))
    axes.grid(visible=False)
    whole_numbers(axes)
    every = max(1, -(-len(counts) // 16))
    axes.set_yticks(range(0, len(counts), every), [str(count) for count in counts[::every]])
    seen = {state for row in rows for state in row}
    entries = [
        (Patch(facecolor=colour, hatch=hatch, edgecolor=INK, linewidth=0.4), name)
        for state, (colour, hatch, name) in CELLS.items()
        if state in seen
    ]
    add_legend(figure, entries)
    return figure


def _fill(axes: Axes, places: Sequence[tuple[int, int]], state: CellState) -> None:
    from matplotlib.collections import PolyCollection

    colour, hatch, _ = CELLS[state]
    corners = [[(x - 0.5, y - 0.5), (x + 0.5, y - 0.5), (x + 0.5, y + 0.5), (x - 0.5, y + 0.5)] for x, y in places]
    axes.add_collection(PolyCollection(corners, facecolor=colour, edgecolor=PANEL, linewidth=0.8, hatch=hatch or None))


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

    Args:
        panels: name, as in `attention` -> one row of scores per label, one score per layer.
        labels: of the rows, from top to bottom.
        title: of the picture.
        ylabel: what the labels are.
        first_apart: leave layer 0 out of the colour scale, as the paper does: its score hides all others.
        measure: name of the scores.
    """
    height = 1.6 + len(panels) * max(1.3, 0.75 + 0.24 * len(labels))
    figure = new_figure(title, height=min(12.0, height))
    rows = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (name, values) in zip(rows, panels.items(), strict=True):
        _heat(figure, axes, values, name=name, first_apart=first_apart and len(values[0]) > 2, measure=measure)
        axes.set_yticks(range(len(labels)), [shown(label, longest=24) for label in labels])
        axes.set(ylabel=ylabel)
        axes.grid(visible=False)
    rows[-1].set(xlabel="layer of the base")
    whole_numbers(rows[-1])
    return figure


def _heat(
    figure: Figure, axes: Axes, values: Sequence[Sequence[float]], *, name: str, first_apart: bool, measure: str
) -> None:
    scaled = [score for row in values for score in (row[1:] if first_apart else row)]
    image = axes.imshow(
        values, aspect="auto", cmap="cividis_r", interpolation="nearest", vmin=min(scaled), vmax=max(scaled)
    )
    over = first_apart and max(row[0] for row in values) > max(scaled)
    bar = figure.colorbar(image, ax=axes, extend="max" if over else "neither", pad=0.02)
    bar.set_label(shown(measure))
    note = "" if not over else "  (layer 0 is beyond the colour scale)"
    axes.set_title(f"{shown(name)}{note}", loc="left")
