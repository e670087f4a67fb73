from __future__ import annotations

import math

import pytest

from hubprune.errors import EvaluationError
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


def compare(base, pruned):
    return compare_results(base, pruned, requested={"task": ("task",)}, commits={"task": "c" * 40})


def test_values_that_are_no_numbers_leave_no_trace():
    kept = {"acc,none": 0.5, "acc_stderr,none": "N/A"}
    rows = compare(results(**kept, **{"perplexity,none": 9.0}), results(**kept, **{"perplexity,none": math.nan}))
    assert [(row.metric, row.base.standard_error) for row in rows] == [("acc", None)]


def test_a_standard_error_that_is_nan_is_none():
    (row,) = compare(*[results(**{"acc,none": 0.5, "acc_stderr,none": math.nan})] * 2)
    assert row.pruned.standard_error is None


def test_a_task_without_any_number_is_refused():
    with pytest.raises(EvaluationError, match="no metric with a finite value"):
        compare(*[results(**{"acc,none": math.inf})] * 2)


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


@pytest.mark.parametrize("other", [[(0, "a"), (1, "changed")], [(0, "a")], [(0, "a"), (2, "b")]])
def test_different_documents_are_refused(other):
    def samples(documents):
        return {"samples": {"task": [{"doc_id": i, "doc_hash": h} for i, h in documents]}}

    base = samples([(0, "a"), (1, "b")])
    refuse_different_documents(base, samples([(1, "b"), (0, "a")]))
    with pytest.raises(EvaluationError, match="different documents of task"):
        refuse_different_documents(base, samples(other))
