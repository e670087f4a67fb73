"""Artifacts of studies: scores of one base under several circumstances, and how well they agree."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from hubprune.core.artifacts.artifact import Aggregation, Artifact, Metric
from hubprune.core.artifacts.pruning import ImportanceScores

StudyKind = Literal["revisions", "calibration", "samples"]
"""What varies: the commit of the base, the calibration mix, or the number of samples of one mix."""
ScoreKind = Literal["attn", "mlp", "block"]


class Agreement(Artifact):
    """How well the order of layers by one set of scores agrees with the order by the reference."""

    kind: ScoreKind
    spearman: float | None
    """Spearman's rho; None where all scores are equal."""
    kendall: float | None
    """Kendall's tau-b; None where all scores are equal."""
    lowest: int
    """N of the overlap."""
    overlap: int
    """How many of the N layers with the lowest scores are the same."""


class StudyEntry(Artifact):
    """The scores under one of the circumstances."""

    label: str
    """Revision or mix as it was asked for, or the number of samples."""
    commit: str | None
    """Commit of the base; None for a local folder."""
    mix: str
    documents: int
    """Documents that were scored, or packed sequences."""
    tokens: int
    mean: ImportanceScores
    standard_error: ImportanceScores
    agreements: tuple[Agreement, ...] = ()
    """With the reference, one per kind of score; none for the reference itself."""


class ScoreStudy(Artifact):
    """Scores of one base side by side."""

    schema_version: Literal[1] = 1
    kind: StudyKind
    base: str
    metric: Metric
    aggregation: Aggregation
    seed: int
    dtype: str
    device: str
    entries: tuple[StudyEntry, ...] = Field(min_length=1)
    """In the order they were asked for; numbers of samples ascending."""
    reference: str
    """Label of the entry that the others are compared with: the last revision, the first mix, the largest number."""
    nested: bool
    """Whether each smaller draw is the beginning of the larger ones, subset by subset."""
