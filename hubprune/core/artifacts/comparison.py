"""Artifacts of `hubprune compare`: two pruned checkpoints or plans beside each other."""

from __future__ import annotations

from typing import Literal

from hubprune.core.artifacts.artifact import Artifact, Layout, Method, SublayerKind
from hubprune.core.artifacts.studies import Agreement

SameBase = Literal["same", "different", "unknown"]


class ComparedSide(Artifact):
    """One of the two.  What its files do not tell is None."""

    name: str
    """Folder, file or repo id as it was given."""
    base: str | None
    base_commit: str | None
    num_hidden_layers: int
    """Decoder layers of the base."""
    methods: tuple[Method, ...]
    """Empty where only its config.json tells what went."""
    layout: Layout
    dropped_attn: tuple[int, ...]
    """Original numbers of the layers that lost their attention."""
    dropped_mlp: tuple[int, ...]
    widths: tuple[int, ...] | None
    """Neurons that the MLPs keep, per layer of the base; None for as wide as they were."""
    parameters: int | None = None
    kv_bytes_per_token: int | None = None
    calibration: str | None = None
    """Mix, samples and tokens that it was scored on."""
    calibration_sha256: str | None = None
    """Digest of the token ids."""


class DroppedSets(Artifact):
    """What went of one kind of sublayer, in the base's layer numbers."""

    kind: SublayerKind
    both: tuple[int, ...]
    only_first: tuple[int, ...]
    only_second: tuple[int, ...]


class ComparedMetric(Artifact):
    """One metric of one task that both were measured by, on the same documents."""

    task: str
    metric: str
    documents: int
    first: float
    second: float
    first_base: float
    """What the base reached in the first one's run."""
    second_base: float
    change: float
    """Second minus first: in percentage points for shares, in the metric's own unit for others."""
    unit: Literal["points", "own"]


class CheckpointComparison(Artifact):
    """What differs between two pruned checkpoints or plans."""

    schema_version: Literal[1] = 1
    first: ComparedSide
    second: ComparedSide
    base: SameBase
    dropped: tuple[DroppedSets, ...]
    """Per kind of sublayer; empty where the bases differ, since layer numbers then name different layers."""
    agreements: tuple[Agreement, ...]
    """Between the orders of both sets of scores; empty where there are not two, or the bases differ."""
    benchmarks: tuple[ComparedMetric, ...]
    notes: tuple[str, ...]
    """What could not be compared, and why."""
