"""What counts as the same in two runtimes, by answers that are known."""

from __future__ import annotations

import math

import pytest

from hubprune.runtimes.asking import Answer, Continued
from hubprune.runtimes.comparing import HALF_PRECISION, TOLERANCES, compare, refused
from hubprune.runtimes.reference import Row

IDS, LOGPROBS = (5, 6, 7), (-0.1, -0.2, -0.3)


def answer(ids=IDS, logprobs=LOGPROBS, **changes):
    values = {
        "versions": {"vllm": "0.32.0", "transformers": "5.19.0"}, "architecture": "Some", "tokens": ((1, 2),),
        "texts": (Continued(ids=ids, logprobs=logprobs),), "dtype": "float32", "seconds": 1.0,
    }  # fmt: skip
    return Answer(**{**values, **changes})


def row(logprobs=LOGPROBS, best=IDS, best_logprobs=None):
    return Row(logprobs=logprobs, best=best, best_logprobs=best_logprobs or logprobs)


def judged(*, name="vllm", given=None, told=None, tokens=((1, 2),), **options):
    return compare(name, given or answer(), [told or row()], tokens=tokens, **options)


def test_the_same_tokens_with_the_same_probabilities_are_equal():
    run = judged()
    assert (run.outcome, run.equal_texts, run.tied_texts, run.largest_difference) == ("equal", 1, 0, 0.0)
    assert run.passed
    assert run.label == "vLLM 0.32.0"


def test_a_difference_counts_from_the_tolerance_of_the_runtime_on():
    small = tuple(value + 5e-4 for value in LOGPROBS)
    assert judged(given=answer(logprobs=small)).outcome == "differs"
    assert judged(given=answer(logprobs=small), name="mlx").outcome == "equal"
    assert judged(given=answer(logprobs=small), tolerance=HALF_PRECISION).outcome == "equal"
    assert TOLERANCES["vllm"] == 1e-4


def test_another_token_is_a_tie_only_where_both_are_as_probable():
    tie = row(best=(5, 9, 7), best_logprobs=(-0.1, -0.19995, -0.3))
    run = judged(told=tie)
    assert (run.outcome, run.equal_texts, run.tied_texts) == ("equal", 0, 1)
    assert "1 up to a tie" in run.detail
    worse = row(best=(5, 9, 7), best_logprobs=(-0.1, -0.15, -0.3))
    run = judged(told=worse)
    assert (run.outcome, run.equal_texts, run.tied_texts) == ("differs", 0, 0)


def test_what_differs_behind_a_tie_is_seen():
    tie = row(logprobs=(-0.1, -0.2, -0.9), best=(5, 9, 7), best_logprobs=(-0.1, -0.19995, -0.9))
    assert judged(told=tie).outcome == "differs"


def test_other_tokens_of_a_text_are_a_difference():
    run = judged(tokens=((1, 3),))
    assert (run.outcome, run.cut_texts, run.equally_cut_texts) == ("differs", 1, 0)
    assert "0 of 1 texts cut into the same tokens" in run.detail


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_probability_that_is_no_number_is_a_difference(value):
    run = judged(given=answer(logprobs=(-0.1, value, -0.3)))
    assert (run.outcome, run.largest_difference) == ("differs", None)
    assert "no number" in run.detail


def test_the_sentence_tells_layers_and_blocks_where_the_runtime_does():
    run = judged(given=answer(kv_blocks=1365, kv_block_tokens=128, kv_layers=6))
    assert "KV cache in 6 layers and 1,365 blocks of 128" in run.detail


def test_a_refusal_is_told_in_its_own_words_and_of_head_sizes_which_it_takes():
    run = refused("mlx", "ValueError: Model type pruned_llama not supported.")
    assert (run.outcome, run.passed) == ("refused", False)
    assert run.detail == "mlx-lm does not run it: ValueError: Model type pruned_llama not supported."
    told = refused("vllm", "RuntimeError: Unsupported CPU attention configuration: head_dim=8").detail
    assert "head_dim=8" in told
    assert "vLLM" not in refused("mlx", "ValueError: head_dim=8 does not fit").detail
    assert "32, 64, 80" in told
