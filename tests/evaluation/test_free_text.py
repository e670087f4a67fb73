from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from hubprune.core.artifacts import ModelTexts
from hubprune.core.errors import EvaluationError
from hubprune.core.files import StageStore
from hubprune.core.recipe import EvaluationSpec
from hubprune.evaluation import generation, models
from hubprune.evaluation.pair import ModelFolder, Pair
from hubprune.evaluation.repetition import measure, seq_rep
from hubprune.workflows.publish import stages

PROMPTS = ("Paris is", "A rather longer prompt than the first one", "Why?")


def pair_of(base, pruned, reporter):
    folders = ModelFolder(base), ModelFolder(pruned, own_code=True)
    return Pair(*folders, device="cpu", dtype="auto", reporter=reporter)


@pytest.fixture
def compare(base_folder, reporter):
    def compare_with(pruned, *, base=base_folder, prompts=PROMPTS, max_new_tokens=12, **options):
        request = generation.Request(prompts=prompts, max_new_tokens=max_new_tokens)
        with pair_of(base, pruned, reporter) as pair:
            return generation.compare(pair, request, reporter=reporter, **options)

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


@pytest.fixture
def no_room(monkeypatch):
    """So little memory that models are spread over disk."""
    monkeypatch.setattr(models.memory, "available_bytes", lambda: 150_000)


def test_a_model_that_is_read_from_disk_for_every_token_writes_what_there_is_time_for(
    no_room, base_folder, pruned_folder, compare, reporter, monkeypatch
):
    monkeypatch.setattr(generation, "OFFLOADED_SECONDS", 0.0)
    monkeypatch.setattr(generation, "FEW_TOKENS", 4)
    comparison = compare(pruned_folder, max_new_tokens=11)
    assert (comparison.max_new_tokens, comparison.device) == (4, "cpu")
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    for text in comparison.continuations:
        expected = tokenizer.decode(tokenizer(text.prompt)["input_ids"] + greedy(base_folder, text.prompt, 4))
        assert (text.prompt + text.base, text.pruned_tokens) == (expected, 4)
    (note,) = [note for note in reporter.notes if "cpu and disk hold the model" in note]
    assert "writing 4 new tokens instead of 11" in note


def test_an_offloaded_model_that_has_the_time_writes_all_of_it(no_room, copy_folder, compare, reporter):
    assert compare(copy_folder).max_new_tokens == 12
    assert [note for note in reporter.notes if "writing 12 new tokens, in about" in note]


def test_every_batch_of_an_offloaded_model_takes_its_own_time(no_room, copy_folder, compare, reporter, monkeypatch):
    monkeypatch.setattr(generation, "BATCH_TOKENS", 1)  # every prompt by itself
    monkeypatch.setattr(generation, "OFFLOADED_SECONDS", 12.0 * len(TEN) - 1)
    monkeypatch.setattr(generation, "FEW_TOKENS", 2)
    monkeypatch.setattr(models, "pass_seconds", lambda model: 1.0)
    assert compare(copy_folder, prompts=TEN, max_new_tokens=12).max_new_tokens == 6
    assert [note for note in reporter.notes if "one token of all texts takes 10 s: writing 6" in note]


def test_a_prompt_that_fills_all_positions_is_refused(copy_folder, compare):
    with pytest.raises(EvaluationError, match="takes 128 of the model's 128 positions"):
        compare(copy_folder, prompts=("x" * 128,))


def test_the_tokenizer_files_stay_as_they_are(copy_folder, compare):
    before = {path.name: path.read_bytes() for path in copy_folder.iterdir() if path.is_file()}
    compare(copy_folder)
    assert {path.name: path.read_bytes() for path in copy_folder.iterdir() if path.is_file()} == before


def test_progress_counts_the_tokens_of_both_models(copy_folder, folder_with, compare, reporter):
    compare(copy_folder)
    assert [(bar["total"], bar["done"], bar["unit"]) for bar in reporter.bars] == [(36, 36, "tokens")] * 2
    compare(folder_with(eos_token_id=list(range(258))))  # every text ends with its first token
    assert [bar["done"] for bar in reporter.bars] == [36] * 4


# ---- repetition --------------------------------------------------------------------------------------------------


def test_texts_are_measured_by_the_tokens_that_follow_the_prompt(base_folder, folder_with, compare):
    written = {prompt: greedy(base_folder, prompt, 12) for prompt in PROMPTS}
    end = next(token for i, token in enumerate(written["Why?"]) if i and token not in written["Why?"][:i])
    comparison = compare(folder_with(eos_token_id=[end]))
    for text in comparison.continuations:
        assert text.base_repetition == measure(written[text.prompt])
        ended = written[text.prompt][: written[text.prompt].index(end)] if end in written[text.prompt] else None
        assert text.pruned_repetition == measure(ended or written[text.prompt])
    assert comparison.continuations[2].pruned_tokens == comparison.continuations[2].pruned_repetition.tokens + 1
    assert comparison.repetition.seq_rep_4.base == pytest.approx(
        sum(seq_rep(tokens, n=4) for tokens in written.values()) / 3
    )


