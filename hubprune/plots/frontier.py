"""Loss against saving: what is predicted as a line, and what was measured as marks on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hubprune.plots.style import COLOURS, HEIGHT, INK, PANEL, QUIET, add_legend, key, new_figure, shown, styled

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure


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
