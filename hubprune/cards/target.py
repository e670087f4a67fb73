"""What a target asked for and what reached it: loss against saving, and where the published model stands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from hubprune.cards.context import Picture, Table, Targeted
from hubprune.cards.markdown import NONE, change_percent, count, listing, plain, signed
from hubprune.core.artifacts import DropPlan, Frontier, FrontierPoint, Goal, Part, TargetFound
from hubprune.core.console import ranges, size

NOUNS: Mapping[Goal, str] = {
    "params": "Parameters", "bytes": "Bytes of the weights", "flops": "Operations per token", "kv": "KV cache",
    "memory": "Memory", "latency": "Time per token",
}  # fmt: skip
PARTS: Mapping[Part, str] = {
    "attn": "attentions", "mlp": "MLPs", "block": "whole layers", "width": "narrower MLPs",
}  # fmt: skip
LOSS_DIGITS = 4


def targeted(plan: DropPlan, *, picture: str | None = None) -> Targeted | None:
    """Describe how a plan was found; None where no saving was asked for."""
    if (found := plan.target) is None:
        return None
    frontier = found.frontier
    text = (
        f"Rise of the loss over what is saved of {NOUNS[frontier.goal]}: a line of {len(frontier.points)} points that"
        " are predicted by adding losses up, and a mark where the published model was measured"
    )
    return Targeted(
        sentences=tuple(_sentences(found)), table=frontier_rows(frontier), notes=tuple(_notes(frontier)),
        picture=Picture(path=picture, text=text) if picture else None,
    )  # fmt: skip


def amount(goal: Goal, number: int) -> str:
    """Write what a base takes, or saves, in the unit of a goal."""
    if goal == "params":
        return count(number)
    if goal == "flops":
        return f"{count(round(number / 1e6))} million" if number >= 1e7 else count(number)
    return f"{plain(number / 1e6, digits=3)} ms" if goal == "latency" else size(number)


def place(frontier: Frontier) -> str:
    """Say where the figures of a goal hold."""
    if frontier.goal in ("params", "bytes"):
        return ""
    context = f"{count(frontier.context)} tokens"
    if frontier.goal == "flops":
        return f", averaged over a text of {context}"
    sequences = "one sequence" if frontier.batch == 1 else f"{count(frontier.batch)} sequences"
    return f", {sequences} of {context}" + (", weights included" if frontier.goal == "memory" else "")


def _sentences(found: TargetFound) -> Iterator[str]:
    for row in found.reached:
        before, after = (amount(row.goal, number) for number in (row.before, row.after))
        told = f"{before} → {after} ({change_percent(row.before, row.after)})"
        yield f"{NOUNS[row.goal]}{place(_at(found.frontier, row.goal))}: asked for {row.asked}, reached {told}."
    over = listing([PARTS[part] for part in found.frontier.over])
    yield (
        f"Of all plans over {over} that reach it, this one has the smallest predicted loss: each part was left out"
        " alone on the calibration texts, and by how much the loss rose was added up;"
        " what lowered the loss counted as free."
    )
    yield (
        f"Predicted: {signed(found.predicted, digits=LOSS_DIGITS)} nats per token; measured on the same texts with all"
        f" of it gone: {signed(found.measured, digits=LOSS_DIGITS)}, from"
        f" {plain(found.frontier.base_loss, digits=LOSS_DIGITS)} of the base."
    )
    if found.latency:
        table = found.latency
        each = [f"{plain(1000 * seconds, digits=3)} ms for one {name}" for name, seconds in table.attn.items()]
        yield (
            f"Time was measured on {table.device} in {table.dtype}, {table.rounds} paired rounds for each kind: "
            f"{', '.join([*each, f'{plain(1000 * table.mlp, digits=3)} ms for one MLP'])}."
        )


def _at(frontier: Frontier, goal: Goal) -> Frontier:
    return frontier.model_copy(update={"goal": goal})


def frontier_rows(frontier: Frontier) -> Table:
    """Write a frontier as a table, the base first."""
    rows = []
    for point in frontier.points:
        change = NONE if not point.saved else change_percent(frontier.before, frontier.before - point.saved)
        measured = NONE if point.measured is None else signed(point.measured, digits=LOSS_DIGITS)
        told = (change, amount(frontier.goal, frontier.before - point.saved))
        rows.append((*told, signed(point.loss, digits=LOSS_DIGITS), measured, gone(point) or "the base"))
    columns = ("Change", NOUNS[frontier.goal], "Predicted", "Measured", "What goes")
    return Table(columns=columns, align="rrrrl", rows=tuple(rows))


def gone(point: FrontierPoint) -> str:
    """Say in a few words what goes at a point."""
    whole = sorted({*point.attn} & {*point.mlp})
    attn, mlp = ([layer for layer in layers if layer not in whole] for layers in (point.attn, point.mlp))
    widths: dict[int, list[int]] = {}
    for layer, width in point.widths:
        widths.setdefault(width, []).append(layer)
    named = [("attention", attn), ("MLP", mlp), ("both", whole)]
    told = [f"{name} of {ranges(layers)}" for name, layers in named if layers]
    told += [f"MLP of {ranges(layers)} to {count(width)}" for width, layers in sorted(widths.items())]
    return ", ".join(told)


def _notes(frontier: Frontier) -> Iterator[str]:
    yield (
        "Loss is the rise of −log of the next token's probability on the calibration texts, in nats per token. "
        f"All predictions come from one pass, {plain(frontier.layer_runs, digits=0)} runs of a layer over these texts."
    )
    yield (
        "A prediction is a sum of losses that were measured one at a time. Together they are usually larger, by how"
        " much is known only where it was measured."
    )
