from __future__ import annotations

import math

import pytest

from hubprune.core.errors import EvaluationError
from hubprune.evaluation.results import compare_results, refuse_different_documents


def results(**metrics) -> dict:
    """What lm-eval returns for one task, cut down to what is read."""
    return {
        "results": {"task": {"alias": "task", "sample_len": 2, **metrics}},
        "configs": {"task": {"dataset_path": "owner/rows", "dataset_name": "easy", "validation_split": "validation"}},
        "group_subtasks": {},
        "n-samples": {"task": {"original": 9, "effective": 2}},
        "n-shot": {"task": 5},
        "versions": {"task": 1.0},
        "higher_is_better": {"task": {"acc": True, "perplexity": False}},
    }


def compare(base, pruned, *, warn=pytest.fail):
    return compare_results(base, pruned, requested={"task": ("task",)}, commits={"task": "c" * 40}, warn=warn)


@pytest.mark.parametrize(
    ("base", "pruned", "told"),
    [
        (9.0, math.nan, "nan for pruned"),
        (math.inf, 9.0, "inf for base"),
        ("N/A", None, "N/A for base, None for pruned"),
    ],
)
def test_values_that_are_no_numbers_are_left_out_and_told(base, pruned, told):
    kept, warnings = {"acc,none": 0.5, "acc_stderr,none": "N/A"}, []
    both = [results(**kept, **{"perplexity,none": value}) for value in (base, pruned)]
    rows = compare(*both, warn=warnings.append)
    assert [(row.metric, row.base.standard_error) for row in rows] == [("acc", None)]
    assert warnings == [f"perplexity of the benchmark task is left out, since it is no finite number: {told}."]


def test_a_standard_error_that_is_nan_is_none():
    (row,) = compare(*[results(**{"acc,none": 0.5, "acc_stderr,none": math.nan})] * 2)
    assert row.pruned.standard_error is None


def test_a_task_without_any_number_is_refused():
    with pytest.raises(EvaluationError, match="no metric with a finite value"):
        compare(*[results(**{"acc,none": math.inf})] * 2, warn=[].append)


def test_of_several_filters_the_first_counts():
    both = {
        "exact_match,strict-match": 0.25,
        "exact_match,flexible-extract": 0.5,
        "exact_match_stderr,strict-match": 0.1,
    }
    (row,) = compare(*[results(**both)] * 2)
    assert (row.metric, row.base.value, row.base.standard_error) == ("exact_match", 0.25, 0.1)


def test_the_data_set_comes_from_the_task_config():
    (row,) = compare(*[results(**{"acc,none": 0.5})] * 2)
    assert (row.dataset, row.dataset_config, row.dataset_commit) == ("owner/rows", "easy", "c" * 40)
    assert (row.split, row.num_fewshot, row.documents, row.documents_available) == ("validation", 5, 2, 9)


def chosen(choices: list[int], *, target=0, metrics=("acc",), **config):
    """A row for acc of a task whose documents have that many choices each."""
    samples = [{"arguments": [("?", "!")] * n, "target": target, "metrics": list(metrics)} for n in choices]
    config = {"dataset_path": "json", "output_type": "multiple_choice"} | config
    one = results(**{f"{metric},none": 0.5 for metric in metrics})
    return compare(*[one | {"configs": {"task": config}, "samples": {"task": samples}}] * 2)


def test_chance_is_one_over_the_choices_averaged_over_the_documents():
    rows = chosen([2, 4, 4], metrics=("acc", "acc_norm", "brier_score"))
    by_metric = {row.metric: row.chance for row in rows}
    assert by_metric == {"acc": pytest.approx(1 / 3), "acc_norm": pytest.approx(1 / 3), "brier_score": None}


def test_chance_does_not_count_a_choice_twice_that_is_asked_for_twice():
    assert {row.metric: row.chance for row in chosen([4, 4], metrics=("acc", "acc_mutual_info"))}["acc"] == 0.5


def test_chance_grows_with_the_right_choices():
    assert chosen([4, 4], target=[0, 2])[0].chance == 0.5


@pytest.mark.parametrize("config", [{"output_type": "loglikelihood"}, {"process_results": "def mass(doc): ..."}])
def test_there_is_no_chance_where_no_choice_is_counted(config):
    assert chosen([4], **config)[0].chance is None


@pytest.mark.parametrize("other", [[(0, "a"), (1, "changed")], [(0, "a")], [(0, "a"), (2, "b")]])
def test_different_documents_are_refused(other):
    def samples(documents):
        return {"samples": {"task": [{"doc_id": i, "doc_hash": h} for i, h in documents]}}

    base = samples([(0, "a"), (1, "b")])
    refuse_different_documents(base, samples([(1, "b"), (0, "a")]))
    with pytest.raises(EvaluationError, match="different documents of task"):
        refuse_different_documents(base, samples(other))
