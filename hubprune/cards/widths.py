"""What the card says of narrower MLPs: how many neurons went, and by which importance."""

from __future__ import annotations

from collections.abc import Mapping

from hubprune.cards.numbers import change_percent, count, listing, plain
from hubprune.core.artifacts import DropPlan, WidthMetric

__all__ = ["sentences", "share", "width_rows"]

FORMULAS: Mapping[WidthMetric, str] = {
    "max_abs": "max|g| + max|u|",
    "ppm": "max g + |min g| + max u + |min u|",
    "vow": "var g + var u",
    "pon": "the L1 norm of g times the L1 norm of u",
    "l2": "the L2 norm of g plus the L2 norm of u",
}
"""Importance of a neuron, of whose rows g is the gate's and u the up projection's."""


def _widths(plan: DropPlan) -> list[tuple[int, int]]:
    """List the neurons before and after of every MLP that stays."""
    if plan.widths is None:
        return []
    pairs = enumerate(zip(plan.widths.before, plan.widths.kept, strict=True))
    return [pair for layer, pair in pairs if layer not in plan.gone("mlp")]


def share(plan: DropPlan) -> str | None:
    """Say which share of the neurons is removed, and the width before and after; None where none are."""
    if not (pairs := _widths(plan)):
        return None
    before, now = (sum(column) for column in zip(*pairs, strict=True))
    said = f"{plain(100 * (1 - now / before), digits=2)} % of the neurons of its MLPs removed"
    if len(set(pairs)) == 1:
        return f"{said} ({count(pairs[0][0])} → {count(pairs[0][1])} in each)"
    return f"{said} ({count(before)} → {count(now)} in all)"


def width_rows(plan: DropPlan) -> list[tuple[str, ...]]:
    """Compare the widths: one row where any changed."""
    if not (pairs := _widths(plan)):
        return []
    alike = len(set(pairs)) == 1
    before, now = pairs[0] if alike else (sum(column) for column in zip(*pairs, strict=True))
    label = "Neurons per MLP" if alike else "Neurons of the MLPs that stay"
    return [(label, count(before), count(now), change_percent(before, now))]


def sentences(plan: DropPlan) -> list[str]:
    """Say how many neurons of which MLP stay, and why these."""
    if plan.widths is None:
        return []
    changes = [
        (pair, layers) for pair, layers in plan.widths.changes.items() if not set(layers) & set(plan.gone("mlp"))
    ]
    if len(set(_widths(plan))) == 1:
        kept = [f"{count(pair[1])} of {count(pair[0])} in every MLP" for pair, _ in changes]
    else:
        kept = [
            f"{count(pair[1])} of {count(pair[0])} in layer{'s'[: len(layers) - 1]} {listing(layers)}"
            for pair, layers in changes
        ]
    said = [
        f"Neurons that stay: {'; '.join(kept)}.",
        f"They are those with the highest {plan.widths.metric}: {FORMULAS[plan.widths.metric]}, where g and u are a"
        " neuron's rows of the gate and the up projection.",
    ]
    if plan.widths.multiple > 1:
        said.append(
            f"Widths were rounded to a multiple of {plan.widths.multiple}: another share may have been asked for."
        )
    return said
