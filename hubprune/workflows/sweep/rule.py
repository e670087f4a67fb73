"""Which count to take: the largest up to which nothing measured goes beyond a stated limit."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence

from hubprune.cards.numbers import plain, signed
from hubprune.core.artifacts import Estimate, Ranking, Recommendation, SweepPoint
from hubprune.core.drop_spec import OPTIONS
from hubprune.workflows.sweep.request import Limits


def rule_text(limits: Limits, points: Sequence[SweepPoint]) -> str:
    """State the rule, as far as what was measured decides."""
    parts = []
    if any(point.mean_change for point in points):
        parts.append(f"the mean loses at most {_points(limits.points)}")
    if any(point.perplexity_change for point in points):
        parts.append(f"the perplexity rises by at most {limits.perplexity_percent:g} %")
    return f"The largest count at which, as at every smaller one measured, {' and '.join(parts)}." if parts else ""


def _points(number: float) -> str:
    return f"{number:g} {'point' if number == 1 else 'points'}"


def recommend(
    method: Ranking,
    points: Sequence[SweepPoint],
    limits: Limits,
    *,
    base: str,
    options: Sequence[str] = (),
    publishable: bool = True,
) -> Recommendation:
    """Pick a count for a method by the rule, and say what decided.

    Args:
        method: one of the sweep's.
        points: of this method, the base among them.
        limits: what the rule keeps to.
        base: repo id or folder, for the next command.
        options: what the next command needs beside the count, where it publishes.
        publishable: whether the base is on a Hub; a folder can only be pruned.
    """
    ordered = sorted(points, key=lambda point: point.count)
    kept = ordered[0]
    beyond = None
    for point in ordered:
        if not _keeps(point, limits):
            beyond = point
            break
        kept = point
    words = [f"{kept.count}: {_numbers(kept, limits)}"] if kept.count else []
    words.append(f"{beyond.count}: {_numbers(beyond, limits)}" if beyond else "no larger count was measured")
    verb, rest = ("publish", options) if publishable else ("prune", ("--out", "pruned"))
    command = ["hubprune", verb, base, OPTIONS[method], str(kept.count), *rest]
    return Recommendation(
        method=method,
        count=kept.count,
        reason="; ".join(words),
        command=shlex.join(command) if kept.count else None,
    )


def _keeps(point: SweepPoint, limits: Limits) -> bool:
    points, rise = point.mean_change, point.perplexity_change
    return (points is None or -points.value <= limits.points) and (
        rise is None or rise.value <= limits.perplexity_percent
    )


def _numbers(point: SweepPoint, limits: Limits) -> str:
    return ", ".join(_number(point, limits))


def _number(point: SweepPoint, limits: Limits) -> Iterator[str]:
    if change := point.mean_change:
        yield f"mean {with_error(change)} points (limit −{limits.points:g})"
    if change := point.perplexity_change:
        yield f"perplexity {with_error(change)} % (limit +{limits.perplexity_percent:g})"


def with_error(change: Estimate) -> str:
    """Write a change with its paired standard error, where it has one."""
    text = signed(change.value)
    return text if change.standard_error is None else f"{text} ± {plain(change.standard_error, digits=2)}"
