"""`hubprune publish` and `push`, its steps `score`, `prune`, `verify`; what measures: `sweep`, `speed`, `compare`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from hubprune.commands.local import show_checkup
from hubprune.commands.terminal import edits_as_json, show, to_json
from hubprune.core import requests
from hubprune.core.console import Reporter
from hubprune.core.errors import RecipeError

PUBLISH_EXAMPLES = (
    "Examples:  hubprune publish meta-llama/Llama-3.2-3B --attn-drop 3"
    "  |  hubprune publish mistralai/Mistral-7B-v0.1 --attn-layers 18,21,22 --limit 200 --dry-run"
    "  |  hubprune publish --recipe recipe.yaml --on hf-jobs --flavor a100-large"
)
PUSH_EXAMPLES = (
    "Example:  hubprune publish --recipe recipe.yaml --repo-id me/tiny --dry-run --out result  &&  hubprune push result"
)
SCORE_EXAMPLES = (
    "Examples:  hubprune score meta-llama/Llama-3.2-3B --attn-drop 3 --num-samples 128"
    "  |  hubprune score meta-llama/Llama-3.2-3B --calibration cosmopedia,c4,lima --plot pictures"
    "  |  hubprune score meta-llama/Llama-3.2-3B --frontier params --plot pictures"
)
PRUNE_EXAMPLES = (
    "Examples:  hubprune prune meta-llama/Llama-3.2-3B --attn-layers 18,21,22 --out pruned"
    "  |  hubprune prune meta-llama/Llama-3.2-3B --target params=-10%,kv=-30% --out pruned"
)
ADOPT_EXAMPLES = (
    "Examples:  hubprune adopt them/Llama-3.2-3B-dropped --out adopted"
    "  |  hubprune adopt ./merged --base meta-llama/Llama-3.2-3B"
    "  |  hubprune publish --adopt them/Llama-3.2-3B-dropped --dry-run"
)
HEAL_EXAMPLES = (
    "Examples:  hubprune heal ./pruned --out healed"
    "  |  hubprune heal me/Llama-3.2-3B-attn-drop-3 --minutes 60 --rank 32 --out healed"
)
VERIFY_EXAMPLES = (
    "Examples:  hubprune verify ./pruned --base ./base  |  hubprune verify me/Llama-3.2-3B-attn-drop-3"
    "  |  HUBPRUNE_VLLM_PYTHON=vllm/bin/python hubprune verify ./pruned --runtime vllm,mlx"
)
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


def publish(request: requests.JobRequest, reporter: Reporter, *, as_json: bool) -> None:
    """Score, prune, verify, benchmark and publish a base in one commit, then load it back."""
    from hubprune.commands import summary
    from hubprune.commands.ci import told_to_job
    from hubprune.workflows import jobs
    from hubprune.workflows import publish as pipeline
    from hubprune.workflows.push import new_report_beside

    if request.adopt and (request.check or request.runs_elsewhere):
        raise RecipeError(
            "--adopt compares all weights with the base's before it knows what goes: --check and --on do not.",
            hint="Leave out the one or the other; `hubprune adopt` says what was found.",
        )
    if request.check:
        from hubprune.workflows.doctor import check_publish

        if request.runs_elsewhere:
            hint = "Leave one of them out: a job checks itself before it computes."
            raise RecipeError("--check looks at this machine, and --on runs the publish on another.", hint=hint)
        show_checkup(check_publish(request, reporter=reporter), as_json=as_json)
        return
    with told_to_job(reporter) as told, edits_as_json(wanted=as_json):
        if request.runs_elsewhere:
            job = jobs.publish_on_jobs(request, reporter=reporter)
            show(json.dumps(job, indent=2) if as_json else summary.table(list(map(list, job.items())), left=2))
            return
        if request.dry_run and request.out and not request.report:
            request = replace(request, report=str(new_report_beside(Path(request.out))))
        done = pipeline.publish(request, reporter=reporter, told=told)
        folder, written = (str(place) if place else "" for place in (request.out, request.report))
        lines = summary.publish_summary(done, with_card=request.show_card, folder=folder, written=written)
        show(pipeline.to_json(done) if as_json else lines)


def push(request: requests.PushRequest, reporter: Reporter, *, as_json: bool) -> None:
    """Publish what a dry run made, on another machine and with another token if need be; nothing is computed again."""
    from hubprune.commands import summary
    from hubprune.commands.ci import told_to_job
    from hubprune.workflows import publish as pipeline
    from hubprune.workflows import push as pushing

    with told_to_job(reporter) as told, edits_as_json(wanted=as_json):
        done = pushing.push(request, reporter=reporter, told=told)
        show(pipeline.to_json(done) if as_json else summary.publish_summary(done))


def score(request: requests.ScoreRequest, reporter: Reporter, *, as_json: bool) -> None:
    """Score attention, MLP and block importance of every layer: once, or side by side; --plot draws it."""
    from hubprune.commands import side_by_side, summary
    from hubprune.core.artifacts import Frontier, ScoreStudy
    from hubprune.workflows.score import conduct

    done = conduct(request, reporter=reporter)
    if as_json:
        show(to_json(done.value))
    elif isinstance(done.value, ScoreStudy):
        show(side_by_side.study_tables(done.value))
    elif isinstance(done.value, Frontier):
        show(side_by_side.frontier_table(done.value))
    else:
        show(summary.scores_table(done.value, plan=done.plan))


def prune(request: requests.PruneRequest, reporter: Reporter, *, as_json: bool) -> None:
    """Write a pruned and verified checkpoint into a folder; publish nothing."""
    from hubprune.commands import summary
    from hubprune.workflows import prune as workflow

    pruned = workflow.prune(request, reporter=reporter)
    written = f"{summary.checkpoint_lines(pruned.written)}\n\nwritten and verified: {Path(request.out)}"
    show(to_json(pruned) if as_json else written)


def adopt(request: requests.AdoptRequest, reporter: Reporter, *, as_json: bool) -> None:
    """Read what others published pruned, and write it anew so that it loads, verified; `publish --adopt` publishes."""
    from hubprune.commands import summary
    from hubprune.workflows import adopt as adopting

    done = adopting.adopt(request, reporter=reporter)
    show(to_json(done) if as_json else summary.adoption_lines(done, out=Path(request.out) if request.out else None))


def heal(request: requests.HealRequest, reporter: Reporter, *, as_json: bool) -> None:
    """Train a pruned folder or repo until it says again what its base does, and write it, verified, into a folder."""
    from hubprune.commands import summary
    from hubprune.workflows import heal as healing

    healed = healing.heal(request, reporter=reporter)
    show(to_json(healed) if as_json else f"{summary.healing_lines(healed)}\n\nhealed and verified: {Path(request.out)}")


def verify(request: requests.VerifyRequest, reporter: Reporter, *, as_json: bool) -> None:
    """Check a pruned folder or repo against its base: files, loading, logits, KV cache."""
    from hubprune.commands import summary
    from hubprune.workflows import verify as checkup

    seen = checkup.check(request, reporter=reporter)
    show(to_json(seen) if as_json else summary.table(summary.check_rows(seen), left=3))
    checkup.require_passed(seen)


def sweep(request: requests.SweepRequest, reporter: Reporter, *, as_json: bool) -> None:
    """Measure what every number of drops costs, without writing a checkpoint, and recommend one."""
    from hubprune.commands.measured_lines import sweep_lines
    from hubprune.workflows import sweep as sweeping

    done = sweeping.sweep(request, reporter=reporter)
    show(sweeping.to_json(done) if as_json else sweep_lines(done, out=Path(request.out) if request.out else None))


def speed(request: requests.SpeedRequest, reporter: Reporter, *, as_json: bool) -> None:
    """Time a pruned folder or repo against its base in paired rounds, and measure the memory of both."""
    from hubprune.commands.measured_lines import speed_lines
    from hubprune.workflows.speed import measure_speed

    done = measure_speed(request, reporter=reporter)
    show(to_json(done) if as_json else speed_lines(done))


def compare(request: requests.CompareRequest, reporter: Reporter, *, as_json: bool) -> None:
    """Compare two pruned folders, repos, reports or plans: what went, what is left, what was measured."""
    from hubprune.commands.side_by_side import comparison_text
    from hubprune.workflows import compare as comparison

    seen = comparison.compare(request)
    show(to_json(seen) if as_json else comparison_text(seen))
