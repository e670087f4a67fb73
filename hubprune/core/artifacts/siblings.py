"""Artifacts of siblings: the repos beside a pruned one that hold it in fewer bits, or as files of another runtime."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from hubprune.core.artifacts.base import Artifact, BaseCheckpoint, Environment, RepoFile
from hubprune.core.artifacts.evaluation import BenchmarkComparison, Estimate
from hubprune.core.artifacts.exports import GgufExport
from hubprune.core.artifacts.pruning import (
    DropPlan,
    LoadedBack,
    PublishedCommit,
    SnippetRun,
    UploadPlan,
    WrittenCheckpoint,
)
from hubprune.core.artifacts.quantization import QuantizationRecord, QuantizedCheckpoint

SiblingKind = Literal["quantized", "gguf"]


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
    """Of the quantized one, which transformers can load."""
    environment: Environment
    seconds: dict[str, float] = Field(default_factory=dict)
    fingerprint: dict[str, dict[str, str]] = Field(default_factory=dict)
    """What it depends on, in named parts."""
    stage_keys: dict[str, str] = Field(default_factory=dict)

    @property
    def files(self) -> tuple[RepoFile, ...]:
        """The files that were written and compared, without card, recipe and manifest, sorted by path."""
        made = (RepoFile(path=made.file, size=made.size, sha256=made.sha256) for made in self.exports)
        written = self.quantized.written.files if self.quantized else ()
        return tuple(sorted((*written, *made, *self.carried), key=lambda file: file.path))
