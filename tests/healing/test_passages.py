"""A document that shares 13 words in a row with a benchmark is not trained on."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hubprune.healing.texts import WORDS, Seen, passages

SENTENCE = "The quick brown fox jumps over the lazy dog, and then it sleeps until noon."


def test_thirteen_words_in_a_row_are_a_passage_and_twelve_are_none():
    words = SENTENCE.split()
    assert len(list(passages(" ".join(words[:12])))) == 0
    assert list(passages(" ".join(words[:13]))) == ["the quick brown fox jumps over the lazy dog and then it sleeps"]
    assert len(list(passages(SENTENCE))) == 3


def test_case_punctuation_and_line_breaks_do_not_hide_a_passage():
    seen = Seen.of([SENTENCE])
    assert seen.holds("BEFORE. the QUICK, brown fox;\njumps over the lazy dog -- and then it sleeps. After.")
    assert not seen.holds("The quick brown cat jumps over the lazy dog, and then it sleeps until noon.")


@given(st.lists(st.sampled_from("abcde"), min_size=WORDS, max_size=40), st.integers(0, 30), st.integers(0, 30))
def test_a_cut_of_thirteen_words_or_more_is_found_wherever_it_stands(words, before, after):
    seen = Seen.of([" ".join(words)])
    assert seen.holds(" ".join(["x"] * before + words[: WORDS + 2] + ["y"] * after))


def test_nothing_is_found_where_nothing_was_looked_for():
    assert not Seen.of([]).holds(SENTENCE)
