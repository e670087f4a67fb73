"""Averages over documents, tokens and subsets, against numpy and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubprune.core.artifacts import CalibrationRecord, CalibrationSource, DocumentScores, ImportanceScores
from hubprune.core.errors import ScoringError
from hubprune.pruning.aggregation import aggregate


def averaged(rows, weights, aggregation):
    """Average rows of (source, tokens, score); layers 0 and 1 score the value and its square."""
    sources = tuple(
        CalibrationSource(
            dataset=f"set {number}", config=None, split="train", commit=None, weight=weight, documents=1, tokens=1
        )
        for number, weight in enumerate(weights)
    )
    record = CalibrationRecord(mix="m", sources=sources, max_tokens=9, seed=0, shuffle_buffer=1, token_sha256="0" * 64)
    documents = [
        DocumentScores(
            source=source,
            tokens=tokens,
            scores=ImportanceScores(attn=(value, value**2), mlp=(value / 2, 0.0), block=(2 * value, 1.0)),
        )
        for source, tokens, value in rows
    ]
    return aggregate(documents, record, aggregation=aggregation, dtype="float32", device="cpu")


def test_document_and_token_means_on_an_example_by_hand():
    # First subset: scores 1 and 2 over 1 and 3 tokens; second subset: score 4.  Weights 3/4 and 1/4.
    rows = [(0, 1, 1.0), (0, 3, 2.0), (1, 5, 4.0)]
    by_document, by_token = (averaged(rows, (0.75, 0.25), kind) for kind in ("document", "token"))
    assert by_document.by_source[0].attn[0] == 1.5
    assert by_token.by_source[0].attn[0] == 1.75
    assert by_document.mean.attn[0] == 0.75 * 1.5 + 0.25 * 4
    assert by_token.mean.attn[0] == 0.75 * 1.75 + 0.25 * 4
    assert by_document.mean.mlp == (by_document.mean.attn[0] / 2, 0.0)
    assert by_document.mean.block == (by_document.mean.attn[0] * 2, 1.0)


documents = st.tuples(st.integers(1, 600), st.floats(0, 2))
strata = st.lists(st.tuples(st.floats(0.1, 5), st.lists(documents, min_size=1, max_size=8)), min_size=1, max_size=4)


@given(strata, st.sampled_from(["document", "token"]))
def test_means_and_standard_errors_equal_an_independent_computation(subsets, aggregation):
    weights = np.array([weight for weight, _ in subsets]) / sum(weight for weight, _ in subsets)
    rows = [(source, *document) for source, (_, inside) in enumerate(subsets) for document in inside]
    found = averaged(rows, weights, aggregation)
    mean = variance = 0.0
    for weight, (_, inside) in zip(weights, subsets, strict=True):
        sizes = np.array([tokens if aggregation == "token" else 1 for tokens, _ in inside], dtype=np.float64)
        values = np.array([value for _, value in inside])
        average = np.average(values, weights=sizes)
        mean += weight * average
        if len(values) > 1:
            # For one size, the textbook s^2 / n; for several, the variance of a ratio estimator.
            residuals = sizes * (values - average) / sizes.mean()
            variance += weight**2 * residuals @ residuals / (len(values) - 1) / len(values)
    assert found.mean.attn[0] == pytest.approx(mean, rel=1e-9, abs=1e-12)
    assert found.standard_error.attn[0] == pytest.approx(np.sqrt(variance), rel=1e-6, abs=1e-9)


def test_the_document_standard_error_of_one_subset_is_the_textbook_one():
    values = [0.1, 0.4, 0.2, 0.9, 0.3]
    found = averaged([(0, 7, value) for value in values], (1.0,), "document")
    assert found.standard_error.attn[0] == pytest.approx(np.std(values, ddof=1) / np.sqrt(5))


def test_one_document_gives_a_mean_without_a_spread():
    found = averaged([(0, 7, 0.25)], (1.0,), "document")
    assert (found.mean.attn[0], found.standard_error.attn[0]) == (0.25, 0.0)


def test_a_subset_without_documents_stops_the_run():
    with pytest.raises(ScoringError, match="No document of set 1 was scored"):
        averaged([(0, 1, 0.5)], (0.5, 0.5), "document")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_score_that_is_not_finite_never_becomes_part_of_an_artifact(bad):
    with pytest.raises(ValueError, match="finite"):
        averaged([(0, 1, bad)], (1.0,), "document")
