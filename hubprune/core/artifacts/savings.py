"""Artifacts of a choice by what it saves: what each change costs, the frontier, and what a target came to."""

from __future__ import annotations

from typing import Literal

from hubprune.core.artifacts.base import Artifact, LayerScores, Metric

Unit = Literal["params", "bytes", "flops", "kv", "latency"]
"""What a sublayer saves: parameters, bytes in the files, floating-point operations per token, bytes of KV cache,
seconds per token."""
Goal = Literal["params", "bytes", "flops", "kv", "memory", "latency"]
"""What a target can be of; memory is the files and the KV caches of all sequences together."""
Part = Literal["attn", "mlp", "block", "width"]
"""What a target can be reached by: attentions, MLPs, whole layers, narrower MLPs."""


class LatencyTable(Artifact):
    """What sublayers take on one device, of one token that is written after a context."""

    attn: dict[str, float]
    """Kind of attention -> seconds of one of them; 0 where it was not told apart from nothing."""
    mlp: float
    """Seconds of one MLP."""
    total: float
    """Seconds of the whole model."""
    device: str
    dtype: str
    context: int
    """Tokens in the KV cache."""
    batch: int
    rounds: int
    """Paired rounds behind every figure."""


class NarrowerLoss(Artifact):
    """What the base loses with fewer neurons in one MLP."""

    layer: int
    width: int
    """Neurons that stay."""
    loss: float
    """Rise of the loss, in nats per token."""


class LeftOut(Artifact):
    """What a base loses by every change that a target may be reached by, each alone: one pass."""

    scores: LayerScores
    """Of the changes that are sublayers or whole layers."""
    narrower: tuple[NarrowerLoss, ...] = ()
    base_loss: float
    """Nats per token of the unpruned base."""
    layer_runs: float
    """How often a layer was run, in runs over the whole calibration set."""


class FrontierPoint(Artifact):
    """The least loss that a saving is to be had for, by losses that are added up."""

    saved: int
    """In the unit of the frontier."""
    loss: float
    """Sum of the losses of what goes, in nats per token: predicted."""
    attn: tuple[int, ...] = ()
    """Layers that lose their attention; those of a whole layer are in both."""
    mlp: tuple[int, ...] = ()
    widths: tuple[tuple[int, int], ...] = ()
    """Layer, and neurons that stay in its MLP."""
    measured: float | None = None
    """Rise of the loss with all of it gone at once; None where that was not computed."""


class Frontier(Artifact):
    """Loss against saving of one base."""

    base: str
    goal: Goal
    before: int
    """What the base takes, in the unit of the goal; of latency in nanoseconds, all others as they are called."""
    context: int
    batch: int
    over: tuple[Part, ...]
    metric: Metric = "loss"
    base_loss: float
    layer_runs: float
    """Of the one pass that all points come from."""
    points: tuple[FrontierPoint, ...]
    """Ascending by what is saved; the first one is the base."""


class Reached(Artifact):
    """One target, and what came of it."""

    goal: Goal
    asked: str
    """As it was asked for: -30%, or 8GB."""
    before: int
    after: int

    @property
    def change(self) -> float:
        """Relative change."""
        return self.after / self.before - 1


class TargetFound(Artifact):
    """How a plan was found that reaches a target at the least loss."""

    reached: tuple[Reached, ...]
    predicted: float
    """Sum of the losses of what goes, each measured alone, in nats per token."""
    measured: float
    """Rise of the loss on the same texts with all of it gone at once."""
    frontier: Frontier
    """Of the first target, from the same pass; the chosen plan is the one measured point of it."""
    latency: LatencyTable | None = None
