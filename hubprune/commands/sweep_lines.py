"""Tell people what a sweep found."""

from __future__ import annotations

from pathlib import Path

from hubprune.commands.summary import ratio_text, sdr_text, table
from hubprune.core.artifacts import SweepPoint, SweepReport
from hubprune.core.console import LARGEST
from hubprune.workflows.sweep.report import with_error


def sweep_lines(report: SweepReport, *, out: Path | None) -> str:
    """Write the table of all points, the rule and what it picks."""
    parts = [sweep_head(report), table(sweep_rows(report), left=1), *picked_lines(report), report.note]
    if out:
        parts.append(f"written: {out}")
    return "\n\n".join(parts)


def sweep_head(report: SweepReport) -> str:
    """Say what was dropped from, and what was measured."""
    order = report.metric + (f", seed {report.seed}" if report.metric == "random" else "")
    parts = [f"{report.base}, order by {order}"]
    if report.tasks:
        parts.append(
            f"{len(report.tasks)} tasks" + (f", {report.limit} documents each at most" if report.limit else "")
        )
    if report.chance is not None:
        parts.append(f"guessing gets {report.chance:.2f} %")
    if report.perplexity_on:
        parts.append(f"perplexity of {report.perplexity_on}")
    if speed := next((point.speed for point in report.points if point.speed), None):
        parts.append(f"speed of decoding {speed.new_tokens} tokens at depth {speed.depth}, {speed.rounds} rounds")
    return "; ".join([*parts, "± is one paired standard error"])


def sweep_rows(report: SweepReport) -> list[list[str]]:
    """Return the cells of the table, its head first."""
    with_mean, with_perplexity = report.points[0].mean is not None, report.points[0].perplexity is not None
    with_speed = any(point.speed for point in report.points)
    rows = [["method", "drops", "parameters"]]
    rows[0] += ["mean %", "Δ points"] * with_mean + ["perplexity", "Δ %"] * with_perplexity
    rows[0] += ["speed", "SDR"] * with_speed
    for point in report.points:
        row = [point.method, str(point.count), f"{100 * (point.parameters / report.base_parameters - 1):+.1f} %"]
        row += _mean_cells(point) * with_mean + _perplexity_cells(point) * with_perplexity
        rows.append(row + _speed_cells(point) * with_speed)
    return rows


def _mean_cells(point: SweepPoint) -> list[str]:
    mean = "n/a" if point.mean is None else f"{point.mean:.2f}"
    return [mean, with_error(point.mean_change) if point.count and point.mean_change else ""]


def _perplexity_cells(point: SweepPoint) -> list[str]:
    value = f"> {LARGEST:.0e}" if point.perplexity is None else f"{point.perplexity:.4g}"
    return [value, with_error(point.perplexity_change) if point.count and point.perplexity_change else ""]


def _speed_cells(point: SweepPoint) -> list[str]:
    if not point.speed:
        return ["", ""]
    told = {"control failed": "not resolved: the base differs from itself", "not resolved": "not resolved"}
    return [ratio_text(point.speed.ratio), told.get(point.speed.verdict) or sdr_text(point.sdr)]


def _drops(count: int) -> str:
    return "none" if not count else "1 drop" if count == 1 else f"{count} drops"


def picked_lines(report: SweepReport) -> list[str]:
    """Write the rule, what it picks of each method, and the commands that publish that."""
    if not report.recommendations:
        return []
    rows = [[f"  {r.method}", _drops(r.count), r.reason] for r in report.recommendations]
    commands = [f"  {r.command}" for r in report.recommendations if r.command]
    parts = [f"Rule: {report.rule}\n{table(rows, left=3)}"]
    return [*parts, "Next:\n" + "\n".join(commands)] if commands else parts
