"""`hubprune score`, `prune` and `verify`: what a publish does, one step at a time."""

from __future__ import annotations

from pathlib import Path

from hubprune.commands.terminal import show, to_json
from hubprune.core.console import Reporter
from hubprune.core.requests import PruneRequest, ScoreRequest, VerifyRequest

SCORE_EXAMPLES = (
    "Examples:  hubprune score meta-llama/Llama-3.2-3B --attn-drop 3 --num-samples 128"
    "  |  hubprune score meta-llama/Llama-3.2-3B --calibration cosmopedia,c4,lima --plot pictures"
)
PRUNE_EXAMPLES = "Example:  hubprune prune meta-llama/Llama-3.2-3B --drop-attn 18,21,22 --out pruned"
VERIFY_EXAMPLES = "Examples:  hubprune verify ./pruned --base ./base  |  hubprune verify me/Llama-3.2-3B-attn-drop-3"


def score(request: ScoreRequest, reporter: Reporter, *, as_json: bool) -> None:
    """Score attention, MLP and block importance of every layer: once, or side by side; --plot draws it."""
    from hubprune.commands.side_by_side import scored_text
    from hubprune.workflows.score import conduct

    done = conduct(request, reporter=reporter)
    show(to_json(done.value) if as_json else scored_text(done))


def prune(request: PruneRequest, reporter: Reporter, *, as_json: bool) -> None:
    """Write a pruned and verified checkpoint into a folder; publish nothing."""
    from hubprune.commands import summary
    from hubprune.workflows import run

    pruned = run.prune(request, reporter=reporter)
    show(to_json(pruned) if as_json else summary.pruned_lines(pruned.written, folder=Path(request.out)))


def verify(request: VerifyRequest, reporter: Reporter, *, as_json: bool) -> None:
    """Check a pruned folder or repo against its base: files, loading, logits, KV cache."""
    from hubprune.commands import summary
    from hubprune.workflows import verify as checkup

    seen = checkup.check(request, reporter=reporter)
    show(to_json(seen) if as_json else summary.verification_table(seen))
    checkup.require_passed(seen)
