"""Artifacts of the evaluation room: benchmarks and free text of base and pruned model."""

from __future__ import annotations

from typing import Literal

from hubprune.artifacts.artifact import Artifact


class MetricValue(Artifact):
    """A metric of one model on one task."""

    value: float
    standard_error: float | None = None


class TaskComparison(Artifact):
    """One metric of one task, for both models, on the same documents."""

    task: str
    metric: str
    """As lm-eval writes it, without the filter: `acc_norm`."""
    higher_is_better: bool
    documents: int
    documents_available: int
    num_fewshot: int
    version: str
    """Task version from lm-eval."""
    dataset: str | None
    """Data set id from lm-eval's own task config."""
    dataset_config: str | None
    dataset_commit: str | None
    split: str | None
    base: MetricValue
    pruned: MetricValue
    chance: float | None = None
    """Accuracy of guessing, 1 / number of choices (k / number where k are right) averaged over the documents; None
    where there is nothing to choose from."""

    @property
    def is_share(self) -> bool:
        """True for metrics between 0 and 1, whose change is told in points."""
        return self.metric in {"acc", "acc_norm", "exact_match", "f1", "mcc", "em"}

    @property
    def change_points(self) -> float | None:
        """Pruned minus base in percentage points; None for metrics that are not shares."""
        return 100 * (self.pruned.value - self.base.value) if self.is_share else None

    @property
    def change_relative(self) -> float | None:
        """Pruned over base minus one, in percent; None where the base is 0."""
        return 100 * (self.pruned.value / self.base.value - 1) if self.base.value else None


class BenchmarkComparison(Artifact):
    """The benchmarks of base and pruned, measured in one run."""

    tasks: tuple[TaskComparison, ...]
    """The first metric of each task is its main one."""
    limit: int | None
    """Documents per task at most; None for all."""
    batch_size: int
    dtype: str
    device: str
    seed: int
    lm_eval: str
    """Version of lm-eval."""
    base_seconds: float
    pruned_seconds: float

    def main_metrics(self) -> tuple[TaskComparison, ...]:
        """The first metric of each task."""
        seen: dict[str, TaskComparison] = {}
        for task in self.tasks:
            seen.setdefault(task.task, task)
        return tuple(seen.values())

    @property
    def mean_change_points(self) -> float | None:
        """Mean change in points over the tasks whose main metric is a share."""
        changes = [c for t in self.main_metrics() if (c := t.change_points) is not None]
        return sum(changes) / len(changes) if changes else None


class Continuation(Artifact):
    """What both models wrote after one prompt."""

    prompt: str
    base: str
    pruned: str
    base_tokens: int
    """New tokens, the end-of-text token included."""
    pruned_tokens: int


class GenerationComparison(Artifact):
    """Free text of base and pruned on the same prompts."""

    continuations: tuple[Continuation, ...]
    max_new_tokens: int
    decoding: Literal["greedy"] = "greedy"
    dtype: str
    device: str
