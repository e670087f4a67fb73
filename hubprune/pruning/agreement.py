"""How well two rankings of the same layers agree; pure arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

from hubprune.core.artifacts import Agreement, ImportanceScores, ScoreKind

KINDS: tuple[ScoreKind, ...] = ("attn", "mlp", "block")


def agreements(one: ImportanceScores, other: ImportanceScores, *, lowest: int) -> tuple[Agreement, ...]:
    """Compare the orders that two sets of scores give, kind by kind.

    Args:
        one: scores of a base.
        other: scores of the same layers.
        lowest: N of the overlap of the N lowest.

    Raises:
        ValueError: they have different numbers of layers.
    """
    found = []
    for kind in KINDS:
        first, second = getattr(one, kind), getattr(other, kind)
        found.append(
            Agreement(
                kind=kind,
                spearman=spearman(first, second),
                kendall=kendall(first, second),
                lowest=min(lowest, len(first)),
                overlap=overlap(first, second, lowest=lowest),
            )
        )
    return tuple(found)


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return Spearman's rho between -1 and 1, ties at their mean rank; None where one of the two has no order at all.

    Raises:
        ValueError: they have different lengths.
    """
    _check(first, second)
    return _pearson(mean_ranks(first), mean_ranks(second))


def kendall(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return Kendall's tau-b between -1 and 1; None where one of the two has no order at all.

    Source: Kendall, The treatment of ties in ranking problems (1945).

    Raises:
        ValueError: they have different lengths.
    """
    _check(first, second)
    signs = [(_sign(a - b), _sign(c - d)) for (a, c), (b, d) in combinations(zip(first, second, strict=True), 2)]
    ordered = math.sqrt(sum(one != 0 for one, _ in signs) * sum(other != 0 for _, other in signs))
    return sum(one * other for one, other in signs) / ordered if ordered else None


def overlap(first: Sequence[float], second: Sequence[float], *, lowest: int) -> int:
    """Count the layers that are among the lowest of both; of two equal ones the deeper is the lower, as in selection.

    Raises:
        ValueError: they have different lengths.
    """
    _check(first, second)
    return len(_lowest(first, lowest) & _lowest(second, lowest))


def _lowest(scores: Sequence[float], count: int) -> set[int]:
    return set(sorted(range(len(scores)), key=lambda layer: (scores[layer], -layer))[:count])


def mean_ranks(values: Sequence[float]) -> list[float]:
    """Return the rank of every value from 1, equal values at the mean of the ranks they take together."""
    ordered = sorted(values)
    first = {value: rank for rank, value in reversed(list(enumerate(ordered, start=1)))}
    last = {value: rank for rank, value in enumerate(ordered, start=1)}
    return [(first[value] + last[value]) / 2 for value in values]


def _pearson(first: Sequence[float], second: Sequence[float]) -> float | None:
    one, other = ([value - math.fsum(values) / len(values) for value in values] for values in (first, second))
    spread = math.sqrt(math.fsum(a * a for a in one) * math.fsum(b * b for b in other))
    # Rounding may put the quotient a hair beyond 1.
    return max(-1.0, min(1.0, math.fsum(a * b for a, b in zip(one, other, strict=True)) / spread)) if spread else None


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)


def _check(first: Sequence[float], second: Sequence[float]) -> None:
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} layers cannot be compared")
