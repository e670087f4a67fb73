"""The fixed artifacts of the cards serve the summaries of jobs too."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "publishing"))
