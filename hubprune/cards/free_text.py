"""The card's free text: which pairs are shown, by a fixed rule, and how much the texts repeat themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hubprune.cards.context import FreeText, Pair, Table
from hubprune.cards.markdown import INTERVAL, count, listing, plain, signed, span
from hubprune.cards.measured import of_the_day
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

LONGEST_LINE = 88
"""Characters of a line of text on a card: what is longer would be cut off, since code blocks do not wrap."""
NOTES = (
    "Measured by token ids, without the prompt and the end-of-text token.",
    "seq-rep-4: share of a text's 4-token sequences that occurred in it before (Welleck et al. 2020, arXiv"
    " 1908.04319).",
    "Diversity: product of 1 − seq-rep-n for n = 2, 3 and 4 (Su et al. 2022, arXiv 2202.06417).",
    "Longest repeated span: its occurrences may overlap.",
    "distinct-2: share of the 2-token sequences that are distinct (after Li et al. 2016, arXiv 1510.03055).",
    f"A text ends in a loop where its last {Loop.MIN_TOKENS} tokens or more are {Loop.MIN_COPIES} or more copies of one"
    " span, which the end of another copy may precede.",
    "Intervals: 95 %, from the differences at each prompt (Student's t, cut off at 100 points; for loops Agresti and"
    " Min 2005); they hold for prompts like these.",
)


def section(generation: GenerationComparison | None) -> FreeText | None:
    """Show the measures, the first pair and the most repetitive one verbatim; None where no text was written."""
    if generation is None or not generation.continuations:
        return None
    total, size = len(generation.continuations), generation.batch_size
    prompts = "1 prompt" if total == 1 else f"{total} prompts"
    together = f" in the same batches of at most {size}" if size and total > 1 else ""
    done = f"continued {prompts}"
    if generation.chat:
        done = f"answered {prompts}, each as a user's message in the base's chat template,"
    how = (
        f"Both models {done}{together}: {generation.decoding} decoding, no penalty, at most"
        f" {generation.max_new_tokens} new tokens, {generation.dtype} on {generation.device}. Sampling was not tried."
        f"{of_the_day(generation.chat) if generation.chat else ''}"
    )
    shown = shown_pairs(generation)
    pairs = tuple(
        Pair(
            number=number, reason=reason, prompt=wrapped(pair.prompt),
            base_label=_label("Base", pair.base_repetition), base=wrapped(pair.base),
            pruned_label=_label("This model", pair.pruned_repetition), pruned=wrapped(pair.pruned),
        )
        for number, pair, reason in shown
    )  # fmt: skip
    figures = measures(generation.repetition, prompts=prompts) if generation.repetition else None
    rule = tuple(_rule(generation, shown=shown))
    return FreeText(sentences=(how,), measures=figures, notes=NOTES, rule=rule, pairs=pairs)


def shown_pairs(generation: GenerationComparison) -> tuple[tuple[int, Continuation, str], ...]:
    """Return the first pair and the worst one, each with its number from 1 and the reason why it is shown.

    The worst one is that whose pruned text has the highest seq-rep-4; the earlier prompt wins a tie.  There is one pair
    where that is the first, and where no text repeats anything.
    """
    pairs = generation.continuations
    repeated = [pair.pruned_repetition.seq_rep_4 if pair.pruned_repetition else 0.0 for pair in pairs]
    worst = repeated.index(max(repeated))
    repetitive = "the most repetitive text of this model"
    if worst:
        return (1, pairs[0], "the first one"), (worst + 1, pairs[worst], repetitive)
    also = f" and {repetitive}" if len(pairs) > 1 and repeated[0] > 0 else ""
    return ((1, pairs[0], f"the first one{also}"),)


def _rule(generation: GenerationComparison, *, shown: Sequence[tuple[int, Continuation, str]]) -> Iterator[str]:
    total = len(generation.continuations)
    if total > 1 and generation.repetition is not None:
        yield (
            "The texts below are chosen by a fixed rule: those of the first prompt, and of the one where this model's"
            " seq-rep-4 is highest."
        )
    # Which texts end in a loop: the most repetitive one, which is shown, need not be among them.
    pairs = enumerate(generation.continuations, start=1)
    numbers = [n for n, pair in pairs if pair.pruned_repetition and pair.pruned_repetition.loop]
    if numbers and total > 1:
        one, more = "text that ends in a loop is that of prompt", "texts that end in a loop are those of prompts"
        yield f"This model's {one if len(numbers) == 1 else more} {listing(numbers)}."
    if any(wrapped(text) != text for _, pair, _ in shown for text in (pair.prompt, pair.base, pair.pruned)):
        yield f"Lines of more than {LONGEST_LINE} characters are broken at spaces."
    if rest := total - len(shown):
        others = "The other pair is" if rest == 1 else f"The other {rest} pairs are"
        yield f"{others} in hubprune.json."


def _label(who: str, repetition: Repetition | None) -> str:
    """Say whose text it is and how much it repeats itself, where that was measured."""
    if repetition is None:
        return who
    tokens = "1 token" if repetition.tokens == 1 else f"{count(repetition.tokens)} tokens"
    ending = "no loop"
    if loop := repetition.loop:
        what = "one and the same token" if loop.period == 1 else f"the same {loop.period} tokens over and over"
        ending = f"ends in a loop: the last {loop.covered} tokens are {what}"
    return f"{who} ({tokens}, seq-rep-4 {plain(100 * repetition.seq_rep_4, digits=1)} %, {ending})"


def wrapped(text: str) -> str:
    """Break lines that are too long at spaces, each of which its line break takes the place of."""
    parts = []
    for line in text.split("\n"):
        while len(line) > LONGEST_LINE:
            at = line.rfind(" ", 1, LONGEST_LINE + 1)
            at = at if at > 0 and line[:at].strip() else line.find(" ", LONGEST_LINE)
            if at < 0:
                break
            parts.append(line[:at])
            line = line[at + 1 :]
        parts.append(line)
    return "\n".join(parts)


def measures(repetition: RepetitionComparison, *, prompts: str) -> Table:
    """Compare how much two models repeat themselves, over so many prompts."""
    rows = (
        _row("Length, tokens", repetition.tokens),
        _row("seq-rep-4, %", repetition.seq_rep_4, times=100),
        _row("Diversity, %", repetition.diversity, times=100),
        _row("Longest repeated span, tokens", repetition.longest_repeat),
        _row("distinct-2 of all texts, %", repetition.distinct_2, times=100),
        (*_loop_cells(repetition.loops), _change(repetition.loops.change)),
    )
    columns = f"Free text, mean of {prompts}", "Base", "This model", "Change (95 % interval)"
    return Table(columns=columns, align="lrrr", rows=rows)


def _row(name: str, number: PairedNumber, *, times: int = 1) -> tuple[str, ...]:
    values = (plain(times * value, digits=1) for value in (number.base, number.pruned))
    return name, *values, _change(number.change, times=times)


def _loop_cells(loops: PairedLoops) -> tuple[str, str, str]:
    return "Texts that end in a loop", f"{loops.base} of {loops.texts}", f"{loops.pruned} of {loops.texts}"


def _change(change: Estimate, *, times: int = 100, label: str = "") -> str:
    """Write a change, in points where it is a share, with its interval."""
    value = signed(times * change.value, digits=1, unit=" points" if times == 100 else "")
    if change.low is None or change.high is None:
        return value
    return f"{value} ({label}{span(times * change.low, times * change.high, digits=1)})"


def loop_rows(generation: GenerationComparison | None) -> list[tuple[str, ...]]:
    """Compare at a glance how many texts end in a loop; no row where that was not measured."""
    if generation is None or generation.repetition is None:
        return []
    loops = generation.repetition.loops
    return [(*_loop_cells(loops), _change(loops.change))]


def limits(generation: GenerationComparison | None) -> Iterator[str]:
    """Say where this model falls into loops or repeats itself more than the base, or that nothing is known of it."""
    if generation is None or not generation.continuations:
        yield "No free text was written: whether the model falls into loops is not known."
        return
    if generation.repetition is None:
        yield "The free text was not measured: whether the model falls into loops more than the base is not known."
        return
    loops, seq_rep = generation.repetition.loops, generation.repetition.seq_rep_4
    if loops.pruned > loops.base:
        chance = "" if is_above_zero(loops.change) else " (not distinguishable from chance)"
        seen = f"{loops.pruned} of {loops.texts}, against {loops.base} of the base's"
        yield f"More of its texts end in a loop: {seen}{chance}."
    if is_above_zero(seq_rep.change):
        now, base = (f"{plain(100 * share, digits=1)} %" for share in (seq_rep.pruned, seq_rep.base))
        yield (
            f"It repeats itself more than the base: {now} of a text's 4-token sequences occurred in it before, against"
            f" {base}: {_change(seq_rep.change, label=INTERVAL)}."
        )


def is_above_zero(change: Estimate) -> bool:
    """Return whether the interval of a change leaves out 0, and all below it."""
    return change.low is not None and change.low > 0