def test_an_unpruned_copy_repeats_itself_as_much(copy_folder, compare):
    repetition = compare(copy_folder, max_new_tokens=40).repetition
    numbers = repetition.tokens, repetition.seq_rep_4, repetition.diversity, repetition.longest_repeat
    assert {number.change.value for number in (*numbers, repetition.distinct_2)} == {0}
    assert repetition.loops.base == repetition.loops.pruned == repetition.loops.both


# ---- batches and memory ------------------------------------------------------------------------------------------

TEN = tuple("x" * length for length in (3, 30, 5, 28, 4, 29, 6, 31, 2, 27))


@pytest.fixture
def batches(monkeypatch):
    """Shapes that models were asked to continue, and how many rows fit into the memory of the first and the second."""

    class Seen(list):
        fits = (99, 99)

    seen, generate, models = Seen(), LlamaForCausalLM.generate, []

    def limited(model, ids, **options):
        if model not in models:
            models.append(model)
        if len(ids) > seen.fits[min(models.index(model), 1)]:
            options["stopping_criteria"](ids, None)  # it went well for one token
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        seen.append(tuple(ids.shape))
        return generate(model, ids, **options)

    monkeypatch.setattr(LlamaForCausalLM, "generate", limited)
    return seen


def test_no_more_prompts_go_together_than_their_cache_has_memory_for(copy_folder, compare, batches, monkeypatch):
    layers = json.loads((copy_folder / "config.json").read_bytes())["num_hidden_layers"]
    each = models.free_bytes("cpu") / 2 / (5.5 * (31 + 4)) / layers
    monkeypatch.setattr(models.memory, "kv_bytes_per_layer", lambda _: each)
    compare(copy_folder, prompts=TEN, max_new_tokens=4)
    assert batches == [(5, 31), (5, 6)] * 2


def test_prompts_of_similar_length_go_together_and_both_models_see_the_same(copy_folder, compare, batches, monkeypatch):
    monkeypatch.setattr(generation, "BATCH_TOKENS", 5 * (31 + 4))
    comparison = compare(copy_folder, prompts=TEN, max_new_tokens=4)
    assert batches == [(5, 31), (5, 6)] * 2
    assert comparison.batch_size == 5
    assert [text.prompt for text in comparison.continuations] == list(TEN)


def test_fewer_prompts_go_at_once_where_memory_runs_out_and_the_texts_stay(copy_folder, compare, batches, reporter):
    expected = compare(copy_folder, prompts=TEN, max_new_tokens=4)
    del batches[:]
    batches.fits = (3, 3)
    comparison = compare(copy_folder, prompts=TEN, max_new_tokens=4)
    assert batches == [(3, 31), (2, 28), (3, 6), (2, 3)] * 2
    assert comparison.continuations == expected.continuations
    assert [note for note in reporter.notes if "memory" in note] == [
        "memory ran out: going on with 5 prompts at once", "memory ran out: going on with 3 prompts at once"
    ]  # fmt: skip
    assert {bar["done"] for bar in reporter.bars} == {40}


def test_the_base_writes_again_where_the_other_model_has_less_memory(copy_folder, compare, batches):
    batches.fits = (99, 2)
    comparison = compare(copy_folder, prompts=TEN[:4], max_new_tokens=4)
    assert batches == [(4, 30), (2, 30), (2, 5), (2, 30), (2, 5)]
    assert comparison.batch_size == 2


def test_memory_that_is_too_small_for_one_prompt_ends_the_run(copy_folder, compare, batches):
    batches.fits = (0, 0)
    with pytest.raises(EvaluationError, match="out of memory while it continued a single prompt"):
        compare(copy_folder, prompts=TEN)
    assert batches == []


# ---- going on ----------------------------------------------------------------------------------------------------


def test_what_the_base_wrote_before_is_not_written_again(base_folder, pruned_folder, compare, batches, reporter):
    whole = compare(pruned_folder)
    request = generation.Request(prompts=PROMPTS, max_new_tokens=12)
    base = generation.write(pair_of(base_folder, pruned_folder, reporter), "base", request, reporter=reporter)
    kept = ModelTexts.model_validate_json(base.model_dump_json())
    del batches[:]
    assert compare(pruned_folder, base_texts=kept) == whole
    assert len(batches) == 1


def test_a_run_that_was_stopped_between_the_models_goes_on_with_the_second(
    base_folder, pruned_folder, batches, reporter, tmp_path, monkeypatch
):
    spec = EvaluationSpec(prompts=PROMPTS, max_new_tokens=12)

    def run(plan):
        run = SimpleNamespace(
            recipe=SimpleNamespace(evaluation=spec), circumstances="here", store=StageStore(tmp_path),
            reporter=reporter, runnable=SimpleNamespace(folder=base_folder),
        )  # fmt: skip
        return stages.free_text(run, SimpleNamespace(content=plan), pair_of(base_folder, pruned_folder, reporter))

    def stop(*args, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(generation, "compare", stop)
        with pytest.raises(KeyboardInterrupt):
            run("a plan")
    assert len(batches) == 1
    found = run("a plan")
    assert len(batches) == 2
    assert run("a plan") == found
    assert len(batches) == 2
    run("another plan")
    assert len(batches) == 3
