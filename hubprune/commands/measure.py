"""`hubprune sweep`, `speed` and `compare`: what dropping costs and brings."""

from __future__ import annotations

from hubprune.commands import options, speed_options, sweep_options
from hubprune.commands.terminal import errors_shown, open_run, open_session, show, to_json

SWEEP_EXAMPLES = (
    "Examples:  hubprune sweep meta-llama/Llama-3.2-3B --method attn,joint --counts 0:12 --limit 200 --out sweep"
    "  |  hubprune sweep ./base --tasks none --perplexity texts.jsonl"
)
SPEED_EXAMPLES = (
    "Examples:  hubprune speed me/Llama-3.2-3B-attn-drop-3"
    "  |  hubprune speed ./base ./pruned --depths 0,1024 --batch-size 8 --report speed.json"
)
COMPARE_EXAMPLES = (
    "Examples:  hubprune compare ./attn-drop-3 ./attn-drop-6"
    "  |  hubprune compare me/Llama-3.2-3B-attn-drop-3 me/Llama-3.2-3B-attn-drop-3@v2"
)


def sweep(
    base: options.BaseOrFolder,
    method: sweep_options.Methods = "attn",
    counts: sweep_options.Counts = "0:12",
    protect: options.Protect = None,
    base_revision: options.BaseRevision = None,
    calibration: options.Calibration = None,
    num_samples: options.NumSamples = None,
    max_tokens: options.MaxTokens = None,
    metric: options.Metric = None,
    aggregation: options.Aggregation = None,
    score_batch_size: options.ScoreBatchSize = None,
    tasks: options.Tasks = None,
    num_fewshot: options.NumFewshot = None,
    limit: options.Limit = None,
    include_path: options.IncludePath = None,
    batch_size: options.BatchSize = None,
    eval_backend: options.EvalBackend = None,
    perplexity: sweep_options.Perplexity = None,
    perplexity_samples: sweep_options.PerplexitySamples = None,
    speed: sweep_options.Speed = False,
    speed_depth: sweep_options.SpeedDepth = 512,
    speed_rounds: sweep_options.SpeedRounds = 20,
    max_loss: sweep_options.MaxLoss = 1.0,
    max_rise: sweep_options.MaxRise = 5.0,
    out: sweep_options.Out = None,
    endpoint: options.Endpoint = None,
    seed: options.Seed = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    as_json: options.Json = False,
) -> None:
    """Measure what every number of drops costs, without writing a checkpoint, and recommend one."""
    given = locals()
    with errors_shown() as reporter:
        recipe, request = sweep_options.make_sweep(given)
        run = open_run(recipe, endpoint, reporter)
        from hubprune.commands.sweep_lines import sweep_lines
        from hubprune.workflows.sweep import report
        from hubprune.workflows.sweep import sweep as measure

        done = measure(run, request)
        show(report.to_json(done) if as_json else sweep_lines(done, out=out))


def speed(
    first: speed_options.First,
    second: speed_options.Second = None,
    depths: speed_options.Depths = "0,512,2048",
    new_tokens: speed_options.NewTokens = 32,
    batch_size: speed_options.BatchSize = 1,
    rounds: speed_options.Rounds = 20,
    largest_batch: speed_options.LargestBatch = False,
    revision: options.VerifyRevision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    report: options.ReportFile = None,
    endpoint: options.Endpoint = None,
    seed: speed_options.Seed = 0,
    device: options.Device = None,
    dtype: options.Dtype = None,
    as_json: options.Json = False,
) -> None:
    """Time a pruned folder or repo against its base in paired rounds, and measure the memory of both."""
    given = locals()
    with errors_shown(resume=speed_options.AGAIN) as reporter:
        pruned, request = speed_options.make_request(given)
        session = open_session(endpoint)
        from hubprune.commands import speed_lines as lines
        from hubprune.workflows import speed as timing

        done = timing.measure_speed(pruned, request, session=session, reporter=reporter)
        show(to_json(done) if as_json else lines.speed_lines(done))


def compare(
    first: options.Compared, second: options.Compared, endpoint: options.Endpoint = None, as_json: options.Json = False
) -> None:
    """Compare two pruned folders, repos, reports or plans: what went, what is left, what was measured."""
    with errors_shown():
        session = open_session(endpoint)
        from hubprune.commands.side_by_side import comparison_text
        from hubprune.workflows import compare as comparison

        seen = comparison.compare(first, second, session=session)
        show(to_json(seen) if as_json else comparison_text(seen))
