"""Artifacts of the publishing room: what is on the Hub now, and the report of a whole run."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from hubprune.core.artifacts.artifact import Artifact, Environment
from hubprune.core.artifacts.evaluation import BenchmarkComparison, GenerationComparison
from hubprune.core.artifacts.pruning import (
    BaseCheckpoint,
    DropPlan,
    LayerScores,
    RepoFile,
    Verification,
    WrittenCheckpoint,
)
from hubprune.core.artifacts.reports import Refreshed
from hubprune.core.artifacts.speed import SpeedReport


class PublishedCommit(Artifact):
    """What is on the Hub now."""

    repo_id: str
    commit: str
    parent: str | None
    url: str
    created: bool
    """False where the remote files were already the same and no commit was made."""
    tag: str | None = None
    pull_request_url: str | None = None
    files: tuple[RepoFile, ...]
    """The remote files, each compared with what was uploaded."""


class PlannedFile(Artifact):
    """A file of the target repo, and what a publish would do with it."""

    path: str
    size: int
    """Bytes; of one that would be deleted, those that are there."""
    change: Literal["new", "changed", "unchanged", "deleted"]
    new_bytes: int | None
    """Bytes of it that the Hub lacks, packed as they would be sent; None where that was not found out."""


class UploadPlan(Artifact):
    """What a publish would change in the target repo, and how much it would send."""

    repo_id: str
    revision: str
    """Branch."""
    parent: str | None
    """Commit that the files were compared with; None where the repo does not exist."""
    create_pr: bool
    files: tuple[PlannedFile, ...]
    """Sorted by path."""
    upload_bytes: int
    """Size of the files that are new or changed."""
    primer_bytes: int
    """What the primer would add to the Hub beside them."""
    new_bytes: int | None
    """Bytes that the Hub lacks, the primer's included; None where that was not found out."""
    card: str
    """README.md as it would be published."""


class LoadedBack(Artifact):
    """What the published model wrote after a fresh process had loaded it from the Hub."""

    prompt: str
    text: str
    """The prompt with its greedy continuation."""
    parameters: int


class SnippetRun(Artifact):
    """What the code that the card shows printed, when a fresh process ran it on the written files."""

    repo_id: str
    """Under which the code finds the files."""
    revision: str | None
    code: str
    """As it was run, and as the card shows it."""
    output: str
    transformers: str
    """Version."""


class PublishReport(Artifact):
    """Everything one publish did and saw, as versioned JSON."""

    schema_version: Literal[1] = 1
    recipe: dict[str, Any]
    repo_id: str
    """Where the result goes, or would have gone."""
    endpoint: str
    """Address of the Hub that the base is on."""
    base: BaseCheckpoint
    scores: LayerScores | None
    plan: DropPlan
    checkpoint: WrittenCheckpoint
    verification: Verification
    benchmarks: BenchmarkComparison | None
    generation: GenerationComparison | None
    speed: SpeedReport | None = None
    """None where it was not asked for."""
    notes: str | None = None
    """The author's own words on the card."""
    snippet: SnippetRun | None = None
    """None in reports of versions that did not run it."""
    refreshed: tuple[Refreshed, ...] = ()
    """What later versions wrote anew in the repo without computing, oldest first."""
    published: PublishedCommit | None
    """None for a dry run."""
    upload: UploadPlan | None = None
    """What a dry run would have changed and sent."""
    loaded_back: LoadedBack | None = None
    environment: Environment
    seconds: dict[str, float] = Field(default_factory=dict)
    """Wall-clock seconds per stage; a stage that was taken from the work folder keeps those of the run that did it."""
    fingerprint: dict[str, dict[str, str]] = Field(default_factory=dict)
    """What the result depends on, in named parts (`publishing.fingerprint`)."""
    stage_keys: dict[str, str] = Field(default_factory=dict)
    """Stage -> key of all that its result depends on, this machine included (`stages.key_of`)."""
