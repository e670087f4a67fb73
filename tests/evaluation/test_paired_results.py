"""Rows of real and made-up lm-eval results, compared document by document."""

from __future__ import annotations

import json
import math

import numpy
import pytest
from scipy import stats

from hubprune.core.recipe import EvaluationSpec
from hubprune.evaluation import harness
from hubprune.evaluation.results import compare_results

PROSE = [{"text": "It was late, and nobody came."}, {"text": "Two birds sang."}, {"text": "Why not? Because."}]
ROLLING = {
    "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}", "doc_to_choice": None,
    "metric_list": [{"metric": metric} for metric in ("word_perplexity", "byte_perplexity", "bits_per_byte")],
}  # fmt: skip
READ = {
    "output_type": "generate_until", "doc_to_target": "{{choices[answer]}}", "doc_to_choice": None,
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 3},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    "filter_list": [
        {"name": "strict-match", "filter": [{"function": "regex", "regex_pattern": "(#)"}, {"function": "take_first"}]},
        {"name": "loose", "filter": [{"function": "take_first"}]},
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def measured(base_folder, pruned_folder, task_folder, tmp_path_factory, write_task, write_yaml, quiet_reporter):
    """Rows by task and metric, and each model's samples by task, of every kind of metric."""
    write_task(task_folder, "prose", PROSE, **ROLLING)
    write_task(
        task_folder, "read", [{"question": "?", "choices": ["#", "b"], "answer": n % 2} for n in range(4)], **READ
    )
    flat = [{"metric": "acc", "weight_by_size": False}]
    write_yaml(task_folder, "flat", {"group": "flat", "task": ["pets", "more_pets"], "aggregate_metric_list": flat})
    names = ("pets", "words", "prose", "read", "menagerie", "flat")
    folder = tmp_path_factory.mktemp("samples")
    comparison = harness.run(
        harness.ModelFolder(base_folder),
        harness.ModelFolder(pruned_folder, own_code=True),
        spec=EvaluationSpec(tasks=names, include_path=str(task_folder)),
        seed=0,
        device="cpu",
        dtype="auto",
        reporter=quiet_reporter,
        samples_folder=folder,
    )
    return comparison, {(row.task, row.metric): row for row in comparison.tasks}, folder


def values(folder, task, metric):
    """What base and pruned got on each document, as lm-eval logged it."""
    columns = []
    for model in ("base", "pruned"):
        rows = map(json.loads, (folder / model / f"samples_{task}.jsonl").read_text().splitlines())
        columns.append(numpy.array([row[metric] for row in sorted(rows, key=lambda r: r["doc_id"])], dtype=float))
    return columns


def test_accuracies_count_the_documents_on_which_the_models_disagree(measured):
    _, rows, folder = measured
    base, pruned = values(folder, "pets", "acc")
    found = rows["pets", "acc"].paired
    assert (found.lost, found.won) == (sum(base > pruned), sum(pruned > base))
    assert found.p_value == pytest.approx(stats.binomtest(found.lost, max(1, found.lost + found.won)).pvalue)
    assert found.difference.value == pytest.approx(rows["pets", "acc"].pruned.value - rows["pets", "acc"].base.value)
    assert found.difference.standard_error == pytest.approx(stats.sem(pruned - base))


def test_a_perplexity_is_compared_by_the_likelihoods_of_its_documents(measured):
    _, rows, folder = measured
    base, pruned = values(folder, "words", "perplexity")
    row = rows["words", "perplexity"]
    assert row.paired.ratio.value == pytest.approx(row.pruned.value / row.base.value)
    assert row.paired.p_value == pytest.approx(stats.ttest_rel(base, pruned).pvalue)


@pytest.mark.parametrize("metric", ["word_perplexity", "byte_perplexity"])
def test_perplexities_of_words_and_bytes_are_ratios_of_sums(measured, metric):
    _, rows, folder = measured
    row = rows["prose", metric]
    assert row.paired.ratio.value == pytest.approx(row.pruned.value / row.base.value)
    (base, pruned) = values(folder, "prose", metric)
    words = base[:, 1]
    rate = (pruned[:, 0] - base[:, 0]).sum() / words.sum()
    residuals = pruned[:, 0] - base[:, 0] - rate * words
    error = math.sqrt(3 / 2 * (residuals**2).sum()) / words.sum()
    assert row.paired.ratio.standard_error == pytest.approx(row.paired.ratio.value * error)


def test_bits_per_byte_are_compared_in_bits(measured):
    row = measured[1]["prose", "bits_per_byte"]
    assert row.paired.difference.value == pytest.approx(row.pruned.value - row.base.value)
    assert row.paired.ratio is None


def test_of_several_filters_the_first_one_is_compared_and_named(measured):
    row = measured[1]["read", "exact_match"]
    assert (row.filter, row.paired.test) == ("strict-match", "mcnemar")
    assert row.paired.difference.value == pytest.approx(row.pruned.value - row.base.value)
    assert measured[1]["pets", "acc"].filter is None


def test_a_group_that_counts_documents_is_one_sample(measured):
    _, rows, folder = measured
    both = [
        numpy.concatenate(two) for two in zip(*(values(folder, t, "acc") for t in ("pets", "more_pets")), strict=True)
    ]
    found = rows["menagerie", "acc"].paired
    assert (found.lost, found.won, found.test) == (sum(both[0] > both[1]), sum(both[1] > both[0]), "mcnemar")


def test_a_group_that_counts_tasks_is_a_mean_over_tasks(measured):
    _, rows, folder = measured
    row = rows["flat", "acc"]
    errors = [stats.sem(numpy.subtract(*values(folder, task, "acc"))) for task in ("pets", "more_pets")]
    assert row.paired.difference.value == pytest.approx(row.pruned.value - row.base.value)
    assert row.paired.difference.standard_error == pytest.approx(math.hypot(*errors) / 2)
    assert row.paired.test == "normal"


def test_the_mean_change_comes_with_an_interval(measured):
    comparison, *_ = measured
    shares = [row for row in comparison.main_metrics() if row.is_share]
    changes = [100 * (row.pruned.value - row.base.value) for row in shares]
    assert [row.task for row in shares] == ["pets", "words", "read", "menagerie", "flat"]
    assert comparison.mean_points.value == pytest.approx(sum(changes) / 5)
    assert comparison.mean_change.low < comparison.mean_change.value < comparison.mean_change.high
    assert all(row.paired.mark for row in comparison.tasks if row.paired.p_value is not None)


# ---- made up -----------------------------------------------------------------------------------------------------


def results(metric: str, values: list, aggregate: float) -> dict:
    samples = [{"doc_id": i, "doc_hash": "x", "filter": "none", metric: v} for i, v in enumerate(values)]
    return {
        "results": {"task": {f"{metric},none": aggregate}}, "configs": {"task": {}}, "group_subtasks": {},
        "n-samples": {"task": {"original": 9, "effective": len(values)}}, "n-shot": {"task": 0}, "versions": {},
        "higher_is_better": {"task": {metric: True}}, "samples": {"task": samples},
    }  # fmt: skip


def compared(base: dict, pruned: dict):
    (row,) = compare_results(base, pruned, requested={"task": ("task",)}, commits={}, warn=pytest.fail)
    return row.paired


def test_only_the_answers_of_the_rows_own_filter_count():
    both = [results("exact_match", first, sum(first) / 4) for first in ([1.0, 1.0, 0.0, 1.0], [0.0, 1.0, 0.0, 0.0])]
    for model in both:
        samples = model["samples"]["task"]
        samples += [{**sample, "filter": "loose", "exact_match": 1.0} for sample in samples]
    found = compared(*both)
    assert (found.lost, found.won) == (2, 0)


def test_a_metric_of_the_whole_corpus_is_not_compared_by_document():
    golds = [(1, 0), (0, 1), (1, 1)]
    assert compared(*[results("f1", golds, 0.5)] * 2) is None


def test_a_metric_that_lm_eval_makes_in_another_way_is_not_compared():
    assert compared(results("acc", [1.0, 0.0], 0.5), results("acc", [1.0, 0.0], 0.7)) is None
    assert compared(*[results("acc", [1.0, 0.0], 0.5)] * 2).p_value == 1


@pytest.mark.parametrize("odd", [None, "text", math.nan, [1.0], {"a": 1}])
def test_a_document_without_a_number_takes_the_test_from_its_metric(odd):
    assert compared(*[results("acc", [1.0, odd], 1.0)] * 2) is None


def test_a_metric_that_one_model_has_for_fewer_documents_is_not_compared():
    base, pruned = results("acc", [1.0, 0.0], 0.5), results("acc", [1.0, 0.0], 1.0)
    del pruned["samples"]["task"][1]["acc"]
    assert compared(base, pruned) is None


def test_three_models_answer_the_same_documents_and_a_base_that_is_healed_has_all_of_it_back(
    base_folder, pruned_folder, task_folder, tmp_path, quiet_reporter
):
    spec = EvaluationSpec(tasks=("pets", "words"), include_path=str(task_folder))
    base = harness.ModelFolder(base_folder, identity="base")
    pruned = harness.ModelFolder(pruned_folder, own_code=True, identity="pruned")
    where = {"device": "cpu", "dtype": "auto", "reporter": quiet_reporter}
    with harness.Pair(base, pruned, **where) as as_is, harness.Pair(base, base, **where) as healed:
        seen = harness.compare_three(
            as_is, healed, spec=spec, seed=0, reporter=quiet_reporter, memo=tmp_path / "answers.sqlite"
        )
    for row, back in zip(seen.dropped.tasks, seen.step.tasks, strict=True):
        assert (row.base, row.pruned) == (back.pruned, back.base)
    assert {change.points.value for change in seen.both.main_metrics() if change.points} == {0}
    lost = {row.task: row.lost for row in seen.came_back}
    rows = {row.task: row for row in seen.dropped.main_metrics()}
    assert lost["pets"].value == pytest.approx(-rows["pets"].points.value)
    told = [row.share for row in seen.came_back if row.share]
    assert all(share.value == pytest.approx(1) for share in told)
    assert len(told) == sum(1 for row in seen.came_back if row.lost.low > 0)
