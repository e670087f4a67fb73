"""The regression budget: how much a result may lose before it is not published."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from hubprune.cards.numbers import plain, with_interval
from hubprune.core.artifacts import BenchmarkComparison, Estimate
from hubprune.core.errors import OverBudgetError
from hubprune.core.recipe import MEAN

__all__ = ["BudgetLine", "budget_lines", "check_budget"]

ROUNDING = 1e-9
"""Points that a difference of two shares may be off by, so that a loss of exactly the budget is within it."""


@dataclass(frozen=True, kw_only=True)
class BudgetLine:
    """What one task, or the mean, was allowed to lose and has lost."""

    name: str
    allowed: float
    """Points."""
    change: Estimate | None
    """Pruned minus base in points; None where nothing between 0 and 1 was measured."""

    @property
    def kept(self) -> bool:
        """Whether it lost no more than allowed.  The point estimate decides; what was not measured is not kept."""
        return self.change is not None and -self.change.value <= self.allowed + ROUNDING

    @property
    def text(self) -> str:
        """The line in words, with the interval of the change."""
        allowed = f"{plain(self.allowed, digits=2)} points allowed"
        if self.change is None:
            return f"{self.name} has no metric between 0 and 1, {allowed}"
        return f"{self.name} {with_interval(self.change)}, {allowed}{'' if self.kept else ', over budget'}"


def budget_lines(limits: Mapping[str, float], benchmarks: BenchmarkComparison | None) -> tuple[BudgetLine, ...]:
    """Compare every entry of a budget with what was measured, in the order of the budget.

    Args:
        limits: `max_drop_pp` of the recipe.
        benchmarks: a task counts by its first metric that is a share; None where nothing was run.
    """
    changes = dict(_changes(benchmarks)) if benchmarks else {}
    return tuple(BudgetLine(name=name, allowed=allowed, change=changes.get(name)) for name, allowed in limits.items())


def _changes(benchmarks: BenchmarkComparison) -> Iterator[tuple[str, Estimate]]:
    for row in reversed(benchmarks.tasks):  # so that of several metrics the first one stays
        if points := row.points:
            yield row.task, points
    if mean := benchmarks.mean_points:
        yield MEAN, mean


def check_budget(limits: Mapping[str, float], benchmarks: BenchmarkComparison | None) -> None:
    """Refuse a result that lost more than its recipe allows.

    Raises:
        OverBudgetError: with the change, the interval and the allowance of everything that has a budget.
    """
    lines = budget_lines(limits, benchmarks)
    if all(line.kept for line in lines):
        return
    over = ", ".join(line.name for line in lines if not line.kept)
    raise OverBudgetError(
        f"Nothing was published: {over} lost more than max_drop_pp allows. "
        f"{'; '.join(line.text for line in lines)}. (In points, with 95 % intervals; the change alone counts.)",
        hint="Drop less, or raise the budget: --max-drop-pp, or evaluation.max_drop_pp in the recipe.",
    )
