"""Average the scores of documents into scores of a mix, and tell how well two orders of the same layers agree.

Pure arithmetic, no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations

from hubprune.core.artifacts import (
    Aggregation,
    Agreement,
    CalibrationRecord,
    DocumentScores,
    ImportanceScores,
    LayerScores,
    Metric,
    ScoreKind,
)
from hubprune.core.errors import ScoringError

KINDS: tuple[ScoreKind, ...] = ("attn", "mlp", "block")


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

    A row is the mean over one document's tokens.  `document` gives every document of a subset the same weight, `token`
    every token.  What the layers ran in and where, and what the values are, is for the record.

    Raises:
        ScoringError: a subset has no document.
    """
    for source, described in enumerate(calibration.sources):
        if not any(row.source == source for row in rows):
            raise ScoringError(f"No document of {described.label} was scored.")
    weights = [source.weight for source in calibration.sources]
    by_token = aggregation == "token"

    def combine(average: Callable[[list[float]], float]) -> ImportanceScores:
        """Apply an average over documents to every layer of every kind of score."""
        kinds = (zip(*(getattr(row.scores, kind) for row in rows), strict=True) for kind in KINDS)
        attn, mlp, block = (tuple(average(list(column)) for column in columns) for columns in kinds)
        return ImportanceScores(attn=attn, mlp=mlp, block=block)

    def mean(values: list[float], source: int) -> float:
        inside = _inside(rows, values, source, by_token=by_token)
        return math.fsum(size * value for size, value in inside) / sum(size for size, _ in inside)

    def weighted(values: list[float]) -> float:
        return math.fsum(w * mean(values, source) for source, w in enumerate(weights))

    return LayerScores(
        metric=metric,
        aggregation=aggregation,
        dtype=dtype,
        device=device,
        mean=combine(weighted),
        standard_error=combine(partial(stratified_standard_error, rows, weights=weights, by_token=by_token)),
        by_source=tuple(combine(partial(mean, source=source)) for source in range(len(weights))),
        calibration=calibration,
        per_document=tuple(rows),
    )


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


def agreements(one: ImportanceScores, other: ImportanceScores, *, lowest: int) -> tuple[Agreement, ...]:
    """Compare the orders that two sets of scores of the same layers give, kind by kind; the overlap is of the lowest.

    Raises:
        ValueError: they have different numbers of layers.
    """
    found = []
    for kind in (kind for kind in KINDS if kind in one.kinds and kind in other.kinds):
        pair: tuple[Sequence[float], Sequence[float]] = (getattr(one, kind), getattr(other, kind))
        told = {"spearman": spearman(*pair), "kendall": kendall(*pair)}
        shared = overlap(*pair, lowest=lowest)
        found.append(Agreement(kind=kind, **told, lowest=min(lowest, len(pair[0])), overlap=shared))
    return tuple(found)


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return Spearman's rho between -1 and 1, ties at their mean rank; None where one of the two has no order at all.

    Raises:
        ValueError: they have different lengths.
    """
    _check_rankings(first, second)
    middle = (len(first) + 1) / 2  # of ranks from 1, ties or not
    one, other = ([rank - middle for rank in mean_ranks(values)] for values in (first, second))
    spread = math.sqrt(math.fsum(a * a for a in one) * math.fsum(b * b for b in other))
    # Rounding may put the quotient a hair beyond 1.
    return max(-1.0, min(1.0, math.fsum(a * b for a, b in zip(one, other, strict=True)) / spread)) if spread else None


def kendall(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return Kendall's tau-b between -1 and 1; None where one of the two has no order at all.

    Source: Kendall, The treatment of ties in ranking problems (1945).

    Raises:
        ValueError: they have different lengths.
    """
    _check_rankings(first, second)
    pairs = combinations(zip(first, second, strict=True), 2)
    signs = [((a > b) - (a < b), (c > d) - (c < d)) for (a, c), (b, d) in pairs]
    ordered = math.sqrt(sum(one != 0 for one, _ in signs) * sum(other != 0 for _, other in signs))
    return sum(one * other for one, other in signs) / ordered if ordered else None


def overlap(first: Sequence[float], second: Sequence[float], *, lowest: int) -> int:
    """Count the layers that are among the lowest of both; of two equal ones the deeper is the lower, as in selection.

    Raises:
        ValueError: they have different lengths.
    """
    _check_rankings(first, second)
    orders = (sorted(range(len(scores)), key=lambda layer: (scores[layer], -layer)) for scores in (first, second))
    one, other = (set(order[:lowest]) for order in orders)
    return len(one & other)


def mean_ranks(values: Sequence[float]) -> list[float]:
    """Return the rank of every value from 1, equal values at the mean of the ranks they take together."""
    ordered = sorted(values)
    first = {value: rank for rank, value in reversed(list(enumerate(ordered, start=1)))}
    last = {value: rank for rank, value in enumerate(ordered, start=1)}
    return [(first[value] + last[value]) / 2 for value in values]


def _check_rankings(first: Sequence[float], second: Sequence[float]) -> None:
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} layers cannot be compared")
