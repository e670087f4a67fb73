"""Artifacts of the publishing room: what is on the Hub now, and the report of a whole run."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from hubprune.artifacts.artifact import Artifact
from hubprune.artifacts.evaluation import BenchmarkComparison
from hubprune.artifacts.generation import GenerationComparison
from hubprune.artifacts.pruning import BaseCheckpoint, DropPlan, LayerScores, RepoFile, Verification, WrittenCheckpoint


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


class Environment(Artifact):
    """Where a run took place."""

    hubprune: str
    python: str
    platform: str
    machine: str
    """Processor or GPU by name."""
    threads: int
    versions: dict[str, str]
    """Library -> version."""


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
    notes: str | None = None
    """The author's own words on the card."""
    snippet: SnippetRun | None = None
    """None in reports of versions that did not run it."""
    published: PublishedCommit | None
    """None for a dry run."""
    loaded_back: LoadedBack | None = None
    environment: Environment
    seconds: dict[str, float] = Field(default_factory=dict)
    """Wall-clock seconds per stage; a stage that was taken from the work folder keeps those of the run that did it."""
