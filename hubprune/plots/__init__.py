"""Pictures for cards and studies: plain values go in, a figure comes out, `save` writes it as PNG and SVG.

Every picture is a light panel of its own, so that it reads the same on a light and on a dark page.  Colour never says
anything alone: lines differ in markers and dashes too, cells in hatches.  Same values, same bytes.  Needs the extra
`hubprune[plots]`; importing this package does not load matplotlib yet.

style      the look that all share, legends, and how files are written
scores     importance by layer: of one base, side by side, over samples and over revisions
curves     quality and speed over a number of drops, what goes when, what each benchmark changed by
pictures   all of these, made of artifacts: for a card, a study of scores, a sweep
"""

from hubprune.plots.curves import (
    CellState,
    Change,
    Step,
    changes,
    curve,
    dropping_order,
    frontier,
    speed_curve,
    training,
)
from hubprune.plots.scores import heat_map, importance, side_by_side, stability
from hubprune.plots.style import MEASURE, png, require_matplotlib, save, save_png

__all__ = [
    "MEASURE", "CellState", "Change", "Step", "changes", "curve", "dropping_order", "frontier", "heat_map",
    "importance", "png", "require_matplotlib", "save", "save_png", "side_by_side", "speed_curve", "stability",
    "training",
]  # fmt: skip
