"""Average the scores of documents into scores of a mix, with standard errors; pure arithmetic, no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from hubprune.core.artifacts import (
    Aggregation,
    CalibrationRecord,
    DocumentScores,
    ImportanceScores,
    LayerScores,
    Metric,
)
from hubprune.core.errors import ScoringError


def aggregate(
    rows: Sequence[DocumentScores],
    calibration: CalibrationRecord,
    *,
    aggregation: Aggregation,
    dtype: str,
    device: str,
    metric: Metric = "cosine",
) -> LayerScores:
    """Average per-document scores over documents (or tokens) within a subset, then over subsets by their weights.

    Args:
        rows: one entry per document, each the mean over that document's tokens.
        calibration: the mix that the documents were drawn from.
        aggregation: `document` gives every document of a subset the same weight, `token` every token.
        dtype: what the layers ran in, for the record.
        device: where they ran, for the record.
        metric: what the values are, for the record.

    Raises:
        ScoringError: a subset has no document.
    """
    _check(rows, calibration)
    weights = [source.weight for source in calibration.sources]
    by_token = aggregation == "token"

    def mean_of(source: int) -> ImportanceScores:
        return _combine(rows, lambda values: _mean(rows, values, source, by_token=by_token))

    def weighted(values: list[float]) -> float:
        return math.fsum(w * _mean(rows, values, source, by_token=by_token) for source, w in enumerate(weights))

    error = _combine(rows, lambda values: stratified_standard_error(rows, values, weights=weights, by_token=by_token))
    return LayerScores(
        metric=metric,
        aggregation=aggregation,
        dtype=dtype,
        device=device,
        mean=_combine(rows, weighted),
        standard_error=error,
        by_source=tuple(mean_of(source) for source in range(len(weights))),
        calibration=calibration,
        per_document=tuple(rows),
    )


def _check(rows: Sequence[DocumentScores], calibration: CalibrationRecord) -> None:
    for source, described in enumerate(calibration.sources):
        if not any(row.source == source for row in rows):
            raise ScoringError(f"No document of {described.label} was scored.")


def _combine(rows: Sequence[DocumentScores], average: Callable[[list[float]], float]) -> ImportanceScores:
    """Apply an average over documents to every layer of every kind of score."""

    def each(kind: str) -> tuple[float, ...]:
        columns = zip(*(getattr(row.scores, kind) for row in rows), strict=True)
        return tuple(average(list(column)) for column in columns)

    return ImportanceScores(attn=each("attn"), mlp=each("mlp"), block=each("block"))


def _mean(rows: Sequence[DocumentScores], values: Sequence[float], source: int, *, by_token: bool) -> float:
    inside = _inside(rows, values, source, by_token=by_token)
    return math.fsum(size * value for size, value in inside) / sum(size for size, _ in inside)


def _inside(
    rows: Sequence[DocumentScores], values: Sequence[float], source: int, *, by_token: bool
) -> list[tuple[int, float]]:
    """Pair each value of one subset with its document's weight."""
    return [(r.tokens if by_token else 1, v) for r, v in zip(rows, values, strict=True) if r.source == source]


def stratified_standard_error(
    rows: Sequence[DocumentScores], values: Sequence[float], *, weights: Sequence[float], by_token: bool
) -> float:
    """Return the standard error of a weighted mean of per-document values, with the subsets of the mix as strata.

    Var = sum over subsets k of w_k^2 s_k^2 / n_k (Cochran, Sampling Techniques, chapter 5, without the finite
    population term).  For the token aggregation a subset's mean is a ratio of sums, and s_k^2 is that of the residuals
    weighted by the document's tokens (chapter 6).
    """
    variance = 0.0
    for source, weight in enumerate(weights):
        inside = _inside(rows, values, source, by_token=by_token)
        if len(inside) < 2:
            continue  # one document says nothing about its own spread
        total = sum(size for size, _ in inside)
        mean = math.fsum(size * value for size, value in inside) / total
        spread = math.fsum((size * (value - mean)) ** 2 for size, value in inside)
        variance += (weight / total) ** 2 * spread * len(inside) / (len(inside) - 1)
    return math.sqrt(variance)
