"""Put checkpoints, or scores of one base, side by side for people."""

from __future__ import annotations

from collections.abc import Iterator

from hubprune.commands.summary import scores_table, table
from hubprune.core.artifacts import (
    Agreement,
    CheckpointComparison,
    ComparedMetric,
    ComparedSide,
    ScoreKind,
    ScoreStudy,
)
from hubprune.core.console import decimal
from hubprune.plots.pictures import NAMES, VARIES
from hubprune.workflows.score import Scored

UNKNOWN = "not known"

# ---- two checkpoints -----------------------------------------------------------------------------------------------


def comparison_text(comparison: CheckpointComparison) -> str:
    """Write what differs: one table for what the two are, and below it what went, scores, benchmarks and notes."""
    parts = [_sides_table(comparison.first, comparison.second), *_dropped_lines(comparison)]
    if comparison.agreements:
        parts.append(_agreement_table(comparison.agreements))
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
    return {
        "name": side.name,
        "base": side.base or UNKNOWN,
        "commit of the base": (side.base_commit or "none")[:12],
        "layers of the base": str(side.num_hidden_layers),
        "method": ", ".join(side.methods) or UNKNOWN,
        "attention dropped": _layers(side.dropped_attn),
        "MLP dropped": _layers(side.dropped_mlp),
        "MLP widths": _widths(side),
        "layout": side.layout,
        "parameters": _count(side.parameters),
        "KV cache per token": _count(side.kv_bytes_per_token, unit=" B"),
        "calibration": side.calibration or "none",
        "its tokens": (side.calibration_sha256 or "none")[:12],
    }


def _layers(layers: tuple[int, ...]) -> str:
    return ", ".join(map(str, layers)) or "none"


def _widths(side: ComparedSide) -> str:
    if side.widths is None:
        return "the base's"
    there = {width for layer, width in enumerate(side.widths) if layer not in side.dropped_mlp}
    return f"{min(there):,}" if len(there) == 1 else f"{min(there):,} to {max(there):,}" if there else "none"


def _count(number: int | None, *, unit: str = "") -> str:
    return UNKNOWN if number is None else f"{number:,}{unit}"


def _dropped_lines(comparison: CheckpointComparison) -> Iterator[str]:
    for row in comparison.dropped:
        if row.both or row.only_first or row.only_second:
            yield (
                f"{NAMES[row.kind]} dropped in both: {_layers(row.both)}; only in A: {_layers(row.only_first)}; "
                f"only in B: {_layers(row.only_second)}"
            )


def _agreement_table(agreed: tuple[Agreement, ...]) -> str:
    rows = [["order of the scores", "Spearman's ρ", "Kendall's τ", f"of the {agreed[0].lowest} lowest, the same"]]
    for row in agreed:
        rows.append([NAMES[row.kind], _correlation(row.spearman), _correlation(row.kendall), str(row.overlap)])
    return table(rows)


def _benchmarks_table(pairs: tuple[ComparedMetric, ...]) -> str:
    rows = [["task", "metric", "n", "A", "its base", "B", "its base", "B − A"]]
    for pair in pairs:
        values = (decimal(v, digits=4) for v in (pair.first, pair.first_base, pair.second, pair.second_base))
        own = pair.unit != "points"
        change = f"{decimal(pair.change, digits=4 if own else 2, sign=True)}{'' if own else ' points'}"
        rows.append([pair.task, pair.metric, str(pair.documents), *values, change])
    return table(rows, left=2)


# ---- scores of one base under several circumstances ----------------------------------------------------------------


def scored_text(scored: Scored) -> str:
    """Write scores with what they would drop, or a study."""
    if isinstance(scored.value, ScoreStudy):
        return study_tables(scored.value)
    return scores_table(scored.value, plan=scored.plan)


def study_tables(study: ScoreStudy) -> str:
    """Write the scores side by side, one table per kind, and below them how well the orders agree."""
    parts = [_study_head(study), *(_scores_table(study, kind) for kind in NAMES)]
    return "\n\n".join([*parts, *([_study_agreements(study)] if len(study.entries) > 1 else [])])


def _study_head(study: ScoreStudy) -> str:
    same = ", each draw the beginning of the next larger one" if study.nested and len(study.entries) > 1 else ""
    rows = [[VARIES[study.kind], "commit of the base", "documents", "tokens", "mix"]]
    for entry in study.entries:
        rows.append(
            [entry.label, (entry.commit or "local")[:12], f"{entry.documents:,}", f"{entry.tokens:,}", entry.mix]
        )
    what = f"Importance of {study.base} by {VARIES[study.kind]}: {study.metric}, {study.aggregation} mean{same}"
    return f"{what}\n{table(rows, left=2)}"


def _scores_table(study: ScoreStudy, kind: ScoreKind) -> str:
    columns = [getattr(entry.mean, kind) for entry in study.entries]
    rows = [[NAMES[kind], *(entry.label for entry in study.entries)]]
    rows += [[str(layer), *(f"{value:.6f}" for value in row)] for layer, row in enumerate(zip(*columns, strict=True))]
    return table(rows)


def _study_agreements(study: ScoreStudy) -> str:
    lowest = next(a.lowest for entry in study.entries for a in entry.agreements)
    rows = [[f"against {study.reference}", "", "Spearman's ρ", "Kendall's τ", f"of the {lowest} lowest, the same"]]
    for entry in study.entries:
        rows += [
            [entry.label, NAMES[a.kind], _correlation(a.spearman), _correlation(a.kendall), str(a.overlap)]
            for a in entry.agreements
        ]
    return table(rows, left=2)


def _correlation(value: float | None) -> str:
    return "no order" if value is None else f"{value:.3f}"
