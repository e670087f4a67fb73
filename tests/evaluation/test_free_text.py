from __future__ import annotations

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hubprune.errors import EvaluationError
from hubprune.evaluation import generation

PROMPTS = ("Paris is", "A rather longer prompt than the first one", "Why?")


@pytest.fixture
def compare(base_folder, reporter):
    def compare_with(pruned, *, base=base_folder, prompts=PROMPTS, max_new_tokens=12):
        settings = {"device": "cpu", "dtype": "auto", "reporter": reporter}
        return generation.compare(base, pruned, prompts=prompts, max_new_tokens=max_new_tokens, **settings)

    return compare_with


@pytest.fixture
def folder_with(base_folder, tmp_path):
    """A copy of the base with another generation_config.json."""

    def make(**settings):
        folder = tmp_path / "configured"
        shutil.copytree(base_folder, folder, dirs_exist_ok=True)
        (folder / "generation_config.json").write_text(json.dumps(settings))
        return folder

    return make


def greedy(folder, prompt: str, tokens: int) -> list[int]:
    """The definition: the most likely token again and again, without a cache, a batch or `generate`."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = start = AutoTokenizer.from_pretrained(folder)(prompt)["input_ids"]
    for _ in range(tokens):
        with torch.no_grad():
            ids = [*ids, model(torch.tensor([ids])).logits[0, -1].argmax().item()]
    return ids[len(start) :]


def test_texts_are_greedy_whatever_the_padding(base_folder, copy_folder, compare):
    comparison = compare(copy_folder)
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    for text in comparison.continuations:
        new = greedy(base_folder, text.prompt, 12)
        expected = tokenizer.decode(tokenizer(text.prompt)["input_ids"] + new)
        assert text.prompt + text.base == expected
        assert text.base_tokens == 12


def test_an_unpruned_copy_writes_the_same(copy_folder, compare):
    assert all(text.base == text.pruned for text in compare(copy_folder).continuations)


def test_a_pruned_model_writes_something_else(pruned_folder, compare):
    assert any(text.base != text.pruned for text in compare(pruned_folder).continuations)


def test_code_in_the_base_folder_is_not_run(trapped_folder, pruned_folder, compare):
    assert compare(pruned_folder, base=trapped_folder).continuations


def test_the_result_says_how_it_was_made(copy_folder, compare):
    comparison = compare(copy_folder)
    assert [text.prompt for text in comparison.continuations] == list(PROMPTS)
    assert (comparison.max_new_tokens, comparison.decoding) == (12, "greedy")
    assert (comparison.device, comparison.dtype) == ("cpu", "float32")


def test_the_checkpoint_cannot_ask_for_sampling_or_penalties(base_folder, folder_with, compare):
    wishes = {
        "do_sample": True,
        "temperature": 9.0,
        "repetition_penalty": 5.0,
        "num_beams": 2,
        "no_repeat_ngram_size": 1,
    }
    configured = folder_with(**wishes, min_new_tokens=3, eos_token_id=257)
    assert all(text.base == text.pruned for text in compare(configured).continuations)


def test_a_text_ends_with_its_end_token_which_is_counted(base_folder, folder_with, compare):
    new = greedy(base_folder, "Why?", 12)
    end = next(token for i, token in enumerate(new) if i and token not in new[:i])
    text = compare(folder_with(eos_token_id=[257, end])).continuations[2]
    assert (text.base_tokens, text.pruned_tokens) == (12, new.index(end) + 1)


def test_texts_end_where_the_positions_do(copy_folder, compare, reporter):
    comparison = compare(copy_folder, prompts=("x" * 120, "short"), max_new_tokens=50)
    assert comparison.max_new_tokens == 8
    assert {text.pruned_tokens for text in comparison.continuations} == {8}
    assert [note for note in reporter.notes if "8 new tokens instead of 50" in note and "128 positions" in note]


def test_a_prompt_that_fills_all_positions_is_refused(copy_folder, compare):
    with pytest.raises(EvaluationError, match="takes 128 of the model's 128 positions"):
        compare(copy_folder, prompts=("x" * 128,))


def test_the_tokenizer_files_stay_as_they_are(copy_folder, compare):
    before = {path.name: path.read_bytes() for path in copy_folder.iterdir() if path.is_file()}
    compare(copy_folder)
    assert {path.name: path.read_bytes() for path in copy_folder.iterdir() if path.is_file()} == before


def test_progress_counts_prompts_of_both_models(copy_folder, compare, reporter):
    compare(copy_folder)
    assert [(bar["total"], bar["done"], bar["unit"]) for bar in reporter.bars] == [(3, 3, "prompts")] * 2
