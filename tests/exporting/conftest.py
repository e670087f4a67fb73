"""Where the small bases of the tests of pruning are found."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "pruning"))
