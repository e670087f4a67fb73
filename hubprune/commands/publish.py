"""`hubprune publish`."""

from __future__ import annotations

import json

from hubprune.commands import card_options, job_options, options
from hubprune.commands.ci import told_to_job
from hubprune.commands.recipes import make_recipe
from hubprune.commands.terminal import edits_as_json, errors_shown, open_run, show

JOB_OPTIONS = ("on", "flavor", "timeout", "namespace", "requirement")
EXAMPLES = (
    "Examples:  hubprune publish meta-llama/Llama-3.2-3B --attn-drop 3"
    "  |  hubprune publish mistralai/Mistral-7B-v0.1 --drop-attn 18,21,22 --limit 200 --dry-run"
    "  |  hubprune publish --recipe recipe.yaml --on hf-jobs --flavor a100-large"
)


def publish(
    base: options.Base = None, attn_drop: options.AttnDrop = None, mlp_drop: options.MlpDrop = None,
    block_drop: options.BlockDrop = None, joint_drop: options.JointDrop = None,
    drop_attn: options.DropAttn = None, drop_mlp: options.DropMlp = None,
    drop_neurons: options.DropNeurons = None, mlp_width: options.MlpWidth = None,
    expansion_ratio: options.ExpansionRatio = None, width_metric: options.WidthMetric = None,
    width_multiple: options.WidthMultiple = None, schedule: options.Schedule = None,
    protect: options.Protect = None, layout: options.Layout = None, base_revision: options.BaseRevision = None,
    calibration: options.Calibration = None, num_samples: options.NumSamples = None,
    max_tokens: options.MaxTokens = None, metric: options.Metric = None,
    aggregation: options.Aggregation = None, score_batch_size: options.ScoreBatchSize = None,
    tasks: options.Tasks = None, num_fewshot: options.NumFewshot = None, max_drop_pp: options.MaxDropPp = None,
    limit: options.Limit = None, include_path: options.IncludePath = None, batch_size: options.BatchSize = None,
    eval_backend: options.EvalBackend = None, prompts: options.Prompts = None, repo_id: options.RepoId = None,
    revision: options.Revision = None, private: options.Private = None, create_pr: options.CreatePr = None,
    staged: options.Staged = None, collection: options.Collection = None, supersedes: options.Supersedes = None,
    license: card_options.License = None, allow_name: card_options.AllowName = None,
    notes: card_options.Notes = None, card_template: card_options.CardTemplate = None,
    speed: card_options.Speed = False, overwrite_card: options.OverwriteCard = False,
    overwrite: options.Overwrite = False,
    primer: options.Primer = True, force: options.Force = False, only_if_changed: options.OnlyIfChanged = False,
    dry_run: options.DryRun = False, out: options.Out = None, recipe: options.RecipeFile = None,
    report: options.ReportFile = None, endpoint: options.Endpoint = None, seed: options.Seed = None,
    device: options.Device = None, dtype: options.Dtype = None, on: job_options.On = None,
    flavor: job_options.Flavor = None, timeout: job_options.Timeout = None,
    namespace: job_options.Namespace = None, requirement: job_options.Requirement = None,
    as_json: options.Json = False,
) -> None:  # fmt: skip
    """Score, prune, verify, benchmark and publish a base in one commit, then load it back."""
    given = locals()
    with errors_shown() as reporter, told_to_job(reporter) as told, edits_as_json(wanted=as_json):
        run = open_run(make_recipe(given), endpoint, reporter)
        from hubprune.commands import summary
        from hubprune.workflows.publish import pipeline

        chosen = pipeline.PublishOptions.of(given, told=told)
        if any(given[name] is not None for name in JOB_OPTIONS):
            from hubprune.workflows.jobs import publish_on_jobs

            job = publish_on_jobs(run, chosen, given)
            show(json.dumps(job, indent=2) if as_json else summary.table(list(map(list, job.items())), left=2))
            return
        done = pipeline.publish(run, chosen)
        show(pipeline.to_json(done) if as_json else summary.publish_summary(done))
