"""Artifacts of a healed checkpoint: what it was trained on, how, and how much of what pruning lost came back."""

from __future__ import annotations

from typing import Literal

from hubprune.core.artifacts.base import Artifact, CalibrationRecord
from hubprune.core.artifacts.pruning import Verification, WrittenCheckpoint

HealingMethod = Literal["lora", "full"]
"""Low-rank adapters (arXiv 2106.09685) that are merged at the end, or all weights."""
HealingLoss = Literal["kl", "kl+hidden", "ce"]
"""KL(base || pruned) of the next token; the same and one minus the cosine of the hidden states behind every layer; or
cross entropy with the texts, which needs no base."""


class HeldOut(Artifact):
    """A model on documents that were neither scored nor trained on, beside the base; in nats per token."""

    kl: float
    """Mean of KL(base || model) over positions."""
    perplexity: float
    top1: float
    """Share of positions at which the model's most likely token is the base's."""


class CurvePoint(Artifact):
    """One look at the held-out documents in the course of a training."""

    step: int
    loss: float | None
    """Mean of the training loss since the look before; None at the start."""
    held_out: HeldOut


class Recovered(Artifact):
    """Share of the lost log-perplexity that came back, with its 95 % interval over the held-out documents."""

    value: float
    low: float
    high: float


class HealingRecord(Artifact):
    """How a pruned model was trained, and what came of it."""

    method: HealingMethod
    rank: int | None
    """Of the adapters; None where all weights were trained."""
    loss: HealingLoss
    learning_rate: float
    batch_size: int
    """Documents per step."""
    steps: int
    planned_steps: int
    """Steps that were asked for; training ends earlier where the held-out loss stops falling."""
    tokens: int
    """Tokens that were trained on, repeated ones counted again."""
    seed: int
    data: CalibrationRecord
    """The documents that were trained on."""
    held_out_documents: int
    held_out_tokens: int
    left_out: int
    """Documents that shared 13 words in a row with a benchmark and were left out."""
    checked_against: tuple[str, ...]
    """Benchmarks whose texts were looked for."""
    base_perplexity: float
    """Of the base on the held-out documents."""
    curve: tuple[CurvePoint, ...]
    """From before the first step to the end."""
    recovered: Recovered | None
    """None where pruning had lost nothing."""
    trained_parameters: int
    shares_weights: bool
    """Whether base and pruned model were one set of weights in memory."""
    seconds: float
    dtype: str
    device: str
    versions: dict[str, str]
    """Of the libraries that trained."""

    @property
    def before(self) -> HeldOut:
        """The pruned model."""
        return self.curve[0].held_out

    @property
    def after(self) -> HeldOut:
        """The healed model."""
        return self.curve[-1].held_out


class HealedCheckpoint(Artifact):
    """A healed checkpoint, written and verified."""

    written: WrittenCheckpoint
    record: HealingRecord
    verification: Verification
