"""Artifacts of siblings: the repos beside a pruned one that hold it healed, in fewer bits, or for another runtime."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from hubprune.core.artifacts.base import Artifact, BaseCheckpoint, Environment, RepoFile
from hubprune.core.artifacts.evaluation import BenchmarkComparison, Estimate, GenerationComparison, RepetitionComparison
from hubprune.core.artifacts.exports import GgufExport
from hubprune.core.artifacts.healing import HealingRecord
from hubprune.core.artifacts.pruning import (
    DropPlan,
    LoadedBack,
    PrunedCheckpoint,
    PublishedCommit,
    SnippetRun,
    UploadPlan,
    WrittenCheckpoint,
)
from hubprune.core.artifacts.quantization import QuantizationRecord, QuantizedCheckpoint

SiblingKind = Literal["healed", "quantized", "gguf"]


class SiblingLink(Artifact):
    """A repo that a card names beside its own."""

    repo_id: str
    told: str
    """What it holds, in some words."""


class Together(Artifact):
    """What dropping and quantizing change in a metric, each alone and both together, in points, against the base."""

    name: str
    """Task, or the mean over all."""
    metric: str | None
    """None for the mean."""
    dropped: Estimate
    quantized: Estimate
    both: Estimate
    excess: Estimate
    """`both` minus the sum of the single ones, its interval from the documents, each answered by all four models; below
    0 where both together lose more."""


class QuantizedBenchmarks(Artifact):
    """Base and pruned model, each as it is and quantized in the same way: four models on the same documents."""

    dropped: BenchmarkComparison
    """Base, and pruned."""
    control: BenchmarkComparison
    """Base, and the base quantized."""
    both: BenchmarkComparison
    """Base, and pruned and quantized."""
    step: BenchmarkComparison
    """Pruned, and pruned and quantized."""
    together: tuple[Together, ...]
    """The main metrics that are shares, and last the mean of several; whose documents tell no interval are left out."""


class CameBack(Artifact):
    """How much of what pruning cost in a metric came back by healing, on the same documents."""

    task: str
    metric: str
    lost: Estimate
    """Base minus pruned in points; of a perplexity, the log of the pruned model's over the base's in nats."""
    share: Estimate | None
    """(healed - pruned) / (base - pruned), its interval from the documents (Fieller); None where the loss is not
    clearly above 0."""


class HealedBenchmarks(Artifact):
    """Base, pruned and healed model on the same documents."""

    dropped: BenchmarkComparison
    """Base, and pruned."""
    both: BenchmarkComparison
    """Base, and healed."""
    step: BenchmarkComparison
    """Pruned, and healed."""
    came_back: tuple[CameBack, ...]
    """The main metrics with a value per document."""


class TrainedElsewhere(Artifact):
    """What is known of a checkpoint that somebody trained elsewhere."""

    dtypes: tuple[str, ...]
    """dtypes of its tensors as it was handed over, as safetensors spells them."""
    changed: int
    """Tensors that are not the pruned model's once they are rounded to its dtypes."""
    tensors: int
    """Tensors in all."""


class SiblingReport(Artifact):
    """Everything one publish did and saw of one sibling."""

    schema_version: Literal[1] = 1
    kind: SiblingKind
    repo_id: str
    """Where it goes, or would have gone."""
    endpoint: str
    recipe: dict[str, Any]
    """That of the pruned repo, and how this sibling is made."""
    pruned: str
    """Repo id of the pruned model that it was made of."""
    pruned_tag: str | None
    """Tag of exactly these files there; None where there will be none, as in a pull request."""
    beside: tuple[SiblingLink, ...] = ()
    """The other siblings."""
    base: BaseCheckpoint
    plan: DropPlan
    checkpoint: WrittenCheckpoint
    """The pruned model."""
    quantized: QuantizedCheckpoint | None = None
    control: QuantizationRecord | None = None
    """How the base was quantized, to be compared with; None where nothing was measured."""
    benchmarks: QuantizedBenchmarks | None = None
    healed: PrunedCheckpoint | None = None
    """The checkpoint with what was trained."""
    healing: HealingRecord | None = None
    """How it was trained; None for one that was trained elsewhere."""
    elsewhere: TrainedElsewhere | None = None
    recovered: HealedBenchmarks | None = None
    """The benchmarks of a healed one."""
    generation: GenerationComparison | None = None
    """Free text of base and healed model."""
    pruned_repetition: RepetitionComparison | None = None
    """How much base and pruned model repeat themselves after the same prompts."""
    exports: tuple[GgufExport, ...] = ()
    """The files that were written, each under its name in the repo."""
    carried: tuple[RepoFile, ...] = ()
    """Licence files that stand beside them."""
    snippet: SnippetRun | None = None
    published: PublishedCommit | None = None
    """None for a dry run."""
    upload: UploadPlan | None = None
    """What a dry run would have changed and sent."""
    loaded_back: LoadedBack | None = None
    """Of one that transformers can load."""
    environment: Environment
    seconds: dict[str, float] = Field(default_factory=dict)
    fingerprint: dict[str, dict[str, str]] = Field(default_factory=dict)
    """What it depends on, in named parts."""
    stage_keys: dict[str, str] = Field(default_factory=dict)

    @property
    def files(self) -> tuple[RepoFile, ...]:
        """The files that were written and compared, without card, recipe and manifest, sorted by path."""
        made = (RepoFile(path=made.file, size=made.size, sha256=made.sha256) for made in self.exports)
        checkpoint = self.quantized or self.healed
        written = checkpoint.written.files if checkpoint else ()
        return tuple(sorted((*written, *made, *self.carried), key=lambda file: file.path))
