"""What each benchmark gained or lost, with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hubprune.plots.style import COLOURS, INK, PANEL, QUIET, add_legend, new_figure, shown, styled

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOOKS: Mapping[str, tuple[str, str]] = {
    "worse": ("v", COLOURS[1]),
    "better": ("^", COLOURS[2]),
    "not distinguishable": ("o", COLOURS[0]),
    "at chance": ("s", QUIET),
    "not tested": ("D", COLOURS[3]),
}
"""Verdict -> marker and colour, in the order of the legend."""
ROW_INCHES = 0.36


@dataclass(frozen=True, kw_only=True)
class Change:
    """A change in points; positive is better for shares of right answers."""

    label: str
    points: float
    low: float | None = None
    """Lower end of the 95 % interval; None where there is none."""
    high: float | None = None
    mark: str = "not tested"
    """Verdict, one of `LOOKS`."""


@styled
def changes(rows: Sequence[Change], *, mean: Change | None = None, title: str) -> Figure:
    """Draw a row per benchmark: a marker at its change, a line over its interval, and a line at no change.

    Args:
        rows: from top to bottom.
        mean: of them, below and set apart by a rule; its verdict is not shown.
        title: of the picture.
    """
    figure = new_figure(title, height=1.9 + ROW_INCHES * (len(rows) + (1.5 if mean else 0)))
    axes = figure.subplots()
    axes.axvline(0, color=INK, linewidth=1.0, zorder=1)
    for place, row in enumerate(rows):
        _draw(axes, row, place, *LOOKS[row.mark])
    places, labels = [float(place) for place in range(len(rows))], [shown(row.label) for row in rows]
    if mean:
        axes.axhline(len(rows) - 0.25, color=QUIET, linewidth=0.8)
        _draw(axes, mean, len(rows) + 0.5, "D", INK)
        places, labels = [*places, len(rows) + 0.5], [*labels, shown(mean.label)]
    axes.set_yticks(places, labels)
    axes.set_ylim(places[-1] + 0.7, -0.7)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("change in percentage points (this model − base)")
    add_legend(figure, _entries(rows))
    return figure


def _draw(axes: Axes, row: Change, place: float, marker: str, colour: str) -> None:
    if row.low is not None and row.high is not None:
        axes.plot([row.low, row.high], [place, place], color=colour, linewidth=2, solid_capstyle="butt", zorder=2)
    axes.plot([row.points], [place], marker, color=colour, markersize=8, markeredgecolor=PANEL, zorder=3)
    value = "0.00" if abs(row.points) < 0.005 else f"{row.points:+.2f}".replace("-", "−")
    axes.annotate(
        value,
        (row.points, place),
        xytext=(0, 7),
        textcoords="offset points",
        ha="center",
        fontsize=9,
        color=INK,
        bbox={"facecolor": PANEL, "edgecolor": "none", "pad": 0.5},
        zorder=2.5,
    )


def _entries(rows: Sequence[Change]) -> list[tuple[Artist, str]]:
    from matplotlib.lines import Line2D

    marks = {row.mark for row in rows}
    entries: list[tuple[Artist, str]] = [
        (Line2D([], [], color=colour, marker=marker, markersize=8, markeredgecolor=PANEL, linestyle="none"), mark)
        for mark, (marker, colour) in LOOKS.items()
        if mark in marks
    ]
    if any(row.low is not None for row in rows):
        entries.append((Line2D([], [], color=INK, linewidth=2), "95 % interval"))
    return entries
