"""A base with a change in a single layer, and what such variants lose.

Pure values, no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

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
