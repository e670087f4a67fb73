"""`hubprune publish` and `hubprune push`."""

from __future__ import annotations

import json

from hubprune.commands.terminal import edits_as_json, show
from hubprune.core.console import Reporter
from hubprune.core.requests import JobRequest, PushRequest

PUBLISH_EXAMPLES = (
    "Examples:  hubprune publish meta-llama/Llama-3.2-3B --attn-drop 3"
    "  |  hubprune publish mistralai/Mistral-7B-v0.1 --drop-attn 18,21,22 --limit 200 --dry-run"
    "  |  hubprune publish --recipe recipe.yaml --on hf-jobs --flavor a100-large"
)
PUSH_EXAMPLES = (
    "Example:  hubprune publish --recipe recipe.yaml --repo-id me/tiny --dry-run --out result --report report.json"
    "  &&  hubprune push result report.json"
)


def publish(request: JobRequest, reporter: Reporter, *, as_json: bool) -> None:
    """Score, prune, verify, benchmark and publish a base in one commit, then load it back."""
    from hubprune.commands import summary
    from hubprune.commands.ci import told_to_job
    from hubprune.workflows import jobs
    from hubprune.workflows.publish import pipeline

    with told_to_job(reporter) as told, edits_as_json(wanted=as_json):
        if request.runs_elsewhere:
            job = jobs.publish_on_jobs(request, reporter=reporter)
            show(json.dumps(job, indent=2) if as_json else summary.table(list(map(list, job.items())), left=2))
            return
        done = pipeline.publish(request, reporter=reporter, told=told)
        show(pipeline.to_json(done) if as_json else summary.publish_summary(done))


def push(request: PushRequest, reporter: Reporter, *, as_json: bool) -> None:
    """Publish what a dry run made, on another machine and with another token if need be; nothing is computed again."""
    from hubprune.commands import summary
    from hubprune.commands.ci import told_to_job
    from hubprune.workflows import push as pushing
    from hubprune.workflows.publish import pipeline

    with told_to_job(reporter) as told, edits_as_json(wanted=as_json):
        done = pushing.push(request, reporter=reporter, told=told)
        show(pipeline.to_json(done) if as_json else summary.publish_summary(done))
