"""The look that all pictures share, and how they are written."""

from __future__ import annotations

import functools
import io
import math
import textwrap
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from hubprune.core.extras import require
from hubprune.core.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 8.0, 4.5
"""Inches of a picture with one row of legend."""
DPI = 150
PANEL, INK, QUIET, GRID = "#fbfbf9", "#1f2328", "#57606a", "#d8dce0"
"""Background, text, second text and grid lines: 15:1 and 6:1 against the panel."""
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
"""Okabe and Ito, Color Universal Design (2008), without the yellow that no light panel carries."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<")
DASHES = ("-", "--", "-.", ":")
LEGEND_CHARACTERS = 90
"""Characters that fit into one row of legend."""
COLUMN_CHARACTERS = 7
"""Characters whose room the line and the gap of one entry take."""
LONGEST_LABEL = 48
TITLE_CHARACTERS = 60
"""Characters that fit into one line of a title."""
MEASURE = "importance S"
"""Name of the scores by the default metric."""

STYLE: dict[str, Any] = {
    "axes.axisbelow": True, "axes.edgecolor": QUIET, "axes.facecolor": PANEL, "axes.grid": True,
    "axes.labelcolor": INK, "axes.labelsize": 11, "axes.spines.right": False, "axes.spines.top": False,
    "axes.titlesize": 12, "figure.constrained_layout.h_pad": 0.1, "figure.constrained_layout.w_pad": 0.1,
    "figure.facecolor": PANEL, "font.size": 10, "grid.color": GRID, "grid.linewidth": 0.7, "hatch.linewidth": 0.6,
    "legend.fontsize": 10, "legend.frameon": False, "lines.linewidth": 1.8, "lines.markersize": 5.5,
    "savefig.facecolor": PANEL, "svg.hashsalt": "hubprune", "text.color": INK, "xtick.color": QUIET,
    "ytick.color": QUIET,
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that every machine draws the same
    "svg.fonttype": "none",  # labels stay text: readable to screen readers and to search
    "text.parse_math": False,  # a dollar sign in the name of a data set is a dollar sign
}  # fmt: skip

Params = ParamSpec("Params")
Made = TypeVar("Made")


def require_matplotlib() -> None:
    """Raise MissingDependencyError where matplotlib is not installed; costs no import."""
    require("plots", doing="A picture")


def styled(draw: Callable[Params, Made]) -> Callable[Params, Made]:
    """Run a drawing function under the shared style, whatever the user's own matplotlibrc says.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """

    @functools.wraps(draw)
    def inside(*args: Params.args, **kwargs: Params.kwargs) -> Made:
        """Draw in the style."""
        require_matplotlib()
        import matplotlib

        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            cast(Any, matplotlib.rcParams).update(STYLE)
            return draw(*args, **kwargs)

    return inside


def new_figure(title: str, *, height: float = HEIGHT) -> Figure:
    """Return an empty figure with a title; what is put into it is laid out without overlaps when it is drawn."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained", edgecolor=GRID, linewidth=2)
    lines = textwrap.wrap(shown(title, longest=2 * TITLE_CHARACTERS), TITLE_CHARACTERS)
    figure.suptitle("\n".join(lines), fontsize=13, fontweight="bold")
    return figure


def shown(text: str, *, longest: int = LONGEST_LABEL) -> str:
    """Return a text as a label can show it: one line, not too long, and never hidden."""
    line = " ".join(text.split())
    line = line if len(line) <= longest else f"{line[: longest - 1]}…"
    # matplotlib leaves labels that start with an underscore out of legends; after a word joiner they stay.
    return f"\u2060{line}" if line.startswith("_") else line


def legend_columns(labels: Sequence[str]) -> int:
    """Return how many columns of a legend fit beside each other."""
    for columns in range(len(labels), 1, -1):
        # As matplotlib fills them: column by column, the first with one entry more where it does not come out even.
        short, longer = divmod(len(labels), columns)
        ends = [column * short + min(column, longer) for column in range(columns + 1)]
        widest = [max(map(len, labels[start:end])) for start, end in pairwise(ends)]
        if sum(widest) + COLUMN_CHARACTERS * columns <= LEGEND_CHARACTERS:
            return columns
    return 1


def legend_height(labels: Sequence[str]) -> float:
    """Return the inches that a legend takes beyond its first row."""
    return 0.22 * (math.ceil(len(labels) / legend_columns(labels)) - 1)


def add_legend(figure: Figure, entries: Sequence[tuple[Artist, str]]) -> None:
    """Put a legend below the data, never on them."""
    labels = [label for _, label in entries]
    figure.legend([artist for artist, _ in entries], labels, loc="outside lower center", ncols=legend_columns(labels))


def key(**looks: Any) -> Artist:
    """Return the sign of a legend's entry that no line of the picture can stand for."""
    from matplotlib.lines import Line2D

    return Line2D([], [], **looks)


def look(number: int) -> dict[str, Any]:
    """Return colour, marker and dashes of the line with a number; the first 28 all differ in two of them."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": DASHES[number % len(DASHES)],
        "marker": MARKERS[number % len(MARKERS)],
        "markeredgecolor": PANEL,
        "markeredgewidth": 0.6,
    }


def whole_numbers(axes: Axes) -> None:
    """Let the horizontal axis count: no tick between two whole numbers."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=12, integer=True, min_n_ticks=1))


def save(figure: Figure, folder: Path, name: str) -> tuple[Path, Path]:
    """Write a figure as PNG and SVG; readers see the old or the new file, never half of one.

    The folder is made where it is missing.  Returns the paths of the PNG and of the SVG, whose bytes depend on the
    figure and on the version of matplotlib alone.
    """
    png, svg = folder / f"{name}.png", folder / f"{name}.svg"
    save_png(figure, png)
    title = " ".join(figure.get_suptitle().split())
    write_atomically(svg, _rendered(figure, "svg", {"Date": None, "Creator": None, "Title": title}))
    return png, svg


def save_png(figure: Figure, path: Path) -> None:
    """Write a figure as PNG alone, for a page that shows nothing else."""
    write_atomically(path, png(figure))


def png(figure: Figure) -> bytes:
    """Return a figure as the bytes of a PNG file."""
    _lay_out(figure)
    return _rendered(figure, "png", {"Software": None})


@styled
def _lay_out(figure: Figure) -> None:
    """Find the layout once and keep it: each further drawing would start from the last one and move by a hair."""
    if figure.get_layout_engine() is not None:
        figure.draw_without_rendering()
        figure.set_layout_engine("none")


@styled
def _rendered(figure: Figure, kind: str, metadata: dict[str, str | None]) -> bytes:
    written = io.BytesIO()
    figure.savefig(written, format=kind, dpi=DPI, metadata=metadata, edgecolor=figure.get_edgecolor())
    return written.getvalue()
