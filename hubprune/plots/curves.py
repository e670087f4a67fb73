"""What dropping does: quality and speed over a number of drops, what goes when, and what each benchmark changed by."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

# fmt: off
# isort: off
from hubprune.plots.style import (
    COLOURS, HEIGHT, INK, PANEL, QUIET, add_legend, key, legend_height, look, new_figure, shown, styled,
    whole_numbers,
)
# isort: on
# fmt: on

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Points = Sequence[tuple[int, float]]
Step = Literal["attn", "mlp", "block"]
"""What one step of a joint drop took."""
STEP_MARKERS: Mapping[Step, tuple[str, str]] = {
    "attn": ("X", "an attention went"), "mlp": ("*", "an MLP went"), "block": ("P", "a block went"),
}  # fmt: skip


@styled
def curve(
    series: Mapping[str, Points],
    *,
    baseline: float | None,
    ylabel: str,
    title: str,
    xlabel: str = "sublayers dropped",
    chance: float | None = None,
    steps: Mapping[str, Sequence[Step]] | None = None,
    scale: Literal["linear", "log"] = "linear",
) -> Figure:
    """Draw a measure over the number of drops, one line per method (Figures 5, 8 and 9 of arXiv 2406.15786).

    The series go by label, in ascending order of drops.  The baseline is the unpruned base's value, as a dotted line;
    chance is the value of guessing, as a second one.  For joint drops, `steps` holds by label what went at each point,
    which the markers then tell.  The scale is that of the vertical axis: `log` for perplexities that explode.
    """
    given = steps or {}
    labels = [*series, *(["base"] if baseline is not None else []), *(["chance"] if chance is not None else [])]
    kinds = [kind for kind in STEP_MARKERS if any(kind in kinds for kinds in given.values())]
    labels = [shown(label) for label in (*labels, *(STEP_MARKERS[kind][1] for kind in kinds))]
    figure = new_figure(title, height=HEIGHT + legend_height(labels))
    axes = figure.subplots()
    drawn = [_line(axes, points, number=i, kinds=given.get(label)) for i, (label, points) in enumerate(series.items())]
    for value, colour, dashes in ((baseline, INK, (0, (1, 1.5))), (chance, QUIET, (0, (6, 2, 1, 2)))):
        if value is not None:
            drawn.append(axes.axhline(value, color=colour, linestyle=dashes, linewidth=1.4, zorder=1.5))
    for kind in kinds:
        size = 12 if kind == "mlp" else 9
        drawn.append(key(color=COLOURS[4], marker=STEP_MARKERS[kind][0], linestyle="none", markersize=size))
    axes.set(xlabel=xlabel, ylabel=ylabel)
    _scale(axes, scale)
    whole_numbers(axes)
    add_legend(figure, list(zip(drawn, labels, strict=True)))
    return figure


@styled
def speed_curve(
    series: Mapping[str, Points],
    *,
    intervals: Mapping[str, Sequence[tuple[float, float]]] | None = None,
    sdr: Mapping[str, Points] | None = None,
    title: str,
    ylabel: str = "speed-up of decoding (%)",
    xlabel: str = "sublayers dropped",
) -> Figure:
    """Draw what dropping gains in speed, and below it what each percent of it costs.

    The series, their 95 % intervals (low and high end of every point) and their SDR go by label, speed in percent.  SDR
    is points of mean accuracy lost per percent of speed-up, the lower the better; where a point has none, its line is
    broken.
    """
    labels = [shown(label) for label in (*series, *(["95 % interval"] if intervals else []))]
    figure = new_figure(title, height=HEIGHT * (1.5 if sdr else 1) + legend_height(labels))
    rows = figure.subplots(2 if sdr else 1, 1, sharex=True, squeeze=False)[:, 0]
    drawn = [_line(rows[0], points, number=i) for i, points in enumerate(series.values())]
    for i, (label, points) in enumerate(series.items()):
        for (drops, _), ends in zip(points, intervals[label] if intervals else (), strict=bool(intervals)):
            colour = look(i)["color"]
            rows[0].plot([drops, drops], ends, "_-", color=colour, linewidth=1, markersize=6, zorder=1.8)
        if sdr and label in sdr:
            known = dict(sdr[label])
            _line(rows[-1], [(drops, known.get(drops, math.nan)) for drops, _ in points], number=i)
    rows[0].set(ylabel=ylabel)
    if sdr:
        rows[-1].set(ylabel="SDR (points per %)")
    rows[-1].set(xlabel=xlabel)
    whole_numbers(rows[-1])
    whiskers = [key(color=COLOURS[4], marker="|", markersize=12, linestyle="none")] if intervals else []
    add_legend(figure, list(zip([*drawn, *whiskers], labels, strict=True)))
    return figure


@styled
def training(losses: Points, held_out: Points, perplexities: Points, *, base_perplexity: float, title: str) -> Figure:
    """Draw loss and KL of held-out documents over the steps of a training, and below them perplexity.

    The losses are means since the look before, each at the step of its look; the base's perplexity is a dotted line.
    """
    labels = ["training loss", "held-out KL to the base", "held-out perplexity", "base"]
    figure = new_figure(title, height=HEIGHT * 1.5 + legend_height(labels))
    above, below = figure.subplots(2, 1, sharex=True)
    drawn = [_line(above, losses, number=0), _line(above, held_out, number=1), _line(below, perplexities, number=2)]
    drawn.append(below.axhline(base_perplexity, color=INK, linestyle=(0, (1, 1.5)), linewidth=1.4, zorder=1.5))
    above.set(ylabel="nats per token")
    above.set_ylim(bottom=0)
    below.set(xlabel="step", ylabel="perplexity")
    whole_numbers(below)
    add_legend(figure, list(zip(drawn, labels, strict=True)))
    return figure


@styled
def frontier(
    predicted: Sequence[tuple[float, float]], measured: Sequence[tuple[float, float, float]], *, title: str,
    xlabel: str, base_loss: float,
) -> Figure:  # fmt: skip
    """Draw the least loss that every saving costs.

    Args:
        predicted: percent saved, and the rise of the loss that was added up, ascending.
        measured: percent saved, the rise that was predicted, and the one that was measured, of plans that were run.
        title: of the picture.
        xlabel: what is saved, of what.
        base_loss: nats per token that the base loses; the second scale has the perplexity that follows.
    """
    figure = new_figure(title, height=HEIGHT)
    axes = figure.subplots()
    (line,) = axes.plot(
        [x for x, _ in predicted], [y for _, y in predicted], drawstyle="default", color=COLOURS[0], linestyle="--",
        marker="o", markerfacecolor=PANEL, markeredgecolor=COLOURS[0],
    )  # fmt: skip
    drawn: list[tuple[Artist, str]] = [(line, shown("predicted: losses of single changes, added up"))]
    axes.axhline(0, color=INK, linestyle=(0, (1, 1.5)), linewidth=1.2, zorder=1.5)
    for x, low, high in measured:
        axes.plot([x, x], [low, high], color=QUIET, linewidth=1.2, zorder=2.5)
        axes.plot([x], [high], marker="D", markersize=9, color=COLOURS[1], markeredgecolor=PANEL, zorder=3)
        axes.annotate(f"{high:+.3f}", (x, high), xytext=(8, 6), textcoords="offset points", color=INK, fontsize=10)
    if measured:
        sign = key(marker="D", markersize=9, color=COLOURS[1], markeredgecolor=PANEL, linestyle="none")
        drawn.append((sign, shown("measured: this model, all of it at once")))
    axes.set(xlabel=xlabel, ylabel="rise of the loss (nats per token)")
    axes.margins(x=0.04, y=0.12)
    base = math.exp(min(base_loss, 30.0))
    other = axes.secondary_yaxis("right", functions=(lambda y: y, lambda y: y))
    other.set_ylabel("times the base's perplexity")
    other.yaxis.set_major_formatter(lambda rise, _: f"{math.exp(min(rise, 30.0)):.3g}x")
    axes.annotate(
        f"base: perplexity {base:.4g}", (0, 0), xycoords=("axes fraction", "data"), xytext=(6, -4),
        textcoords="offset points", va="top", color=QUIET, fontsize=9,
    )  # fmt: skip
    add_legend(figure, drawn)
    return figure


def _line(axes: Axes, points: Points, *, number: int, kinds: Sequence[Step] | None = None) -> Artist:
    drops, values = [x for x, _ in points], [y for _, y in points]
    style = look(number)
    if not kinds:
        return axes.plot(drops, values, **style)[0]
    edges: dict[str, Any] = {"markeredgecolor": PANEL, "markeredgewidth": 0.3}
    for kind, (marker, _) in STEP_MARKERS.items():
        places = [i for i, step in enumerate(kinds) if step == kind]
        x, y = [drops[i] for i in places], [values[i] for i in places]
        axes.plot(x, y, marker, color=style["color"], markersize=12 if marker == "*" else 9, **edges)
    return axes.plot(drops, values, color=style["color"], linestyle=style["linestyle"])[0]


def _scale(axes: Axes, scale: Literal["linear", "log"]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

    axes.set_yscale(scale)
    if scale == "linear":
        return
    low, high = axes.get_ylim()
    # Powers of ten alone would leave an axis without a number where all values lie between two of them.
    if high < 8 * low:
        axes.yaxis.set_major_locator(MaxNLocator(nbins=6))
        axes.yaxis.set_minor_locator(NullLocator())
    elif high < 1000 * low:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1000 else f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


CellState = Literal["kept", "dropped-attn", "dropped-mlp", "gone"]
"""A layer after so many drops: whole, without attention, without MLP, or with neither."""
CELLS: Mapping[CellState, tuple[str, str, str]] = {
    "kept": ("#ece9d8", "", "kept"), "dropped-attn": (COLOURS[0], "////", "attention dropped"),
    "dropped-mlp": (COLOURS[5], "....", "MLP dropped"), "gone": (COLOURS[1], "xxxx", "both dropped"),
}  # fmt: skip
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

    There is one row per layer, in the order of the base, and in it one state per number of drops.

    Raises:
        ValueError: a row has another length than `counts`.
    """
    from matplotlib.collections import PolyCollection
    from matplotlib.patches import Patch

    figure = new_figure(title, height=min(9.0, max(3.2, 1.9 + 0.16 * len(counts))))
    axes = figure.subplots()
    for state, (colour, hatch, _) in CELLS.items():
        corners = [
            [(x - 0.5, y - 0.5), (x + 0.5, y - 0.5), (x + 0.5, y + 0.5), (x - 0.5, y + 0.5)]
            for x, row in enumerate(rows)
            for y, found in zip(range(len(counts)), row, strict=True)
            if found == state
        ]
        squares = PolyCollection(corners, facecolor=colour, edgecolor=PANEL, linewidth=0.8, hatch=hatch or None)
        axes.add_collection(squares)
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


