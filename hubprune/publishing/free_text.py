"""The card's free text: which pairs are shown, by a fixed rule, and how much the texts repeat themselves."""

from __future__ import annotations

from collections.abc import Iterator

from hubprune.artifacts import Continuation, GenerationComparison
from hubprune.publishing.context import FreeText, Pair
from hubprune.publishing.numbers import plain

__all__ = ["limits", "mean_repetition", "repeated_share", "section", "shown_pairs"]

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


def section(generation: GenerationComparison | None) -> FreeText | None:
    """Show the first pair and the most repetitive one verbatim; None where no text was written."""
    if generation is None or not generation.continuations:
        return None
    pairs = tuple(_pair(number, pair=pair) for number, pair in shown_pairs(generation))
    return FreeText(sentences=tuple(_sentences(generation, shown=len(pairs))), pairs=pairs)


def _pair(number: int, *, pair: Continuation) -> Pair:
    share = plain(100 * repeated_share(pair.pruned), digits=1)
    reason = "the first prompt" if number == 1 else f"the most repetitive text of this model ({share} % repeated)"
    return Pair(number=number, reason=reason, prompt=pair.prompt, base=pair.base, pruned=pair.pruned)


def _sentences(generation: GenerationComparison, *, shown: int) -> Iterator[str]:
    total = len(generation.continuations)
    base, pruned = (plain(100 * share, digits=1) for share in mean_repetition(generation))
    prompts = "1 prompt" if total == 1 else f"{total} prompts"
    yield (
        f"Both models continued {prompts}: {generation.decoding} decoding, no penalty, at most"
        f" {generation.max_new_tokens} new tokens, {generation.dtype} on {generation.device}."
    )
    yield (
        "Shown by a fixed rule: the first prompt, and the one whose text by this model has the largest share of"
        " 4-word sequences that it had before."
    )
    if rest := total - shown:
        others = "The other pair is" if rest == 1 else f"The other {rest} pairs are"
        yield f"{others} in hubprune.json."
    yield f"Mean share of repeated 4-word sequences: base {base} %, this model {pruned} %."


def limits(generation: GenerationComparison | None) -> Iterator[str]:
    """Say where this model repeats itself more than the base, or that nothing is known of it."""
    if generation is None or not generation.continuations:
        yield "No free text was written: whether the model falls into loops is not known."
        return
    base, pruned = mean_repetition(generation)
    if pruned > base:
        shares = f"{plain(100 * pruned, digits=1)} % of its 4-word sequences against {plain(100 * base, digits=1)} %"
        yield f"It repeats itself more than the base: {shares} over {len(generation.continuations)} prompts."
