"""Tell people what a timing found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from hubprune.commands.summary import ratio_text, sdr_text, table
from hubprune.core.artifacts import Measure, PeakMemory, SpeedReport, SpeedRow, Verdict
from hubprune.core.console import size

MEASURES: Mapping[Measure, str] = {
    "prefill": "prompt", "first-token": "first token", "decode": "decoding", "generation": "whole answer"
}  # fmt: skip
VERDICTS: Mapping[Verdict, str] = {
    "faster": "faster", "slower": "slower", "not resolved": "not resolved",
    "control failed": "not resolved",
}  # fmt: skip
PEAKS: Mapping[str, str] = {"allocator": "weights and GPU allocator", "resident": "resident, libraries included"}


def speed_lines(report: SpeedReport) -> str:
    """Write who ran where, a table of all measures, the memory of both, and the notes."""
    parts = [_head(report), table(_rows(report), left=2), _legend(report), table(_memory(report), left=1)]
    return "\n\n".join([*parts, "\n".join(f"note: {note}" for note in report.notes)]).rstrip()


def _head(report: SpeedReport) -> str:
    shape, found = report.rows[0].measured, report.environment
    versions = ", ".join(f"{name} {found.versions.get(name, '?')}" for name in ("torch", "transformers"))
    rows = [
        ["base", _named(report.base, report.base_commit)],
        ["pruned", f"{_named(report.pruned, report.pruned_commit)}, without {_dropped(report)}"],
        ["machine", f"{found.machine}, {report.device}, {report.threads} CPU thread{'s'[: report.threads - 1]}"],
        ["computed in", f"{report.dtype}, attention {report.attention}, {versions}"],
        [
            "shape",
            f"batch size {shape.batch_size}, {shape.new_tokens} new tokens, {shape.rounds} rounds in random order",
        ],
    ]
    return table(rows, left=2)


def _named(name: str, commit: str | None) -> str:
    return f"{name} at {commit[:12]}" if commit else name


def _dropped(report: SpeedReport) -> str:
    words = []
    for kind, name in (("attn", "attention"), ("mlp", "MLP")):
        if layers := [str(layer) for other, layer in report.dropped if other == kind]:
            words.append(f"{name} {', '.join(layers)}")
    return " and ".join(words) or "any sublayer dropped"


def _rows(report: SpeedReport) -> list[list[str]]:
    rows = [["depth", "measure", "base", "pruned", "ratio", "control", "", "SDR"]]
    return rows + [_row(row) for row in report.rows]


def _row(row: SpeedRow) -> list[str]:
    seen = row.measured
    return [
        f"{seen.depth}",
        MEASURES[seen.measure],
        _pace(seen.base_tokens_per_second, seen.base_seconds),
        _pace(seen.tokens_per_second, seen.seconds),
        ratio_text(seen.ratio),
        f"[{seen.control.low:.2f}, {seen.control.high:.2f}]" + " fails" * (row.verdict == "control failed"),
        VERDICTS[row.verdict],
        sdr_text(row.sdr),
    ]


def _pace(tokens_per_second: float | None, seconds: float) -> str:
    if tokens_per_second is None:
        return f"{1000 * seconds:.4g} ms"
    return f"{tokens_per_second:,.0f} tok/s" if tokens_per_second >= 100 else f"{tokens_per_second:.3g} tok/s"


def _legend(report: SpeedReport) -> str:
    lines = [
        "depth: tokens in the KV cache when decoding starts; control: the base against itself",
        "ratio: the base's time over the pruned model's, above 1 is faster; median of the rounds [95 % interval]",
        "tok/s: over the batch; of a whole answer, new tokens over the time of prompt and decoding",
    ]
    if change := report.benchmarks:
        error = "" if change.standard_error is None else f" ± {change.standard_error:.2f}"
        lines.append(
            f"SDR: points lost per percent of speed-up; {len(change.tasks)} tasks changed by "
            f"{change.points:+.2f}{error} points"
        )
    return "\n".join(lines)


def _memory(report: SpeedReport) -> list[list[str]]:
    rows = [["", "base", "pruned", "change"], *_cache_rows(report)]
    if peak := report.peak_memory:
        rows.append([_peak_name(peak), size(peak.base), size(peak.pruned), _percent(peak.base, peak.pruned)])
    if found := report.largest_batch:
        name = f"largest batch, depth {found.depth} + {found.new_tokens} tokens"
        cells = [f"{n} or more" if n >= found.limit else str(n) for n in (found.base, found.pruned)]
        rows.append([name, *cells, _percent(found.base, found.pruned)])
    return rows


def _cache_rows(report: SpeedReport) -> Iterator[list[str]]:
    cache = report.kv_cache
    for name, base, pruned in (
        ("KV cache per token, counted", cache.base, cache.pruned),
        ("KV cache per token, from config.json", cache.base_computed, cache.pruned_computed),
    ):
        cells = [f"{number / cache.tokens:,.10g} B" for number in (base, pruned)]
        yield [name, *cells, _percent(base, pruned)]


def _peak_name(peak: PeakMemory) -> str:
    return f"peak memory, {PEAKS[peak.how]}, depth {peak.depth}"


def _percent(base: int, pruned: int) -> str:
    return f"{100 * (pruned / base - 1):+.1f} %" if base else "n/a"
