"""`hubprune score`, `prune` and `verify`: what a publish does, one step at a time."""

from __future__ import annotations

from hubprune.commands import options, variants
from hubprune.commands.recipes import make_recipe
from hubprune.commands.terminal import errors_shown, open_run, open_session, show, to_json

SCORE_EXAMPLES = (
    "Examples:  hubprune score meta-llama/Llama-3.2-3B --attn-drop 3 --num-samples 128"
    "  |  hubprune score meta-llama/Llama-3.2-3B --calibration cosmopedia,c4,lima --plot pictures"
)
PRUNE_EXAMPLES = "Example:  hubprune prune meta-llama/Llama-3.2-3B --drop-attn 18,21,22 --out pruned"
VERIFY_EXAMPLES = "Examples:  hubprune verify ./pruned --base ./base  |  hubprune verify me/Llama-3.2-3B-attn-drop-3"


def score(
    base: options.BaseOrFolder,
    revisions: variants.Revisions = None,
    calibration: variants.Calibrations = None,
    num_samples: variants.Samples = None,
    attn_drop: options.Marked = "1",
    protect: options.Protect = None,
    base_revision: options.BaseRevision = None,
    max_tokens: options.MaxTokens = None,
    metric: options.Metric = None,
    aggregation: options.Aggregation = None,
    score_batch_size: options.ScoreBatchSize = None,
    plot: variants.Plot = None,
    endpoint: options.Endpoint = None,
    seed: options.Seed = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    as_json: options.Json = False,
) -> None:
    """Score attention, MLP and block importance of every layer: once, or side by side; --plot draws it."""
    given = locals()
    with errors_shown() as reporter:
        asked = variants.read_variants(given)
        made = {label: open_run(recipe, endpoint, reporter) for label, recipe in asked.recipes.items()}
        from hubprune.commands.side_by_side import scored_text
        from hubprune.workflows import score as studies

        done = studies.conduct(asked.kind, made, counts=asked.counts, plot=plot)
        show(to_json(done.value) if as_json else scored_text(done))


def prune(
    base: options.BaseOrFolder,
    out: options.NewFolder,
    attn_drop: options.AttnDrop = None,
    mlp_drop: options.MlpDrop = None,
    block_drop: options.BlockDrop = None,
    joint_drop: options.JointDrop = None,
    drop_attn: options.DropAttn = None,
    drop_mlp: options.DropMlp = None,
    drop_neurons: options.DropNeurons = None,
    mlp_width: options.MlpWidth = None,
    expansion_ratio: options.ExpansionRatio = None,
    width_metric: options.WidthMetric = None,
    width_multiple: options.WidthMultiple = None,
    schedule: options.Schedule = None,
    protect: options.Protect = None,
    layout: options.Layout = None,
    base_revision: options.BaseRevision = None,
    calibration: options.Calibration = None,
    num_samples: options.NumSamples = None,
    max_tokens: options.MaxTokens = None,
    metric: options.Metric = None,
    aggregation: options.Aggregation = None,
    score_batch_size: options.ScoreBatchSize = None,
    endpoint: options.Endpoint = None,
    seed: options.Seed = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    as_json: options.Json = False,
) -> None:
    """Write a pruned and verified checkpoint into a folder; publish nothing."""
    given = locals()
    with errors_shown() as reporter:
        made = open_run(make_recipe(given), endpoint, reporter)
        from hubprune.commands import summary
        from hubprune.workflows import run as stages

        _, pruned = stages.prune(made, out)
        show(to_json(pruned) if as_json else summary.pruned_lines(pruned.written, folder=out))


def verify(
    checkpoint: options.Checkpoint,
    base: options.VerifyBase = None,
    revision: options.VerifyRevision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    endpoint: options.Endpoint = None,
    as_json: options.Json = False,
) -> None:
    """Check a pruned folder or repo against its base: files, loading, logits, KV cache."""
    with errors_shown() as reporter:
        session = open_session(endpoint)
        from hubprune.commands import summary
        from hubprune.workflows import verify as checkup

        seen = checkup.check(
            checkpoint,
            base=base,
            revision=revision,
            trust="any" if trust_remote_code else "own",
            session=session,
            reporter=reporter,
        )
        show(to_json(seen) if as_json else summary.verification_table(seen))
        checkup.require_passed(seen)
