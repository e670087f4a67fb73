"""Speed and memory of base and pruned model, timed in turns on one machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from hubprune.cards.context import Speed, Table
from hubprune.cards.markdown import NONE, count, plain, signed, size_change, span
from hubprune.core.artifacts import Interval, Measure, SpeedMeasured, SpeedReport
from hubprune.core.console import size

PEAKS: Mapping[str, str] = {
    "allocator": "weights and what the GPU's allocator held beside them",
    "resident": "resident memory of a process of its own, libraries and loading included",
}
MEASURES: Mapping[Measure, str] = {
    "prefill": "Prefill, tokens/s", "first-token": "First token, ms", "decode": "Decoding, tokens/s",
    "generation": "Whole answer, tokens/s",
}  # fmt: skip
"""Measure -> what the card calls it, with its unit."""
GLANCE: tuple[Measure, ...] = ("prefill", "decode")
"""Measures at a glance."""


def hardware(speed: SpeedReport) -> str:
    """Name what was timed on: a GPU by its name, a CPU with the number of its threads that were used."""
    machine = speed.environment.machine
    return f"{machine}, {speed.threads} thread{'s'[: speed.threads - 1]}" if speed.device == "cpu" else machine


def speed_rows(speed: SpeedReport | None) -> Iterator[tuple[str, ...]]:
    """Compare speed and peak memory at a glance, each with the hardware; no rows where nothing was timed."""
    if speed is None:
        return
    deepest = {row.measured.measure: row for row in speed.rows}
    for row in (deepest[measure] for measure in GLANCE if measure in deepest):
        seen, ends = row.measured, _ends(row.measured.ratio)
        told = f"{signed(seen.speedup_percent, digits=1)} % ({ends})"
        if row.verdict == "control failed":
            told = "not resolved: the base differs from itself"
        elif row.verdict == "not resolved":
            told = f"not resolved ({ends} %)"
        yield f"{MEASURES[seen.measure]} ({hardware(speed)})", *_paces(seen), told
    if peak := speed.peak_memory:
        yield f"Peak memory ({hardware(speed)})", *_byte_cells(peak.base, peak.pruned)


def section(speed: SpeedReport | None) -> Speed | None:
    """Show every measure with its interval and its control, and how it was measured; None where nothing was timed."""
    if speed is None or not speed.rows:
        return None
    columns = ("Measure", "Verdict", "Base", "This model", "Speed-up, %", "SDR", "Control, %")
    rows = []
    for row in speed.rows:
        seen, sdr = row.measured, NONE
        if row.sdr:
            value, low, high = (plain(number, digits=3) for number in (row.sdr.value, row.sdr.low, row.sdr.high))
            sdr = f"{value} ({low} to {high})"
        verdict = "not resolved" if row.verdict == "control failed" else row.verdict
        gain = f"{signed(seen.speedup_percent, digits=1)} ({_ends(seen.ratio)})"
        rows.append((MEASURES[seen.measure], verdict, *_paces(seen), gain, sdr, _ends(seen.control)))
    cache = speed.kv_cache
    memory = [(f"KV cache of {count(cache.tokens)} tokens, counted", *_byte_cells(cache.base, cache.pruned))]
    if peak := speed.peak_memory:
        memory.insert(0, (f"Peak: {PEAKS[peak.how]}", *_byte_cells(peak.base, peak.pruned)))
    return Speed(
        sentences=tuple(_how(speed)),
        table=Table(columns=columns, align="llrrrrr", rows=tuple(rows)),
        memory=Table(columns=("Memory", "Base", "This model", "Change"), align="lrrr", rows=tuple(memory)),
        notes=tuple(_notes(speed)),
    )


def _ends(ratio: Interval) -> str:
    return span(100 * (ratio.low - 1), 100 * (ratio.high - 1), digits=1)


def _byte_cells(base: int, pruned: int) -> tuple[str, ...]:
    return size(base), size(pruned), size_change(base, pruned)


def _paces(seen: SpeedMeasured) -> tuple[str, str]:
    if seen.tokens_per_second is None or seen.base_tokens_per_second is None:
        return _three_digits(1000 * seen.base_seconds), _three_digits(1000 * seen.seconds)
    return _three_digits(seen.base_tokens_per_second), _three_digits(seen.tokens_per_second)


def _three_digits(value: float) -> str:
    """Write a positive number with three digits at least: 1,234, 56.7, 0.891."""
    digits = next(digits for digits, least in enumerate((99.95, 9.995, 0.9995, 0.0)) if value >= least)
    return f"{value:,.{digits}f}"


def _how(speed: SpeedReport) -> Iterator[str]:
    shape, versions = speed.rows[-1].measured, speed.environment.versions
    prompt = f"a prompt of {count(shape.depth)} tokens, then " if shape.depth else ""
    ran = ", ".join(f"{name} {versions[name]}" for name in ("torch", "transformers") if name in versions)
    yield (
        f"Both models were timed in one process on {hardware(speed)} ({speed.device}, {speed.dtype}, attention"
        f" {speed.attention}, {ran}): {prompt}{count(shape.new_tokens)} new tokens, batch size {shape.batch_size}."
    )
    yield (
        f"Each of {shape.rounds} rounds timed the base, the base again and this model, in random order; both columns"
        " are medians."
    )


def _notes(speed: SpeedReport) -> Iterator[str]:
    yield (
        "A whole answer is prefill and decoding together, and its tokens are the new ones. Speed-up is the median over"
        " the rounds of the base's time over this model's, minus 1; in brackets is its 95 % bootstrap interval. It need"
        " not be the quotient of the two columns, which are medians of their own. Control is that interval for the base"
        " against itself. Not resolved: the speed-up's interval holds 0, or the control's does not."
    )
    if change := speed.benchmarks:
        tasks = "1 benchmark" if len(change.tasks) == 1 else f"{len(change.tasks)} benchmarks"
        yield (
            f"SDR is points lost per percent of speed-up (equation 7 of arXiv 2406.15786): the mean of {tasks} changed"
            f" by {signed(change.points)} points. It is given where this model is faster; its interval spans all that"
            " the intervals of both allow."
        )
    yield from speed.notes
