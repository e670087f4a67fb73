"""`hubprune sweep`, `speed` and `compare`: what dropping costs and brings."""

from __future__ import annotations

from pathlib import Path

from hubprune.commands.terminal import show, to_json
from hubprune.core.console import Reporter
from hubprune.core.requests import CompareRequest, SpeedRequest, SweepRequest

SWEEP_EXAMPLES = (
    "Examples:  hubprune sweep meta-llama/Llama-3.2-3B --method attn,joint --counts 0:12 --limit 200 --out sweep"
    "  |  hubprune sweep ./base --tasks none --perplexity texts.jsonl"
)
SPEED_EXAMPLES = (
    "Examples:  hubprune speed me/Llama-3.2-3B-attn-drop-3"
    "  |  hubprune speed ./base ./pruned --depths 0,1024 --batch-size 8 --report speed.json"
)
AGAIN = "Times of two runs do not compare, so nothing was kept: run the same command again."
COMPARE_EXAMPLES = (
    "Examples:  hubprune compare ./attn-drop-3 ./attn-drop-6"
    "  |  hubprune compare me/Llama-3.2-3B-attn-drop-3 me/Llama-3.2-3B-attn-drop-3@v2"
)


def sweep(request: SweepRequest, reporter: Reporter, *, as_json: bool) -> None:
    """Measure what every number of drops costs, without writing a checkpoint, and recommend one."""
    from hubprune.commands.measured_lines import sweep_lines
    from hubprune.workflows.sweep import report
    from hubprune.workflows.sweep import sweep as measure

    done = measure(request, reporter=reporter)
    show(report.to_json(done) if as_json else sweep_lines(done, out=Path(request.out) if request.out else None))


def speed(request: SpeedRequest, reporter: Reporter, *, as_json: bool) -> None:
    """Time a pruned folder or repo against its base in paired rounds, and measure the memory of both."""
    from hubprune.commands.measured_lines import speed_lines
    from hubprune.workflows.speed import measure_speed

    done = measure_speed(request, reporter=reporter)
    show(to_json(done) if as_json else speed_lines(done))


def compare(request: CompareRequest, reporter: Reporter, *, as_json: bool) -> None:
    """Compare two pruned folders, repos, reports or plans: what went, what is left, what was measured."""
    from hubprune.commands.side_by_side import comparison_text
    from hubprune.workflows import compare as comparison

    seen = comparison.compare(request)
    show(to_json(seen) if as_json else comparison_text(seen))
