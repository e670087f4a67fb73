"""Measure how much a text repeats itself.  Pure: a text is a sequence of token ids, or of words.

It is the continuation alone.  With the prompt in it, a text that quotes its prompt would count as repetitive, and a
long prompt would hide a loop.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Hashable, Iterable, Sequence

from hubprune.core.artifacts import Loop, Repetition

__all__ = ["distinct", "diversity", "longest_repeat", "measure", "seq_rep", "terminal_loop"]

Text = Sequence[Hashable]


def measure(text: Text) -> Repetition:
    """Take all measures of one text."""
    return Repetition(
        tokens=len(text),
        seq_rep_4=seq_rep(text, n=4),
        diversity=diversity(text),
        longest_repeat=longest_repeat(text),
        loop=terminal_loop(text),
    )


def seq_rep(text: Text, *, n: int) -> float:
    """Compute the share of n-grams that occurred before in the same text, 0 to 1; 0 for fewer than n tokens.

    seq-rep-n = 1 - |different n-grams| / |n-grams| (Welleck et al. 2020, arXiv 1908.04319, section 6.1).
    """
    grams = _ngrams(text, n)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def diversity(text: Text) -> float:
    """Compute the product of 1 - seq-rep-n for n = 2, 3 and 4, 0 to 1 (Su et al. 2022, arXiv 2202.06417, section 4.1).

    A text of one token or none has 1.
    """
    return math.prod(1 - seq_rep(text, n=n) for n in (2, 3, 4))


def distinct(texts: Iterable[Text], *, n: int) -> float:
    """Compute the share of different ones among the n-grams of all texts together, 0 to 1; 1 where there is none.

    It sees what no measure of single texts can: a model that writes the same after every prompt.  distinct-n of Li et
    al. 2016 (arXiv 1510.03055), over the number of n-grams as is usual now; there it is over that of tokens.
    """
    grams = [gram for text in texts for gram in _ngrams(text, n)]
    return len(set(grams)) / len(grams) if grams else 1.0


def longest_repeat(text: Text) -> int:
    """Find the length of the longest span that occurs twice or more; occurrences may overlap."""

    def occurs_once(length: int) -> bool:
        grams = _ngrams(text, length)
        return len(set(grams)) == len(grams)

    # Where a span occurs twice, so do all spans inside it: lengths that repeat come first, those that do not follow.
    return bisect_left(range(1, len(text)), True, key=occurs_once)


def terminal_loop(text: Text) -> Loop | None:
    """Find the loop that a text ends in, as greedy decoding does once it cannot leave; None where it does not.

    That is the longest tail of two or more copies of its last tokens, 16 tokens or more in all; of several that are
    equally long, the one with the shortest period.  Before the copies may stand the end of another one.
    """
    agreement = _agreement(text[::-1])
    tails = [
        (period + agreement[period], period)
        for period in range(1, len(text))
        if period + agreement[period] >= max(Loop.MIN_TOKENS, Loop.MIN_COPIES * period)
    ]
    covered, period = max(tails, key=lambda tail: (tail[0], -tail[1]), default=(0, 0))
    return Loop(period=period, covered=covered, start=len(text) - covered) if period else None


def _ngrams(text: Text, n: int) -> list[tuple[Hashable, ...]]:
    return [tuple(text[i : i + n]) for i in range(len(text) - n + 1)]


def _agreement(text: Text) -> list[int]:
    """Return for every position for how many tokens the text from there on agrees with its own beginning.

    The Z algorithm (Gusfield 1997, Algorithms on Strings, section 1.4): linear time, where comparing each position by
    itself takes quadratic time on just the texts that loop.
    """
    found = [len(text)] + [0] * (len(text) - 1)
    left = right = 0  # text[left:right] agrees with the beginning, and no known stretch ends further to the right
    for i in range(1, len(text)):
        length = min(found[i - left], right - i) if i < right else 0
        while i + length < len(text) and text[length] == text[i + length]:
            length += 1
        found[i] = length
        if i + length > right:
            left, right = i, i + length
    return found
