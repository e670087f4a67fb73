from __future__ import annotations

import json
import os
import subprocess
import sys

import datasets
import lm_eval
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hubprune.core.console import Reporter
from hubprune.core.errors import EvaluationError, RecipeError
from hubprune.core.recipe import EvaluationSpec
from hubprune.evaluation import harness


@pytest.fixture
def run(base_folder, task_folder, reporter):
    def run_tasks(pruned, *tasks, **changes):
        spec = EvaluationSpec(
            tasks=tasks, include_path=str(task_folder), batch_size=3, limit=changes.pop("limit", None)
        )
        settings = {"seed": 0, "device": "cpu", "dtype": "auto", "reporter": reporter, "samples_folder": None}
        base = harness.ModelFolder(changes.pop("base", base_folder))
        return harness.run(base, harness.ModelFolder(pruned, own_code=True), spec=spec, **(settings | changes))

    return run_tasks


def by_metric(comparison) -> dict:
    return {(row.task, row.metric): row for row in comparison.tasks}


def read_samples(folder, model, task) -> list[dict]:
    lines = (folder / model / f"samples_{task}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def log_likelihood(model, tokenizer, context: str, ending: str) -> float:
    """The definition: one sequence, no batch, no padding."""
    start = len(tokenizer(context)["input_ids"])
    ids = torch.tensor([tokenizer(context + ending)["input_ids"]])
    with torch.no_grad():
        log_probabilities = model(ids).logits[0].log_softmax(-1)
    return sum(log_probabilities[i - 1, ids[0, i]].item() for i in range(start, ids.shape[1]))


@pytest.mark.parametrize("which", ["base", "pruned"])
def test_every_answer_equals_a_plain_forward_pass(which, base_folder, pruned_folder, run, tmp_path):
    comparison = run(pruned_folder, "pets", samples_folder=tmp_path)
    folder = base_folder if which == "base" else pruned_folder
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=which == "pruned").eval()
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    right, right_by_length = [], []
    for sample in read_samples(tmp_path, which, "pets"):
        doc = sample["doc"]
        expected = [
            log_likelihood(model, tokenizer, f"{doc['question']}\nAnswer:", f" {choice}") for choice in doc["choices"]
        ]
        assert [answer[0] for answer in sample["filtered_resps"]] == pytest.approx(expected, rel=1e-6, abs=1e-5)
        per_character = [e / len(c) for e, c in zip(expected, doc["choices"], strict=True)]
        right.append(expected.index(max(expected)) == doc["answer"])
        right_by_length.append(per_character.index(max(per_character)) == doc["answer"])
    rows = by_metric(comparison)
    assert getattr(rows["pets", "acc"], which).value == pytest.approx(sum(right) / 5)
    assert getattr(rows["pets", "acc_norm"], which).value == pytest.approx(sum(right_by_length) / 5)


def test_an_unpruned_copy_gives_the_same_numbers(copy_folder, run):
    comparison = run(copy_folder, "pets", "words", "answers")
    assert all(row.base == row.pruned for row in comparison.tasks)
    assert comparison.mean_points.value == 0


def test_a_pruned_folder_is_measured_with_its_own_code(pruned_folder, run, tmp_path):
    run(pruned_folder, "pets", samples_folder=tmp_path)
    base, pruned = (read_samples(tmp_path, model, "pets") for model in ("base", "pruned"))
    assert [s["doc_hash"] for s in base] == [s["doc_hash"] for s in pruned]
    assert all(b["filtered_resps"] != p["filtered_resps"] for b, p in zip(base, pruned, strict=True))


def test_code_in_the_base_folder_is_not_run(trapped_folder, pruned_folder, run):
    assert run(pruned_folder, "pets", base=trapped_folder).tasks


def test_a_missing_device_is_refused(copy_folder, run):
    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    with pytest.raises(RecipeError, match="cuda"):
        run(copy_folder, "pets", device="cuda")


def test_half_precision_is_used_where_asked_for(copy_folder, run):
    assert run(copy_folder, "pets", dtype="bfloat16").dtype == "bfloat16"


def test_data_sets_are_loaded_without_calls_outside_the_endpoint(copy_folder, run, monkeypatch):
    seen = []
    original = datasets.load_dataset

    def load_dataset(*args, **kwargs):
        seen.append((datasets.config.HF_UPDATE_DOWNLOAD_COUNTS, datasets.config.USE_PARQUET_EXPORT))
        return original(*args, **kwargs)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    run(copy_folder, "pets")
    assert seen == [(False, False)]
    assert datasets.config.USE_PARQUET_EXPORT is True


def test_a_row_says_what_was_measured(copy_folder, run):
    comparison = run(copy_folder, "shown_pets", limit=4)
    (row,) = comparison.tasks
    assert (row.task, row.metric, row.higher_is_better) == ("shown_pets", "acc", True)
    assert (row.documents, row.documents_available, row.num_fewshot, row.version) == (4, 5, 2, "2.0")
    assert (row.dataset, row.dataset_commit, row.split) == (None, None, "test")
    assert (comparison.limit, comparison.batch_size, comparison.seed) == (4, 3, 0)
    assert (comparison.device, comparison.dtype) == ("cpu", "float32")
    assert comparison.seconds > 0


