"""The files that define tasks of one's own: what has to be published for others to run the same benchmarks."""

from __future__ import annotations

from pathlib import Path

from hubprune.core.errors import EvaluationError
from hubprune.core.recipe import EvaluationSpec
from hubprune.evaluation.task_yaml import calls_python, includes_of, read_task_file
from hubprune.evaluation.tasks import find_tasks, task_paths

__all__ = ["task_files"]


def task_files(spec: EvaluationSpec) -> dict[str, Path]:
    """Find the files under `include_path` that the tasks of a spec are made of, and no others.

    Returns the YAML of each task and group, of members too, and what those files include, as paths relative to the
    folder, with slashes, and as absolute ones; nothing without an `include_path`.

    Raises:
        EvaluationError: a task is unknown or unfit, or its files reach outside the folder or call Python functions, so
            that they would mean something else, or nothing, elsewhere.
    """
    found: dict[str, Path] = {}
    if spec.include_path is not None and spec.tasks:
        folder = Path(spec.include_path)
        for path in task_paths(find_tasks(spec), spec.tasks):
            if path.is_relative_to(folder):
                _collect(path, folder.resolve(), found)
    return found


def _collect(path: Path, folder: Path, found: dict[str, Path]) -> None:
    """Add a file and what it includes; lm-eval follows links first, and then starts at a file's own folder."""
    file = path.resolve()
    if not file.is_relative_to(folder):
        hint = "Copy it there, or leave out the task that it belongs to."
        raise EvaluationError(f"The benchmark file {file} lies outside of {folder}.", hint=hint)
    name = file.relative_to(folder).as_posix()
    if name not in found:
        found[name] = file
        for include in _includes(file):
            _collect(file.parent / include, folder, found)


def _includes(file: Path) -> list[str]:
    values = read_task_file(file)
    if calls_python(values):  # however it writes `!function`
        message = f"The benchmark file {file} calls Python functions, and such tasks cannot be published."
        raise EvaluationError(message, hint="Write it without !function, or bring the task into lm-eval.")
    names = list(includes_of(values, where=file))
    if absolute := next((name for name in names if Path(name).is_absolute()), None):
        message = f"The benchmark file {file} includes {absolute}, a path of this machine alone."
        raise EvaluationError(message, hint="Write the path relative to the file that includes it.")
    return names
