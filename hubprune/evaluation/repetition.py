"""How much a text repeats itself, and two models after the same prompts.  Pure: a text is token ids, or words.

It is the continuation alone.  With the prompt in it, a text that quotes its prompt would count as repetitive, and a
long prompt would hide a loop.

Prompts differ more among themselves than the models do: all intervals are those of differences at the same prompt, and
say what other prompts of this kind might give.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Hashable, Iterable, Sequence
from operator import and_
from statistics import mean

from hubprune.core.artifacts import (
    Continuation,
    Estimate,
    GenerationComparison,
    Loop,
    ModelTexts,
    PairedLoops,
    PairedNumber,
    Repetition,
    RepetitionComparison,
)
from hubprune.evaluation.compare import Pairs, difference

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


def pair_texts(prompts: Sequence[str], base: ModelTexts, pruned: ModelTexts) -> GenerationComparison:
    """Put what two models wrote after the same prompts, in the same batches, beside each other with all measures."""
    continuations = []
    for prompt, one, other in zip(prompts, base.texts, pruned.texts, strict=True):
        continuation = Continuation(
            prompt=prompt, base=one.text, pruned=other.text, base_tokens=one.tokens, pruned_tokens=other.tokens,
            base_repetition=measure(one.token_ids), pruned_repetition=measure(other.token_ids),
        )  # fmt: skip
        continuations.append(continuation)
    return GenerationComparison(
        continuations=tuple(continuations), max_new_tokens=base.max_new_tokens, dtype=base.dtype,
        device=base.device, batch_size=max(map(len, base.batches)),
        repetition=compare_repetition(*([text.token_ids for text in side.texts] for side in (base, pruned))),
    )  # fmt: skip


def compare_repetition(base: Sequence[Text], pruned: Sequence[Text]) -> RepetitionComparison:
    """Average the measures over the prompts, given the token ids of one text per prompt from each model."""
    ours, theirs = ([measure(text) for text in side] for side in (base, pruned))

    def paired(value: Callable[[Repetition], float]) -> PairedNumber:
        one, other = ([value(text) for text in side] for side in (ours, theirs))
        # With weights, measures that happen to be 0 and 1 alone are not taken for wrong and right answers.
        change = difference(Pairs(one, other, weights=[1.0] * len(one)))
        return PairedNumber(base=mean(one), pruned=mean(other), change=change)

    loops, others = ([text.loop is not None for text in side] for side in (ours, theirs))
    one, other = distinct(base, n=2), distinct(pruned, n=2)
    return RepetitionComparison(
        tokens=paired(lambda text: text.tokens),
        seq_rep_4=_within_one(paired(lambda text: text.seq_rep_4)),
        diversity=_within_one(paired(lambda text: text.diversity)),
        longest_repeat=paired(lambda text: text.longest_repeat),
        distinct_2=PairedNumber(base=one, pruned=other, change=Estimate(value=other - one)),
        loops=PairedLoops(
            texts=len(loops),
            base=sum(loops),
            pruned=sum(others),
            both=sum(map(and_, loops, others)),
            change=difference(Pairs(loops, others)),
        ),
    )


def _within_one(number: PairedNumber) -> PairedNumber:
    """Cut off what lies beyond the change that a share can make, as the interval over few prompts does."""
    low, high = number.change.low, number.change.high
    if low is None or high is None:
        return number
    change = number.change.model_copy(update={"low": max(-1.0, low), "high": min(1.0, high)})
    return number.model_copy(update={"change": change})