def test_the_main_metric_comes_first(copy_folder, run):
    comparison = run(copy_folder, "words", "pets")
    assert [(row.task, row.metric) for row in comparison.tasks] == [
        ("words", "acc"),
        ("words", "perplexity"),
        ("pets", "acc_norm"),
        ("pets", "acc"),
    ]
    assert by_metric(comparison)["words", "perplexity"].higher_is_better is False


def test_a_metric_without_a_value_is_told(copy_folder, run, reporter, monkeypatch):
    original = lm_eval.evaluate

    def evaluate(**kwargs):
        results = original(**kwargs)
        results["results"]["words"]["perplexity,none"] = float("nan")
        return results

    monkeypatch.setattr(lm_eval, "evaluate", evaluate)
    assert [row.metric for row in run(copy_folder, "words").tasks] == ["acc"]
    assert [note for note in reporter.notes if note.startswith("perplexity of the benchmark words is left out")]


def test_chance_is_told_for_choices_alone(copy_folder, run, task_folder, write_task):
    contexts = [{"question": "They _.", "choices": ["bark", "purr"], "answer": 1, "ending": " do so"}]
    asked = {"doc_to_text": "answer", "doc_to_target": "ending", "doc_to_choice": "{{[choices[0], choices[1]]}}"}
    write_task(task_folder, "contexts", contexts, **asked)
    rows = by_metric(run(copy_folder, "pets", "contexts", "menagerie", "words"))
    third = pytest.approx(1 / 3)
    assert {key: row.chance for key, row in rows.items()} == {
        ("pets", "acc_norm"): third,
        ("pets", "acc"): third,
        ("contexts", "acc"): 0.5,
        ("menagerie", "acc"): third,
        ("words", "acc"): None,
        ("words", "perplexity"): None,
    }


def test_one_document_has_no_standard_error(copy_folder, run):
    comparison = run(copy_folder, "pets", limit=1)
    assert {row.base.standard_error for row in comparison.tasks} == {None}


def test_perplexity_has_a_standard_error_and_nothing_is_printed(copy_folder, run, capsys, monkeypatch):
    monkeypatch.delenv("DISABLE_MULTIPROC", raising=False)
    comparison = run(copy_folder, "words")
    assert by_metric(comparison)["words", "perplexity"].base.standard_error > 0
    assert capsys.readouterr() == ("", "")
    assert "DISABLE_MULTIPROC" not in os.environ


def test_progress_counts_the_tokens_that_both_models_read_and_every_text(copy_folder, run, reporter):
    run(copy_folder, "pets", "words", "answers")
    requests, written = 2 * (15 + 3), 3
    scored = reporter.bars[0]["total"]
    assert scored > 3 * requests
    assert [(bar["total"], bar["done"], bar["unit"]) for bar in reporter.bars] == [
        (scored, scored, "tokens"),
        (written, written, "requests"),
        (written, written, "requests"),
    ]
    assert [bar["description"] for bar in reporter.bars] == [
        "Benchmarks, base and pruned",
        "Answers in words, base",
        "Answers in words, pruned",
    ]


def test_the_same_seed_shows_the_same_examples(copy_folder, run, tmp_path):
    prompts = []
    for name, seed in (("first", 1), ("again", 1), ("other", 2)):
        run(copy_folder, "shown_pets", seed=seed, samples_folder=tmp_path / name)
        prompts.append([s["prompt_hash"] for s in read_samples(tmp_path / name, "pruned", "shown_pets")])
    assert prompts[0] == prompts[1] != prompts[2]


def test_a_group_with_an_aggregate_is_one_row(copy_folder, run, tmp_path):
    comparison = run(copy_folder, "menagerie", samples_folder=tmp_path)
    (row,) = comparison.tasks
    assert (row.task, row.metric, row.documents, row.num_fewshot) == ("menagerie", "acc", 7, 0)
    assert len(read_samples(tmp_path, "base", "more_pets")) == 2


def test_a_group_with_mixed_shots_stands_for_its_members(copy_folder, run):
    assert [row.task for row in run(copy_folder, "mixed").main_metrics()] == ["pets", "shown_pets"]


def test_a_tag_stands_for_its_members(copy_folder, run):
    assert [row.task for row in run(copy_folder, "zoo").main_metrics()] == ["more_pets", "pets"]


def test_an_interrupt_passes_through(copy_folder, run):
    class Interrupted(Reporter):
        def progress(self, *args, **kwargs):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(copy_folder, "pets", reporter=Interrupted())


def test_an_empty_suite_is_refused(copy_folder, run):
    with pytest.raises(EvaluationError, match="no benchmark to run"):
        run(copy_folder)


def test_benchmarks_can_be_checked_and_results_compared_without_torch():
    modules = "compare, harness, repetition, requests, results, sources, tasks"
    heavy = {"torch", "transformers", "lm_eval", "datasets", "huggingface_hub", "numpy", "scipy"}
    source = f"import sys\nfrom hubprune.evaluation import {modules}\nprint(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
