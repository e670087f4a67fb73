"""Put checkpoints, or scores of one base, side by side for people."""

from __future__ import annotations

from hubprune.cards.target import frontier_rows, place
from hubprune.commands.summary import table
from hubprune.core.artifacts import Agreement, CheckpointComparison, ComparedMetric, ComparedSide, Frontier, ScoreStudy
from hubprune.core.console import decimal
from hubprune.plots.pictures import NAMES, VARIES

UNKNOWN = "not known"


def comparison_text(comparison: CheckpointComparison) -> str:
    """Write what differs: one table for what the two are, and below it what went, scores, benchmarks and notes."""
    parts = [_sides_table(comparison.first, comparison.second)]
    for gone in comparison.dropped:
        if gone.both or gone.only_first or gone.only_second:
            parts.append(
                f"{NAMES[gone.kind]} dropped in both: {_layers(gone.both)}; only in A: {_layers(gone.only_first)}; "
                f"only in B: {_layers(gone.only_second)}"
            )
    if agreed := comparison.agreements:
        rows = [["order of the scores", *_correlations(agreed[0].lowest)]]
        parts.append(table(rows + [[NAMES[row.kind], *_agreement(row)] for row in agreed]))
    if comparison.benchmarks:
        parts.append(_benchmarks_table(comparison.benchmarks))
    return "\n\n".join([*parts, *(f"note: {note}" for note in comparison.notes)])


def _sides_table(first: ComparedSide, second: ComparedSide) -> str:
    rows = [["", "A", "B", ""]]
    pairs = zip(_column(first).items(), _column(second).values(), strict=True)
    for (name, first_value), second_value in pairs:
        known = UNKNOWN not in (first_value, second_value)
        same = "same" if first_value == second_value else "differs"
        rows.append([name, first_value, second_value, same if known else UNKNOWN])
    rows[1][3] = ""
    for row, one, other in (
        (rows[-4], first.parameters, second.parameters),
        (rows[-3], first.kv_bytes_per_token, second.kv_bytes_per_token),
    ):
        if one is None or other is None:
            row[3] = UNKNOWN
        else:
            row[3] = "same" if one == other else f"{100 * (other / one - 1):+.2f} %" if one else "differs"
    return table(rows, left=4)


def _column(side: ComparedSide) -> dict[str, str]:
    widths = "the base's"
    if side.widths is not None:
        there = {width for layer, width in enumerate(side.widths) if layer not in side.dropped_mlp}
        widths = " to ".join(f"{width:,}" for width in sorted({min(there), max(there)})) if there else "none"
    return {
        "name": side.name,
        "base": side.base or UNKNOWN,
        "commit of the base": (side.base_commit or "none")[:12],
        "layers of the base": str(side.num_hidden_layers),
        "method": ", ".join(side.methods) or UNKNOWN,
        "attention dropped": _layers(side.dropped_attn),
        "MLP dropped": _layers(side.dropped_mlp),
        "MLP widths": widths,
        "layout": side.layout,
        "quantized": side.quantization or "no",
        "trained": side.training or "no",
        "weight files": (side.weights_sha256 or UNKNOWN)[:12],
        "parameters": _count(side.parameters),
        "KV cache per token": _count(side.kv_bytes_per_token, unit=" B"),
        "calibration": side.calibration or "none",
        "its tokens": (side.calibration_sha256 or "none")[:12],
    }


def _layers(layers: tuple[int, ...]) -> str:
    return ", ".join(map(str, layers)) or "none"


def _count(number: int | None, *, unit: str = "") -> str:
    return UNKNOWN if number is None else f"{number:,}{unit}"


def _benchmarks_table(pairs: tuple[ComparedMetric, ...]) -> str:
    rows = [["task", "metric", "n", "A", "its base", "B", "its base", "B − A"]]
    for pair in pairs:
        values = (decimal(v, digits=4) for v in (pair.first, pair.first_base, pair.second, pair.second_base))
        own = pair.unit != "points"
        change = f"{decimal(pair.change, digits=4 if own else 2, sign=True)}{'' if own else ' points'}"
        rows.append([pair.task, pair.metric, str(pair.documents), *values, change])
    return table(rows, left=2)


def study_tables(study: ScoreStudy) -> str:
    """Write the scores side by side, one table per kind, and below them how well the orders agree."""
    same = ", each draw the beginning of the next larger one" if study.nested and len(study.entries) > 1 else ""
    rows = [[VARIES[study.kind], "commit of the base", "documents", "tokens", "mix"]]
    for entry in study.entries:
        commit = (entry.commit or "local")[:12]
        rows.append([entry.label, commit, f"{entry.documents:,}", f"{entry.tokens:,}", entry.mix])
    what = f"Importance of {study.base} by {VARIES[study.kind]}: {study.metric}, {study.aggregation} mean{same}"
    parts = [f"{what}\n{table(rows, left=2)}"]
    for kind in study.entries[0].mean.kinds:
        rows = [[NAMES[kind], *(entry.label for entry in study.entries)]]
        layers = zip(*(getattr(entry.mean, kind) for entry in study.entries), strict=True)
        rows += [[str(layer), *(f"{value:.6f}" for value in row)] for layer, row in enumerate(layers)]
        parts.append(table(rows))
    if len(study.entries) > 1:
        lowest = next(a.lowest for entry in study.entries for a in entry.agreements)
        rows = [[f"against {study.reference}", "", *_correlations(lowest)]]
        rows += [[entry.label, NAMES[a.kind], *_agreement(a)] for entry in study.entries for a in entry.agreements]
        parts.append(table(rows, left=2))
    return "\n\n".join(parts)


def frontier_table(found: Frontier) -> str:
    """Write what every saving costs at the least."""
    told = frontier_rows(found)
    title = (
        f"What saving costs {found.base}{place(found)}: rise of the {found.base_loss:.4f} nats per token that it\n"
        f"loses, losses of single changes added up, from {found.layer_runs:,.0f} runs of a layer in one pass"
    )
    return f"{title}\n{table([list(told.columns), *map(list, told.rows)])}"


def _correlations(lowest: int) -> list[str]:
    return ["Spearman's ρ", "Kendall's τ", f"of the {lowest} lowest, the same"]


def _agreement(row: Agreement) -> list[str]:
    orders = ("no order" if value is None else f"{value:.3f}" for value in (row.spearman, row.kendall))
    return [*orders, str(row.overlap)]
