"""Measures of repetition against their definitions, written out as slowly as they read."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hubprune.core.artifacts import Loop
from hubprune.evaluation.repetition import distinct, diversity, longest_repeat, measure, seq_rep, terminal_loop

BEFORE = (
    "France and the largest city in the country. It is located in the north-central part of the country, on the banks "
    "of the Seine River. The city is known for its rich history, culture, and architecture."
)
AFTER = (
    "France. It is the largest city in France and the second largest city in Europe. The city is located on the River "
    "Seine in the north of France. Paris is the most visited city in the world. It is the most visited city in the "
    "world. It is the most visited city in the world."
)
"""What Llama-3.2-3B and a version without three of its attentions wrote after "Paris is the capital of"."""

# Few different tokens, so that texts repeat themselves by chance.
texts = st.lists(st.integers(0, 2), max_size=40)


def test_a_text_with_a_loop_and_one_without_are_told_apart():
    before, after = measure(BEFORE.split()), measure(AFTER.split())
    assert (before.tokens, after.tokens) == (36, 55)
    assert (round(before.seq_rep_4, 3), round(after.seq_rep_4, 3)) == (0.000, 0.269)
    assert (round(before.diversity, 3), round(after.diversity, 3)) == (0.943, 0.294)
    assert before.loop is None
    assert after.loop == Loop(period=9, covered=26, start=29)
    assert " ".join(AFTER.split()[after.loop.start :]).startswith(
        "is the most visited city in the world. It is the most"
    )
    # "in the" comes twice; "is the most visited ..." runs on from its second copy into its third
    assert (before.longest_repeat, after.longest_repeat) == (2, 17)


def occurrences(text, span):
    return sum(text[i : i + len(span)] == span for i in range(len(text) - len(span) + 1))


@given(texts, st.integers(1, 5))
def test_a_repeated_share_counts_the_ngrams_that_came_before(text, n):
    grams = [text[i : i + n] for i in range(len(text) - n + 1)]
    again = sum(gram in grams[:i] for i, gram in enumerate(grams))
    assert seq_rep(text, n=n) == pytest.approx(again / len(grams) if grams else 0)


@given(texts)
def test_diversity_is_the_product_over_two_three_and_four(text):
    assert diversity(text) == pytest.approx(math.prod(1 - seq_rep(text, n=n) for n in (2, 3, 4)))
    assert 0 <= diversity(text) <= 1


@given(texts)
def test_the_longest_repeat_is_the_longest_span_that_occurs_twice(text):
    spans = (text[i:j] for i in range(len(text)) for j in range(i + 1, len(text) + 1))
    assert longest_repeat(text) == max((len(span) for span in spans if occurrences(text, span) > 1), default=0)


def loop_by_definition(text):
    """Every tail and every period: the longest tail wins, then the shortest period."""
    for start in range(len(text)):
        tail = text[start:]
        for period in range(1, len(tail) // 2 + 1):
            if len(tail) >= 16 and all(tail[i] == tail[i + period] for i in range(len(tail) - period)):
                return Loop(period=period, covered=len(tail), start=start)
    return None


spans = st.lists(st.integers(0, 2), min_size=1, max_size=9)
loops = st.builds(
    lambda lead, span, copies, cut: (lead + span * copies)[cut:], spans, spans, st.integers(1, 9), st.integers(0, 9)
)


@given(texts | loops)
@example([])
@example([0])
@example([0] * 15)
@example([0] * 16)
@example([1, 2, 3, 4, 5, 6, 7, 8] * 2)  # two copies that just do
@example([2, 3, 4, 5, 6, 7, 8] * 2 + [2])  # 15 tokens
@example(([1] + [0] * 16) * 2)  # ends in zeros, and in something longer
def test_a_loop_is_found_exactly_where_the_definition_has_one(text):
    assert terminal_loop(text) == loop_by_definition(text)


@given(st.lists(st.integers(0, 50), max_size=30), st.integers(1, 20), st.integers(2, 6), st.integers(0, 19))
def test_a_planted_loop_is_always_found(lead, period, copies, more):
    span = list(range(100, 100 + period))
    copies = max(copies, math.ceil(16 / period))
    planted = span[period - more % period :] if more % period else []
    found = terminal_loop(lead + planted + span * copies)
    assert found == Loop(period=period, covered=period * copies + len(planted), start=len(lead))


@given(texts | loops)
def test_other_names_for_the_tokens_change_nothing(text):
    names = {0: 31_999, 1: "words", 2: (7, 7)}
    assert measure([names[token] for token in text]) == measure(text)


@given(texts, texts)
def test_what_comes_before_a_loop_changes_neither_its_period_nor_its_length(lead, other):
    span = [10, 11, 12, 13, 14, 15, 16, 17, 18] * 3
    one, two = terminal_loop(lead + span), terminal_loop(other + span)
    assert (one.period, one.covered, one.start) == (9, 27, len(lead))
    assert (two.period, two.covered, two.start) == (9, 27, len(other))


def test_a_loop_that_was_left_again_is_none():
    assert terminal_loop([1, 2, 3, 4] * 10 + [5]) is None


@pytest.mark.parametrize(("length", "repeat"), [(0, 0), (1, 0), (2, 1), (3, 2)])
def test_texts_too_short_for_an_ngram_repeat_nothing_of_it(length, repeat):
    short = measure([5] * length)
    assert (short.tokens, short.seq_rep_4, short.diversity > 0, short.loop) == (length, 0, True, None)
    assert short.longest_repeat == repeat


def test_distinct_sees_that_all_texts_are_the_same():
    same, different = [[1, 2, 3]] * 4, [[1, 2, 3], [4, 5, 6], [7, 8, 9], [10, 11, 12]]
    assert (distinct(same, n=2), distinct(different, n=2)) == (2 / 8, 1)
    assert {seq_rep(text, n=2) for text in (*same, *different)} == {0}
    assert distinct([[], [1]], n=2) == 1


@pytest.mark.parametrize("length", [128, 1024])
def test_measures_take_few_comparisons_whatever_the_text(length):
    """Worst cases for a naive loop search take length squared over two comparisons: half a million for 1024."""

    class Token(int):
        compared = 0

        def __eq__(self, other):
            Token.compared += 1
            return int(self) == int(other)

        __hash__ = int.__hash__

    terminal_loop([Token(i == length // 2) for i in range(length)])
    assert Token.compared <= 3 * length
