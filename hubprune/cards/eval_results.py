"""Results in the Hub's own format for the leaderboards of registered benchmarks, and for no other data set.

A leaderboard compares what others measured elsewhere.  So only a main metric over all documents of a split is listed,
and only where the data set's own eval.yaml has exactly one task of that config and split: which one is meant is never
guessed.  Format: https://huggingface.co/docs/hub/eval-results.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from hubprune.cards.front_matter import dump
from hubprune.core.artifacts import BenchmarkComparison, TaskComparison
from hubprune.core.endpoint import page
from hubprune.core.errors import HubError, RecipeError
from hubprune.core.files import write_atomically
from hubprune.core.strict_yaml import parse_yaml
from hubprune.hub.session import HubSession

__all__ = ["EVAL_RESULTS", "add_eval_results", "entries", "registered_tasks"]

EVAL_RESULTS = ".eval_results/hubprune.yaml"
"""Path of the file in a repo."""
SPECIFICATION = "eval.yaml"
"""File by which a data set says which tasks its benchmark has."""

Tasks = Mapping[str, tuple[Mapping[str, Any], ...]]
"""Data set id -> the tasks of its eval.yaml."""


def add_eval_results(
    folder: Path, comparison: BenchmarkComparison | None, *, session: HubSession, warn: Callable[[str], None]
) -> None:
    """Write the file into a checkpoint's folder where any result belongs on a leaderboard.

    A Hub on loopback has no leaderboards, and one that does not answer here costs a publish nothing but these results.

    Args:
        folder: of the checkpoint.
        comparison: what was measured, if anything.
        session: which Hub.
        warn: told where the Hub did not say which benchmarks are registered.
    """
    rows = _whole(comparison)
    if not rows or page("x", endpoint=session.endpoint) is None:
        return
    try:
        tasks = registered_tasks({str(row.dataset) for row in rows}, session=session)
    except HubError as error:
        warn(f"No results are listed for leaderboards: {error.message} Publish again with --force to add them.")
        return
    listed = entries(rows, tasks, comparison)
    if listed:
        (folder / EVAL_RESULTS).parent.mkdir(exist_ok=True)
        write_atomically(folder / EVAL_RESULTS, "".join(_item(entry) for entry in listed))


def _item(entry: Mapping[str, Any]) -> str:
    """Write one item of a YAML list."""
    lines = dump(entry).splitlines()
    return "".join(f"{'- ' if n == 0 else '  '}{line}\n" for n, line in enumerate(lines))


def _whole(comparison: BenchmarkComparison | None) -> tuple[TaskComparison, ...]:
    rows = comparison.main_metrics() if comparison else ()
    return tuple(row for row in rows if row.dataset and row.is_share and row.documents == row.documents_available)


def registered_tasks(datasets: Iterable[str], *, session: HubSession) -> Tasks:
    """Look up which data sets are registered benchmarks, and their tasks.

    Raises:
        HubError: the Hub refused or did not answer.
    """
    official = {
        str(info.id)
        for info in session.ask(
            lambda api: list(api.list_datasets(benchmark="official")), doing="list registered benchmarks"
        )
    }
    return {name: _tasks_of(name, session=session) for name in sorted(official & {*datasets})}


def _tasks_of(dataset: str, *, session: HubSession) -> tuple[Mapping[str, Any], ...]:
    path = session.ask(
        lambda api: api.hf_hub_download(dataset, SPECIFICATION, repo_type="dataset"),
        doing=f"read {SPECIFICATION} of {dataset}",
    )
    try:
        values = parse_yaml(Path(path).read_bytes(), where=SPECIFICATION)
    except (OSError, RecipeError):
        return ()
    tasks = values.get("tasks") if isinstance(values, dict) else None
    return tuple(task for task in tasks if isinstance(task, dict) and "id" in task) if isinstance(tasks, list) else ()


def entries(
    rows: Iterable[TaskComparison], tasks: Tasks, comparison: BenchmarkComparison | None = None
) -> list[dict[str, Any]]:
    """List this model's results on registered benchmarks, with how they were measured.

    Args:
        rows: main metrics, each over all documents of its split.
        tasks: from `registered_tasks`.
        comparison: names the version of lm-eval.
    """
    found = []
    for row in rows:
        meant = [task for task in tasks.get(str(row.dataset), ()) if _is_meant(task, row)]
        if len(meant) == 1:
            found.append(_entry(row, task_id=str(meant[0]["id"]), version=comparison.lm_eval if comparison else None))
    return found


def _is_meant(task: Mapping[str, Any], row: TaskComparison) -> bool:
    return (task.get("config", "default"), task.get("split")) == (row.dataset_config or "default", row.split)


def _entry(row: TaskComparison, *, task_id: str, version: str | None) -> dict[str, Any]:
    read_by = f", {row.filter}" if row.filter else ""
    how = f"lm-eval {version or ''}".strip()
    dataset = {"id": row.dataset, "task_id": task_id, "revision": row.dataset_commit}
    return {
        "dataset": {key: value for key, value in dataset.items() if value is not None},
        "value": round(float(row.pruned.value), 6),
        "notes": f"{how} {row.task}, {row.metric}{read_by} as a share from 0 to 1, {row.num_fewshot}-shot",
    }
