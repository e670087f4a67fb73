"""A base with a change in a single layer, and what such variants lose.

Pure values, no torch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from hubprune.core.artifacts import DocumentScores, ImportanceScores, Metric, Ranking, ScoreKind, SublayerKind
from hubprune.core.errors import ScoringError
from hubprune.pruning.calibration import Document

RANKED: Mapping[Ranking, tuple[ScoreKind, ...]] = {
    "attn": ("attn",), "mlp": ("mlp",), "block": ("block",), "joint": ("attn", "mlp"),
}  # fmt: skip
"""Ranking -> the scores that it looks at."""
VariantKind = Literal["attn", "mlp", "block", "width"]


@dataclass(frozen=True, slots=True, order=True)
class Variant:
    """A base with a change in one layer."""

    layer: int
    kind: VariantKind
    """What the layer goes without; of a `width`, the neurons of its MLP beyond the most important ones."""
    width: int = 0
    """Neurons that stay, where the kind is `width`."""


@dataclass(frozen=True, slots=True)
class Losses:
    """What a base and its variants lose, per document of the calibration set, in nats per predicted token."""

    predicted: tuple[int, ...]
    """Tokens of each document that were predicted: all but the first, so that one with a single token has none."""
    base: tuple[float, ...]
    """Loss of the unpruned base; 0 where nothing is predicted."""
    of: Mapping[Variant, tuple[float, ...]]
    """Loss of each variant."""
    divergence: Mapping[Variant, tuple[float, ...]]
    """KL(base || variant)."""

    def rise(self, variant: Variant) -> tuple[float, ...]:
        """Return how much more than the base a variant loses; negative where the change helps."""
        return tuple(own - base for own, base in zip(self.of[variant], self.base, strict=True))


def without_each(
    kinds: Collection[ScoreKind], layers: int, *, absent: Collection[tuple[SublayerKind, int]] = ()
) -> list[Variant]:
    """List a base's variants without one sublayer or layer; nothing goes without what is absent already."""
    gone = {*absent, *(("block", layer) for layer in range(layers) if {("attn", layer), ("mlp", layer)} <= {*absent})}
    return [Variant(layer, kind) for layer in range(layers) for kind in kinds if (kind, layer) not in gone]


def scores_of(
    losses: Losses, metric: Metric, documents: Sequence[Document], *, kinds: Collection[ScoreKind], layers: int
) -> list[DocumentScores]:
    """Make scores of losses: per document, what goes with each layer's sublayers; 0 where they are gone already.

    Kinds that were not computed have no scores.  A document counts with the tokens that are predicted of it, and one
    of a single token not at all.

    Raises:
        ScoringError: no document has a second token.
    """
    values = {v: losses.divergence[v] if metric == "kl" else losses.rise(v) for v in losses.of}
    nothing = (0.0,) * len(documents)

    def column(kind: ScoreKind, number: int) -> tuple[float, ...]:
        if kind not in kinds:
            return ()
        return tuple(values.get(Variant(layer, kind), nothing)[number] for layer in range(layers))

    rows = []
    for number, (document, tokens) in enumerate(zip(documents, losses.predicted, strict=True)):
        if tokens:
            attn, mlp, block = (column(kind, number) for kind in ("attn", "mlp", "block"))
            found = ImportanceScores(attn=attn, mlp=mlp, block=block)
            rows.append(DocumentScores(source=document.source, tokens=tokens, scores=found))
    if not rows:
        raise ScoringError("No document has two tokens, and a loss is that of the next one.", hint="Take another mix.")
    return rows