LOOKS: Mapping[str, tuple[str, str]] = {
    "worse": ("v", COLOURS[1]), "better": ("^", COLOURS[2]), "not distinguishable": ("o", COLOURS[0]),
    "at chance": ("s", QUIET), "not tested": ("D", COLOURS[3]),
}  # fmt: skip
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

    Their mean stands below, set apart by a rule, without its verdict.
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
    marks = {row.mark for row in rows}
    entries = [
        (key(color=colour, marker=marker, markersize=8, markeredgecolor=PANEL, linestyle="none"), mark)
        for mark, (marker, colour) in LOOKS.items()
        if mark in marks
    ]
    if any(row.low is not None for row in rows):
        entries.append((key(color=INK, linewidth=2), "95 % interval"))
    add_legend(figure, entries)
    return figure


def _draw(axes: Axes, row: Change, place: float, marker: str, colour: str) -> None:
    if row.low is not None and row.high is not None:
        axes.plot([row.low, row.high], [place, place], color=colour, linewidth=2, solid_capstyle="butt", zorder=2)
    axes.plot([row.points], [place], marker, color=colour, markersize=8, markeredgecolor=PANEL, zorder=3)
    value = "0.00" if abs(row.points) < 0.005 else f"{row.points:+.2f}".replace("-", "−")
    where: dict[str, Any] = {"xy": (row.points, place), "xytext": (0, 7), "textcoords": "offset points", "ha": "center"}
    box = {"facecolor": PANEL, "edgecolor": "none", "pad": 0.5}
    axes.annotate(value, **where, fontsize=9, color=INK, bbox=box, zorder=2.5)
