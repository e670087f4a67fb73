"""Batches that fit: every row once, little padding, and smaller ones where memory runs out."""

from __future__ import annotations

import weakref
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hubprune.evaluation import models
from hubprune.evaluation.models import run_batches, similar_length

NO_MEMORY = torch.OutOfMemoryError("CUDA out of memory.")
lengths = st.lists(st.integers(1, 50), min_size=1, max_size=30)


@given(lengths, st.integers(1, 200))
def test_every_row_is_in_one_batch_that_keeps_to_its_tokens(lengths, tokens):
    batches = similar_length(lengths, tokens=tokens)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert [lengths[i] for batch in batches for i in batch] == sorted(lengths, reverse=True)
    for batch in batches:
        assert len(batch) == 1 or len(batch) * lengths[batch[0]] <= tokens
    assert all((len(batch) + 1) * lengths[batch[0]] > tokens for batch in batches[:-1])  # none could have taken more


@given(lengths, st.integers(1, 200), st.lists(st.integers(1, 9), min_size=1, max_size=40))
def test_results_come_in_order_whatever_fits_at_the_moment(lengths, tokens, room):
    room, splits = iter(room), []

    def work(batch):
        if len(batch) > next(room, 1):
            raise NO_MEMORY
        return [10 * i for i in batch]

    start = similar_length(lengths, tokens=tokens)
    with patch.object(models, "release_memory"):  # which takes its time
        results, done = run_batches(start, work, on_split=splits.append)
    assert results == [10 * i for i in range(len(lengths))]
    assert [i for batch in done for i in batch] == [i for batch in start for i in batch]
    assert splits == sorted(splits, reverse=True)
    again = run_batches(done, lambda batch: [10 * i for i in batch], on_split=splits.append)
    assert again == (results, done)


def test_a_size_that_did_not_fit_is_not_tried_again():
    tried = []

    def work(batch):
        tried.append(len(batch))
        if len(batch) > 2:
            raise NO_MEMORY
        return batch

    run_batches((tuple(range(8)), tuple(range(8, 16)), (16,)), work, on_split=lambda rows: None)
    assert tried == [8, 4, 2, 2, 2, 2, 2, 2, 2, 2, 1]


@pytest.mark.parametrize("error", [NO_MEMORY, RuntimeError("shapes cannot be multiplied")])
def test_what_smaller_batches_do_not_help_is_raised(error):
    def work(batch):
        raise error

    with pytest.raises(RuntimeError) as caught:
        run_batches(((0,), (1,)), work, on_split=lambda rows: None)
    assert caught.value is error


def test_other_errors_of_large_batches_are_raised_at_once():
    def work(batch):
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        run_batches(((0, 1),), work, on_split=lambda rows: None)


def test_what_a_failed_batch_held_is_let_go_before_memory_is_released(monkeypatch):
    held, released = [], []

    class Tensor:
        pass

    def work(batch):
        tensor = Tensor()
        held.append(weakref.ref(tensor))
        if len(batch) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return batch

    monkeypatch.setattr(models, "release_memory", lambda: released.extend(reference() for reference in held))
    assert run_batches(((0, 1),), work, on_split=lambda rows: None)[0] == [0, 1]
    assert released == [None]
