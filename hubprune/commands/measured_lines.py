"""Tell people what a sweep and what a timing found."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from hubprune.commands.summary import ratio_text, sdr_text, table
from hubprune.core.artifacts import Measure, Ranking, SpeedReport, SweepReport, Verdict
from hubprune.core.console import LARGEST, size
from hubprune.workflows.sweep import with_error

MEASURES: Mapping[Measure, str] = {
    "prefill": "prompt", "first-token": "first token", "decode": "decoding", "generation": "whole answer"
}  # fmt: skip
VERDICTS: Mapping[Verdict, str] = {
    "faster": "faster", "slower": "slower", "not resolved": "not resolved",
    "control failed": "not resolved",
}  # fmt: skip
UNRESOLVED: Mapping[Verdict, str] = {
    "control failed": "not resolved: the base differs from itself", "not resolved": "not resolved",
}  # fmt: skip
PEAKS: Mapping[str, str] = {"allocator": "weights and GPU allocator", "resident": "resident, libraries included"}


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
        limit = f", {report.limit} documents each at most" if report.limit else ""
        parts.append(f"{len(report.tasks)} tasks{limit}{' through the chat template' if report.chat else ''}")
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
    found = report.points[0].perplexity
    digits = max(0, 4 - len(str(int(found)))) if found else 2  # four that count of the base's, and as many below it
    seen: dict[tuple[Any, ...], str] = {}
    for point in report.points:
        if point.dropped and (same := seen.setdefault(point.dropped, f"{point.method} {point.count}")) != (
            f"{point.method} {point.count}"
        ):
            rows.append([point.method, str(point.count), f"as {same}", *[""] * (len(rows[0]) - 3)])
            continue
        row = [point.method, str(point.count), f"{100 * (point.parameters / report.base_parameters - 1):+.1f} %"]
        if with_mean:
            row.append("n/a" if point.mean is None else f"{point.mean:.2f}")
            row.append(with_error(point.mean_change) if point.count and point.mean_change else "")
        if with_perplexity:
            row.append(f"> {LARGEST:.0e}" if point.perplexity is None else f"{point.perplexity:.{digits}f}")
            row.append(with_error(point.perplexity_change) if point.count and point.perplexity_change else "")
        if with_speed and (speed := point.speed):
            row += [ratio_text(speed.ratio), UNRESOLVED.get(speed.verdict) or sdr_text(point.sdr)]
        rows.append(row + [""] * (len(rows[0]) - len(row)))
    return rows


def picked_lines(report: SweepReport) -> list[str]:
    """Write the rule, what it picks of each method, and the commands that publish that."""
    if not report.recommendations:
        return []
    counts = {0: "none fits", 1: "1 drop"}
    rows = [
        [f"  {r.method}", counts.get(r.count, f"{r.count} drops"), f"{r.reason}. {r.takes}" if r.takes else r.reason]
        for r in report.recommendations
    ]
    commands = [f"  {r.command}" for r in report.recommendations if r.command]
    parts = [f"Rule: {report.rule}\n{table(rows, left=3)}"]
    if commands:
        return [*parts, "Next:\n" + "\n".join(commands)]
    swept = [r.method for r in report.recommendations]
    others = ",".join(method for method in get_args(Ranking) if method not in swept and method != "block")
    return [*parts, f"Or try --method {others}."] if others else parts


def speed_lines(report: SpeedReport) -> str:
    """Write who ran where, a table of all measures, the memory of both, and the notes."""
    parts = [_head(report), table(_rows(report), left=2), _legend(report), table(_memory(report), left=1)]
    return "\n\n".join([*parts, "\n".join(f"note: {note}" for note in report.notes)]).rstrip()


def _head(report: SpeedReport) -> str:
    shape, found, words = report.rows[0].measured, report.environment, []
    for kind, name in (("attn", "attention"), ("mlp", "MLP")):
        if layers := [str(layer) for other, layer in report.dropped if other == kind]:
            words.append(f"{name} {', '.join(layers)}")
    dropped = " and ".join(words) or "any sublayer dropped"
    versions = ", ".join(f"{name} {found.versions.get(name, '?')}" for name in ("torch", "transformers"))
    batch = f"batch size {shape.batch_size}"
    rows = [
        ["base", _named(report.base, report.base_commit)],
        ["pruned", f"{_named(report.pruned, report.pruned_commit)}, without {dropped}"],
        ["machine", f"{found.machine}, {report.device}, {report.threads} CPU thread{'s'[: report.threads - 1]}"],
        ["computed in", f"{report.dtype}, attention {report.attention}, {versions}"],
        ["shape", f"{batch}, {shape.new_tokens} new tokens, {shape.rounds} rounds in random order"],
    ]
    return table(rows, left=2)


def _named(name: str, commit: str | None) -> str:
    return f"{name} at {commit[:12]}" if commit else name


def _rows(report: SpeedReport) -> list[list[str]]:
    rows = [["depth", "measure", "base", "pruned", "ratio", "control", "", "SDR"]]
    for row in report.rows:
        seen = row.measured
        control = f"[{seen.control.low:.2f}, {seen.control.high:.2f}]" + " fails" * (row.verdict == "control failed")
        paces = (seen.base_tokens_per_second, seen.base_seconds), (seen.tokens_per_second, seen.seconds)
        cells = [f"{seen.depth}", MEASURES[seen.measure], *(_pace(*pace) for pace in paces), ratio_text(seen.ratio)]
        rows.append([*cells, control, VERDICTS[row.verdict], sdr_text(row.sdr)])
    return rows


def _pace(tokens_per_second: float | None, seconds: float) -> str:
    if tokens_per_second is None:
        return f"{1000 * seconds:.4g} ms"
    return f"{tokens_per_second:,.0f} tok/s" if tokens_per_second >= 100 else f"{tokens_per_second:.3g} tok/s"


def _legend(report: SpeedReport) -> str:
    lines = [
        "depth: tokens in the KV cache when decoding starts; control: the base against itself",
        "ratio: the base's time over the pruned model's, above 1 is faster; median of the rounds [95 % interval];",
        "  under noise it may differ from what the two medians beside it come to",
        "tok/s: over the batch; of a whole answer, new tokens over the time of prompt and decoding",
    ]
    if change := report.benchmarks:
        error = "" if change.standard_error is None else f" ± {change.standard_error:.2f}"
        tasks = f"{len(change.tasks)} task{'s'[: len(change.tasks) - 1]}"
        lines.append(f"SDR: points lost per percent of speed-up; {tasks} changed by {change.points:+.2f}{error} points")
    return "\n".join(lines)


def _memory(report: SpeedReport) -> list[list[str]]:
    rows, cache = [["", "base", "pruned", "change"]], report.kv_cache
    for name, base, pruned in (
        ("KV cache per token, counted", cache.base, cache.pruned),
        ("KV cache per token, from config.json", cache.base_computed, cache.pruned_computed),
    ):
        cells = [f"{number / cache.tokens:,.10g} B" for number in (base, pruned)]
        rows.append([name, *cells, _percent(base, pruned)])
    if peak := report.peak_memory:
        name = f"peak memory, {PEAKS[peak.how]}, depth {peak.depth}"
        rows.append([name, size(peak.base), size(peak.pruned), _percent(peak.base, peak.pruned)])
    if found := report.largest_batch:
        name = f"largest batch, depth {found.depth} + {found.new_tokens} tokens"
        cells = [f"{n} or more" if n >= found.limit else str(n) for n in (found.base, found.pruned)]
        rows.append([name, *cells, _percent(found.base, found.pruned)])
    return rows


def _percent(base: int, pruned: int) -> str:
    return f"{100 * (pruned / base - 1):+.1f} %" if base else "n/a"
