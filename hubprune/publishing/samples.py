"""Choose by a fixed rule which free text the card shows, and measure how much it repeats itself."""

from __future__ import annotations

from hubprune.artifacts import Continuation, GenerationComparison

__all__ = ["mean_repetition", "repeated_share", "shown_pairs"]

NGRAM = 4


def repeated_share(text: str) -> float:
    """Compute the share of 4-word sequences that occurred before in the same text (seq-rep-4 by words), 0 to 1."""
    words = text.split()
    grams = [tuple(words[i : i + NGRAM]) for i in range(len(words) - NGRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def shown_pairs(generation: GenerationComparison) -> tuple[tuple[int, Continuation], ...]:
    """Return the first pair and the one whose pruned text repeats itself most, each with its number from 1.

    One pair where both are the same; the earlier prompt wins a tie.
    """
    pairs = generation.continuations
    worst = max(range(len(pairs)), key=lambda i: (repeated_share(pairs[i].pruned), -i))
    return tuple((i + 1, pairs[i]) for i in sorted({0, worst}))


def mean_repetition(generation: GenerationComparison) -> tuple[float, float]:
    """Compute the mean repeated share of all texts of the base and of this model."""
    pairs = generation.continuations
    base = sum(repeated_share(p.base) for p in pairs) / len(pairs)
    return base, sum(repeated_share(p.pruned) for p in pairs) / len(pairs)
