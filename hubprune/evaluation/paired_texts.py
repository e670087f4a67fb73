"""Compare how much two models repeat themselves after the same prompts.

Prompts differ more among themselves than the models do: all intervals are those of differences at the same prompt, and
say what other prompts of this kind might give.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from operator import and_
from statistics import mean

from hubprune.core.artifacts import (
    Continuation,
    Estimate,
    GenerationComparison,
    ModelTexts,
    PairedLoops,
    PairedNumber,
    Repetition,
    RepetitionComparison,
)
from hubprune.evaluation.compare import Pairs, difference
from hubprune.evaluation.repetition import distinct, measure

__all__ = ["compare_repetition", "pair_texts"]

Texts = Sequence[Sequence[Hashable]]


def pair_texts(prompts: Sequence[str], base: ModelTexts, pruned: ModelTexts) -> GenerationComparison:
    """Put the texts of two models beside each other, with the measures of each and of all.

    Args:
        prompts: at least one.
        base: what the base wrote, in the order of the prompts.
        pruned: what the other model wrote, in the same batches.
    """
    continuations = tuple(
        Continuation(
            prompt=prompt,
            base=one.text,
            pruned=other.text,
            base_tokens=one.tokens,
            pruned_tokens=other.tokens,
            base_repetition=measure(one.token_ids),
            pruned_repetition=measure(other.token_ids),
        )
        for prompt, one, other in zip(prompts, base.texts, pruned.texts, strict=True)
    )
    return GenerationComparison(
        continuations=continuations,
        max_new_tokens=base.max_new_tokens,
        dtype=base.dtype,
        device=base.device,
        batch_size=max(map(len, base.batches)),
        repetition=compare_repetition(*([text.token_ids for text in side.texts] for side in (base, pruned))),
    )


def compare_repetition(base: Texts, pruned: Texts) -> RepetitionComparison:
    """Average the measures over the prompts.

    Args:
        base: token ids of one text per prompt, at least one.
        pruned: of the other model, in the same order.
    """
    ours, theirs = ([measure(text) for text in side] for side in (base, pruned))

    def paired(value: Callable[[Repetition], float]) -> PairedNumber:
        return _means([value(text) for text in ours], [value(text) for text in theirs])

    return RepetitionComparison(
        tokens=paired(lambda text: text.tokens),
        seq_rep_4=_within_one(paired(lambda text: text.seq_rep_4)),
        diversity=_within_one(paired(lambda text: text.diversity)),
        longest_repeat=paired(lambda text: text.longest_repeat),
        distinct_2=_pooled(distinct(base, n=2), distinct(pruned, n=2)),
        loops=_loops(ours, theirs),
    )


def _means(base: Sequence[float], pruned: Sequence[float]) -> PairedNumber:
    # With weights, measures that happen to be 0 and 1 alone are not taken for wrong and right answers.
    change = difference(Pairs(base, pruned, weights=[1.0] * len(base)))
    return PairedNumber(base=mean(base), pruned=mean(pruned), change=change)


def _within_one(number: PairedNumber) -> PairedNumber:
    """Cut off what lies beyond the change that a share can make, as the interval over few prompts does."""
    low, high = number.change.low, number.change.high
    if low is None or high is None:
        return number
    change = number.change.model_copy(update={"low": max(-1.0, low), "high": min(1.0, high)})
    return number.model_copy(update={"change": change})


def _pooled(base: float, pruned: float) -> PairedNumber:
    return PairedNumber(base=base, pruned=pruned, change=Estimate(value=pruned - base))


def _loops(base: Sequence[Repetition], pruned: Sequence[Repetition]) -> PairedLoops:
    ours, theirs = ([text.loop is not None for text in side] for side in (base, pruned))
    return PairedLoops(
        texts=len(ours),
        base=sum(ours),
        pruned=sum(theirs),
        both=sum(map(and_, ours, theirs)),
        change=difference(Pairs(ours, theirs)),
    )
