"""The card's free text: which pairs are shown, by a fixed rule, and how much the texts repeat themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hubprune.cards.context import FreeText, Pair, Table
from hubprune.cards.markdown import INTERVAL, NONE, count, listing, plain, signed, span
from hubprune.core.artifacts import (
    Continuation,
    Estimate,
    GenerationComparison,
    Loop,
    PairedLoops,
    PairedNumber,
    Repetition,
    RepetitionComparison,
)

__all__ = ["limits", "loop_change", "section", "shown_pairs", "wrapped"]

LONGEST_LINE = 88
"""Characters of a line of text on a card: what is longer would be cut off, since code blocks do not wrap."""


def section(generation: GenerationComparison | None) -> FreeText | None:
    """Show the measures, the first pair and the most repetitive one verbatim; None where no text was written."""
    if generation is None or not generation.continuations:
        return None
    shown = shown_pairs(generation)
    pairs = tuple(_pair(number, pair=pair, reason=reason) for number, pair, reason in shown)
    return FreeText(
        sentences=(_how(generation),),
        measures=_table(generation.repetition, prompts=len(generation.continuations)),
        notes=NOTES,
        rule=tuple(_rule(generation, shown=shown)),
        pairs=pairs,
    )


# ---- pairs -------------------------------------------------------------------------------------------------------


def shown_pairs(generation: GenerationComparison) -> tuple[tuple[int, Continuation, str], ...]:
    """Return the first pair and the worst one, each with its number from 1 and the reason why it is shown.

    The worst one is that whose pruned text has the highest seq-rep-4; the earlier prompt wins a tie.  There is one pair
    where that is the first, and where no text repeats anything.
    """
    pairs = generation.continuations
    worst = max(range(len(pairs)), key=lambda i: (_seq_rep(pairs[i].pruned_repetition), -i))
    repetitive = "the most repetitive text of this model"
    if worst:
        return (1, pairs[0], "the first one"), (worst + 1, pairs[worst], repetitive)
    also = f" and {repetitive}" if len(pairs) > 1 and _seq_rep(pairs[0].pruned_repetition) > 0 else ""
    return ((1, pairs[0], f"the first one{also}"),)


def _seq_rep(repetition: Repetition | None) -> float:
    return repetition.seq_rep_4 if repetition else 0.0


def _pair(number: int, *, pair: Continuation, reason: str) -> Pair:
    return Pair(
        number=number,
        reason=reason,
        prompt=wrapped(pair.prompt),
        base_label=_label("Base", pair.base_repetition),
        base=wrapped(pair.base),
        pruned_label=_label("This model", pair.pruned_repetition),
        pruned=wrapped(pair.pruned),
    )


def wrapped(text: str) -> str:
    """Break lines that are too long at spaces, each of which its line break takes the place of."""
    return "\n".join(part for line in text.split("\n") for part in _broken(line))


def _broken(line: str) -> Iterator[str]:
    while len(line) > LONGEST_LINE:
        at = line.rfind(" ", 1, LONGEST_LINE + 1)
        at = at if at > 0 and line[:at].strip() else line.find(" ", LONGEST_LINE)
        if at < 0:
            break
        yield line[:at]
        line = line[at + 1 :]
    yield line


def _label(who: str, repetition: Repetition | None) -> str:
    """Say whose text it is and how much it repeats itself, where that was measured."""
    if repetition is None:
        return who
    tokens = "1 token" if repetition.tokens == 1 else f"{count(repetition.tokens)} tokens"
    return f"{who} ({tokens}, seq-rep-4 {_percent(repetition.seq_rep_4)} %, {_ending(repetition.loop)})"


def _ending(loop: Loop | None) -> str:
    if loop is None:
        return "no loop"
    what = "one and the same token" if loop.period == 1 else f"the same {loop.period} tokens over and over"
    return f"ends in a loop: the last {loop.covered} tokens are {what}"


# ---- measures ----------------------------------------------------------------------------------------------------


def _how(generation: GenerationComparison) -> str:
    total = len(generation.continuations)
    prompts = "1 prompt" if total == 1 else f"{total} prompts"
    together = f" in the same batches of at most {generation.batch_size}" if generation.batch_size and total > 1 else ""
    return (
        f"Both models continued {prompts}{together}: {generation.decoding} decoding, no penalty, at most"
        f" {generation.max_new_tokens} new tokens, {generation.dtype} on {generation.device}. Sampling was not tried."
    )


NOTES = (
    "Measured by token ids, without the prompt and the end-of-text token.",
    "seq-rep-4: share of 4-token sequences that came before in the same text (Welleck et al. 2020, arXiv 1908.04319).",
    "Diversity: product of 1 − seq-rep-n for n = 2, 3 and 4 (Su et al. 2022, arXiv 2202.06417).",
    "Longest repeated span: its occurrences may overlap.",
    "distinct-2: share of different ones among the 2-token sequences (after Li et al. 2016, arXiv 1510.03055).",
    f"A text ends in a loop where its last {Loop.MIN_TOKENS} tokens or more are {Loop.MIN_COPIES} or more copies of one"
    " span, before which may stand the end of another copy.",
    "Intervals: 95 %, from the differences at each prompt (Student's t, cut off at 100 points; for loops Agresti and"
    " Min 2005); they speak of prompts like these.",
)


def _table(repetition: RepetitionComparison | None, *, prompts: int) -> Table | None:
    if repetition is None:
        return None
    mean = "mean of 1 prompt" if prompts == 1 else f"mean of {prompts} prompts"
    rows = (
        _row("Length, tokens", repetition.tokens, digits=1),
        _row("seq-rep-4, %", repetition.seq_rep_4, digits=1, times=100),
        _row("Diversity, %", repetition.diversity, digits=1, times=100),
        _row("Longest repeated span, tokens", repetition.longest_repeat, digits=1),
        _row("distinct-2 of all texts, %", repetition.distinct_2, digits=1, times=100),
        _loop_row(repetition.loops),
    )
    columns = f"Free text, {mean}", "Base", "This model", "Change", "95 % interval of the change"
    return Table(columns=columns, align="lrrrr", rows=rows)


def _row(name: str, number: PairedNumber, *, digits: int, times: float = 1.0) -> tuple[str, ...]:
    values = (plain(times * value, digits=digits) for value in (number.base, number.pruned))
    return name, *values, *_change(number.change, times=times, unit=" points" if times == 100 else "")


def _loop_row(loops: PairedLoops) -> tuple[str, ...]:
    values = (f"{n} of {loops.texts}" for n in (loops.base, loops.pruned))
    return "Texts that end in a loop", *values, *_change(loops.change, times=100, unit=" points")


def _change(change: Estimate, *, times: float, unit: str) -> tuple[str, str]:
    interval = NONE
    if change.low is not None and change.high is not None:
        interval = span(times * change.low, times * change.high, digits=1)
    return signed(times * change.value, digits=1, unit=unit), interval


def _percent(share: float) -> str:
    return plain(100 * share, digits=1)


def _rule(generation: GenerationComparison, *, shown: Sequence[tuple[int, Continuation, str]]) -> Iterator[str]:
    total = len(generation.continuations)
    if total > 1 and generation.repetition is not None:
        yield (
            "Shown by a fixed rule: the first prompt, and the one whose text by this model has the highest seq-rep-4,"
            " the earlier one where several have."
        )
    yield from _looping(generation)
    if any(wrapped(text) != text for _, pair, _ in shown for text in (pair.prompt, pair.base, pair.pruned)):
        yield f"Lines of more than {LONGEST_LINE} characters are broken at spaces."
    if rest := total - len(shown):
        others = "The other pair is" if rest == 1 else f"The other {rest} pairs are"
        yield f"{others} in hubprune.json."


def _looping(generation: GenerationComparison) -> Iterator[str]:
    """Say which texts end in a loop: the most repetitive one, which is shown, need not be among them."""
    pairs = enumerate(generation.continuations, start=1)
    numbers = tuple(n for n, pair in pairs if pair.pruned_repetition and pair.pruned_repetition.loop)
    if numbers and len(generation.continuations) > 1:
        one, more = "text that ends in a loop is that of prompt", "texts that end in a loop are those of prompts"
        yield f"This model's {one if len(numbers) == 1 else more} {listing(numbers)}."


# ---- limits ------------------------------------------------------------------------------------------------------


def limits(generation: GenerationComparison | None) -> Iterator[str]:
    """Say where this model falls into loops or repeats itself more than the base, or that nothing is known of it."""
    if generation is None or not generation.continuations:
        yield "No free text was written: whether the model falls into loops is not known."
        return
    if generation.repetition is None:
        yield "The free text was not measured: whether the model falls into loops more than the base is not known."
        return
    yield from _loop_limit(generation.repetition.loops)
    yield from _repetition_limit(generation.repetition.seq_rep_4)


def _loop_limit(loops: PairedLoops) -> Iterator[str]:
    if loops.pruned > loops.base:
        chance = "" if _is_above_zero(loops.change) else ": not distinguishable from chance"
        yield (
            f"More of its texts end in a loop: {loops.pruned} of {loops.texts}, against {loops.base} of the base's"
            f" ({_told(loops.change)}{chance})."
        )


def _repetition_limit(seq_rep: PairedNumber) -> Iterator[str]:
    if _is_above_zero(seq_rep.change):
        shares = f"{_percent(seq_rep.pruned)} % against {_percent(seq_rep.base)} %"
        yield (
            f"It repeats itself more than the base: of the 4-token sequences of a text {shares} came before in it"
            f" ({_told(seq_rep.change)})."
        )


def _is_above_zero(change: Estimate) -> bool:
    return change.low is not None and change.low > 0


def loop_change(loops: PairedLoops) -> str:
    """Write the change of the share of texts that end in a loop, as in the table of the free text."""
    points, interval = _change(loops.change, times=100, unit=" points")
    return points if interval == NONE else f"{points} ({interval})"


def _told(change: Estimate) -> str:
    points, interval = _change(change, times=100, unit=" points")
    return points if interval == NONE else f"{points}, {INTERVAL}{interval}"
