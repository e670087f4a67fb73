"""Hold the embedded default: two tiny trained base models, calibration text, benchmark rows and task files.

Everything here is made by the scripts beside it: `world` writes the data sets out of the words of `vocabulary`, `train`
makes the models, `fill` uploads both to a Hub, and `measure` prints what dropping attention sublayers of a model costs.
"""

from collections.abc import Mapping
from pathlib import Path

__all__ = ["DATASETS", "MIX", "MODELS", "NAMESPACE", "PROMPTS", "TASKS", "TASK_NAMES", "WRITTEN_TASK", "repo_id"]

_HERE = Path(__file__).resolve().parent

NAMESPACE = "hubprune-demo"
"""Owner of all repos of the demo; the task files and the mix name it too."""

MODELS: Mapping[str, Path] = {name: _HERE / "models" / name for name in ("tiny-llama", "tiny-mistral")}
"""Name of an embedded base model -> its folder, ready to upload."""

DATASETS: Mapping[str, Path] = {name: _HERE / "datasets" / name for name in ("calibration", "benchmarks")}
"""Name of an embedded data set -> its folder, ready to upload."""

MIX = _HERE / "calibration.yaml"
"""Calibration mix over the six configs of the data set `calibration`."""

TASKS = _HERE / "tasks"
"""Folder of the lm-eval task files."""

TASK_NAMES = ("demo_arc_easy", "demo_hellaswag", "demo_lambada", "demo_piqa", "demo_winogrande")
"""Tasks of that folder whose given answers are scored; their rows are the five configs of the data set `benchmarks`."""

WRITTEN_TASK = "demo_answers"
"""The task there whose answers the model writes, a dozen tokens at most; its rows are those of `demo_arc_easy`."""

PROMPTS = _HERE / "prompts.txt"
"""One prompt per line, for free text from base and pruned model."""


def repo_id(name: str) -> str:
    """Return the repo id under which an embedded model or data set is uploaded."""
    return f"{NAMESPACE}/{name}"
