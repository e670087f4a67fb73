"""The YAML block on top of the card: a whitelist of keys in a fixed order, and nothing else.

Results for the leaderboards of registered benchmarks, and for no other data set, go into a file of their own in the
Hub's format: https://huggingface.co/docs/hub/eval-results.  A leaderboard compares what others measured elsewhere.  So
only a main metric over all documents of a split is listed, and only where the data set's own eval.yaml has exactly one
task of that config and split: which one is meant is never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from hubprune.cards.markdown import visible
from hubprune.core.artifacts import (
    BaseCard,
    BaseCheckpoint,
    BenchmarkComparison,
    CalibrationRecord,
    LayerScores,
    Method,
    TaskComparison,
)
from hubprune.core.files import write_atomically
from hubprune.core.privacy import is_local_data

CUSTOM_CODE = "custom_code"
"""Tag that makes the Hub's own snippet pass `trust_remote_code=True`."""

METHOD_TAGS: Mapping[Method, str] = {
    "attn-drop": "attention-drop",
    "mlp-drop": "mlp-drop",
    "block-drop": "block-drop",
    "joint-drop": "joint-layer-drop",
    "mlp-width": "width-pruning",
}
METRICS: Mapping[str, str] = {"acc": "accuracy", "acc_norm": "accuracy", "em": "exact_match"}
"""lm-eval metric -> metric id on the Hub, where they differ."""


def metadata(
    base: BaseCheckpoint,
    *,
    terms: BaseCard,
    name: str,
    methods: Sequence[Method],
    has_code: bool,
    scores: LayerScores | None,
    benchmarks: BenchmarkComparison | None,
    texts: CalibrationRecord | None = None,
) -> dict[str, Any]:
    """Build the card's metadata in its final order; keys without a value are absent.

    Args:
        terms: languages and licence, from the base's card at the commit it is pinned to.
        texts: what it was calibrated on, where that was not for scores.
    """
    calibration = scores.calibration if scores else texts
    sources = calibration.sources if calibration else ()
    public = [s.dataset for s in sources if not is_local_data(s.dataset)]
    # Scores over a file that nobody else has cannot be reproduced.
    last = [*(["reproducible"] if len(public) == len(sources) else []), *([CUSTOM_CODE] if has_code else [])]
    metrics = [METRICS.get(t.metric, t.metric) for t in (benchmarks.tasks if benchmarks else ())]
    values = {
        "language": terms.language[0] if len(terms.language) == 1 else list(terms.language),
        "license": terms.license,
        "license_name": terms.license_name,
        "license_link": terms.license_link,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "base_model": base.name,
        "base_model_relation": "finetune",
        "datasets": list(dict.fromkeys(public)),
        "tags": ["hubprune", "pruned", *(METHOD_TAGS[method] for method in methods), *last],
        "metrics": list(dict.fromkeys(metrics)),
        "model-index": model_index(benchmarks, name=name),
    }
    return {key: value for key, value in values.items() if value}


def model_index(benchmarks: BenchmarkComparison | None, *, name: str) -> list[dict[str, Any]]:
    """Build `model-index`: the values of this model alone, one result per task whose data set is known."""
    by_task: dict[str, list[TaskComparison]] = {}
    for row in benchmarks.tasks if benchmarks else ():
        if row.dataset and not row.pruned.is_bound:  # a bound is no value that a list could be sorted by
            by_task.setdefault(row.task, []).append(row)
    results, chat = [], ", chat template" if benchmarks and benchmarks.chat else ""
    for task, rows in by_task.items():
        row = rows[0]
        metrics = []
        for measured in rows:
            whole = measured.documents == measured.documents_available
            part = "" if whole else f", {measured.documents} of {measured.documents_available} documents"
            how = f"{f'{measured.filter}, ' if measured.filter else ''}{measured.num_fewshot}-shot{chat}{part}"
            kind, value = METRICS.get(measured.metric, measured.metric), round(float(measured.pruned.value), 6)
            metrics.append({"type": kind, "value": value, "name": f"{measured.metric} ({how})"})
        fields = {
            "name": task, "type": row.dataset, "config": row.dataset_config, "split": row.split,
            "revision": row.dataset_commit, "args": {"num_few_shot": row.num_fewshot},
        }  # fmt: skip
        dataset = {key: value for key, value in fields.items() if value is not None}
        what = {"type": "text-generation", "name": "Text Generation"}
        results.append({"task": what, "dataset": dataset, "metrics": metrics})
    return [{"name": name, "results": results}] if results else []


