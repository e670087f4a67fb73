"""Rows and batches: what a model sees of each request, and that none is lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubprune.evaluation.requests import LONGEST_ROW, Request, batches, halved, make_rows, slots

TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=24)
REQUESTS = st.lists(
    st.builds(lambda c, e: Request.of(c, e, max_length=20), TOKENS, TOKENS.filter(lambda t: len(t) <= 20))
)


def seen_by(row, place):
    """Tokens and positions that the token at a place sees, itself included."""
    before = zip(row.tokens, row.positions, row.ends, strict=True)
    return [(token, position) for n, (token, position, end) in enumerate(before) if n <= place < end]


@given(REQUESTS)
def test_every_request_is_read_as_if_it_stood_alone(requests):
    found = {}
    for row in make_rows(requests):
        for member in row.members:
            read = requests[member.request].read
            alone = [(token, n) for n, token in enumerate(read)]
            for place, number in zip(member.places, range(len(read) - len(member.targets), len(read)), strict=True):
                assert seen_by(row, place) == alone[: number + 1]
            assert member.targets == requests[member.request].targets
            found[member.request] = found.get(member.request, 0) + 1
    assert found == dict.fromkeys(range(len(requests)), 1)


@given(REQUESTS)
def test_packing_never_costs_tokens_and_rows_come_longest_first(requests):
    lengths = [len(row) for row in make_rows(requests)]
    assert sum(lengths) <= sum(len(request.read) for request in requests)
    assert lengths == sorted(lengths, reverse=True)


@given(REQUESTS, st.integers(1, 200), st.none() | st.integers(1, 5))
def test_batches_hold_every_row_once_and_keep_to_their_limits(requests, most_slots, most_rows):
    rows = make_rows(requests)
    made = list(batches(rows, most_slots=most_slots, most_rows=most_rows))
    assert [row for batch in made for row in batch] == rows
    assert all(len(batch) == 1 or slots(batch) <= most_slots for batch in made)
    assert all(len(batch) <= (most_rows or len(rows)) for batch in made)


@given(REQUESTS)
def test_a_row_of_several_requests_can_be_halved(requests):
    for row in make_rows(requests):
        parts = halved(row, requests) if len(row.members) > 1 else []
        assert [m.request for part in parts for m in part.members] in ([], [m.request for m in row.members])
        assert all(len(part) <= len(row) for part in parts)


def test_the_endings_of_a_question_share_its_context():
    context = list(range(50))
    requests = [Request.of(context, [100 + n, 200, 300], max_length=99) for n in range(4)]
    (row,) = make_rows(requests)
    assert len(row) == 50 + 4 * 2  # the last token of an ending is scored and not read
    assert not row.is_plain


def test_endings_of_one_token_and_identical_requests_cost_nothing_more():
    one = [Request.of(range(20), [ending], max_length=99) for ending in (7, 8, 8)]
    (row,) = make_rows(one)
    assert (len(row), row.is_plain) == (20, True)
    assert [(m.places, m.targets) for m in row.members] == [((19,), (7,)), ((19,), (8,)), ((19,), (8,))]


def test_requests_that_hardly_begin_alike_stay_apart():
    requests = [Request.of([1, 2, 3, n], [9, 9], max_length=99) for n in range(4)]
    assert len(make_rows(requests)) == 4


def test_a_row_of_several_requests_has_a_longest_length():
    requests = [Request.of(range(200), [n] * 300, max_length=2000) for n in range(8)]
    assert len(make_rows(requests, most=10**6)) == 4
    assert max(map(len, make_rows(requests, most=10**6))) <= LONGEST_ROW


def test_a_long_beginning_is_read_once_for_all_questions_and_a_question_once_for_all_its_answers():
    examples = tuple(range(3000))
    questions = [(*examples, *range(5000 + 20 * n, 5020 + 20 * n)) for n in range(10)]
    requests = [Request.of(q, (answer, 7, 8, 9), max_length=9999) for q in questions for answer in (1, 1, 2)]
    (row,) = make_rows(requests, most=10**6)
    assert row.is_long
    assert len(row) == 3000 + 10 * (20 + 2 * 3)
    assert max(map(len, make_rows(requests, most=3100))) <= 3100
    assert sorted(m.request for row in make_rows(requests, most=3100) for m in row.members) == [*range(30)]


def test_a_batch_is_closed_before_it_is_padded_for_little():
    requests = [Request.of([n] * length, [n], max_length=2000) for n, length in enumerate([1000, 990, 500, 490])]
    lengths = [[len(row) for row in batch] for batch in batches(make_rows(requests), most_slots=4000)]
    assert lengths == [[1000, 990], [500, 490]]


def test_a_small_batch_is_padded_rather_than_run_alone():
    requests = [Request.of([n] * length, [n], max_length=2000) for n, length in enumerate([60, 30, 10])]
    assert len(list(batches(make_rows(requests), most_slots=9999))) == 1


def test_what_does_not_fit_is_cut_off_on_the_left_before_it_gets_its_key():
    """Two contexts that differ only where nobody looks are the same request."""
    one, other = (Request.of([first, *range(10)], [50, 51], max_length=8) for first in (1, 2))
    assert one.read == (*range(3, 10), 50)
    assert one.key == other.key


def test_the_key_tells_apart_what_is_scored():
    whole = [1, 2, 3, 4]
    keys = {Request.of(whole[:n], whole[n:], max_length=9).key for n in (1, 2, 3)}
    assert len(keys) == 3


@pytest.mark.parametrize(("context", "ending"), [([], [1]), ([1], []), ([1], [1] * 10)])
def test_what_cannot_be_asked_is_refused(context, ending):
    with pytest.raises(ValueError, match="tokens of context"):
        Request.of(context, ending, max_length=9)