AMBIGUOUS = re.compile(
    r"[0-9a-f]{40}|[-+]?[\d._][\d._:]*(e[-+]?[\d_]*)?|[-+]?0[xob]\w*|[-+]?\.(inf|nan)"
    r"|true|false|yes|no|y|n|on|off|null|~",
    re.IGNORECASE,
)
"""Strings that some YAML reader takes for a number, a truth value or nothing: 1e10 may be a short sha, and to
ruamel.yaml a dot or a sign before an underscore begins a number."""


class _Dumper(yaml.SafeDumper):
    """Quotes every string that another reader could take for something else."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="'" if AMBIGUOUS.fullmatch(text) else None)


_Dumper.add_representer(str, _represent_text)


def dump(values: Mapping[str, Any]) -> str:
    """Dump metadata as YAML that PyYAML and a YAML 1.2 reader parse to the same values; no markers around it."""
    return yaml.dump(_plain(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10**6)


def _plain(value: Any) -> Any:
    """Turn values into what every YAML reader knows: no numpy, no tuples, no invisible characters."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, Mapping):
        return {_plain(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value if isinstance(value, (bool, int, type(None))) else float(value)


EVAL_RESULTS = ".eval_results/hubprune.yaml"
"""Path of the file in a repo."""
Tasks = Mapping[str, tuple[Mapping[str, Any], ...]]
"""Data set id -> the tasks of its eval.yaml."""


def leaderboard_datasets(comparison: BenchmarkComparison | None) -> set[str]:
    """Return the ids of the data sets whose results would belong on a leaderboard, if they have one."""
    return {str(row.dataset) for row in _whole(comparison)}


def _whole(comparison: BenchmarkComparison | None) -> list[TaskComparison]:
    rows = comparison.main_metrics() if comparison else ()
    return [row for row in rows if row.dataset and row.is_share and row.documents == row.documents_available]


def add_eval_results(folder: Path, comparison: BenchmarkComparison | None, *, tasks: Tasks) -> None:
    """Write the file into a checkpoint's folder where any result belongs on a leaderboard."""
    text = ""
    for row in _whole(comparison):
        wanted = row.dataset_config or "default", row.split
        of_set = tasks.get(str(row.dataset), ())
        meant = [task for task in of_set if (task.get("config", "default"), task.get("split")) == wanted]
        if comparison and len(meant) == 1:
            read_by = f", {row.filter}" if row.filter else ""
            chat = ", chat template" if comparison.chat else ""
            how = f"{row.metric}{read_by} as a share from 0 to 1, {row.num_fewshot}-shot{chat}"
            dataset = {"id": row.dataset, "task_id": str(meant[0]["id"]), "revision": row.dataset_commit}
            entry = {
                "dataset": {key: value for key, value in dataset.items() if value is not None},
                "value": round(float(row.pruned.value), 6),
                "notes": f"lm-eval {comparison.lm_eval} {row.task}, {how}",
            }
            lines = dump(entry).splitlines()
            text += "".join(f"{'  ' if n else '- '}{line}\n" for n, line in enumerate(lines))
    if text:
        (folder / EVAL_RESULTS).parent.mkdir(exist_ok=True)
        write_atomically(folder / EVAL_RESULTS, text)
