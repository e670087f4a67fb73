"""The command line: options become a recipe, the pipeline runs it, the result is printed.

Only this module, its options and `terminal` know about typer.  Nothing heavy is imported before a command needs it, so
that `--help` answers at once.
"""

from __future__ import annotations

import signal
import sys
from typing import NoReturn

import typer

from hubprune import card_options, options, reproduce_command, speed_options, sweep_options, variants
from hubprune.processes import rank
from hubprune.terminal import INTERRUPTED, dismiss, errors_shown, follow, open_run, open_session, show_page, to_json

app = typer.Typer(
    name="hubprune",
    help="Prune a language model from the Hugging Face Hub, measure what it cost, publish the result.",
    epilog="Start with: hubprune demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
export = typer.Typer(help="Write a checkpoint in the format of another runtime.", no_args_is_help=True)
app.add_typer(export, name="export")


def main() -> NoReturn:
    """Run the command line."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        if rank() > 0:
            follow()
        else:
            app()
    except KeyboardInterrupt:  # in the moment before or after a command
        sys.exit(INTERRUPTED)
    except SystemExit as end:
        if not end.code:  # where something failed, whoever started the processes ends the others
            dismiss()
        raise
    sys.exit(0)


def _interrupt(number: int, frame: object) -> NoReturn:
    """Let a polite kill clean up like Ctrl-C."""
    raise KeyboardInterrupt


@app.callback()
def _hubprune(version: options.Version = False) -> None:
    """Prune a language model from the Hugging Face Hub, measure what it cost, publish the result."""


@app.command(
    epilog="Examples:  hubprune publish meta-llama/Llama-3.2-3B --attn-drop 3"
    "  |  hubprune publish mistralai/Mistral-7B-v0.1 --drop-attn 18,21,22 --limit 200 --dry-run"
)
def publish(
    base: options.Base = None,
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
    tasks: options.Tasks = None,
    num_fewshot: options.NumFewshot = None,
    limit: options.Limit = None,
    include_path: options.IncludePath = None,
    batch_size: options.BatchSize = None,
    eval_backend: options.EvalBackend = None,
    prompts: options.Prompts = None,
    repo_id: options.RepoId = None,
    revision: options.Revision = None,
    private: options.Private = None,
    create_pr: options.CreatePr = None,
    license: card_options.License = None,
    allow_name: card_options.AllowName = None,
    notes: card_options.Notes = None,
    card_template: card_options.CardTemplate = None,
    overwrite_card: options.OverwriteCard = False,
    dry_run: options.DryRun = False,
    out: options.Out = None,
    recipe: options.RecipeFile = None,
    report: options.ReportFile = None,
    endpoint: options.Endpoint = None,
    seed: options.Seed = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    as_json: options.Json = False,
) -> None:
    """Score, prune, verify, benchmark and publish a base in one commit, then load it back."""
    given = locals()
    with errors_shown() as reporter:
        run = open_run(options.make_recipe(given), endpoint, reporter)
        from hubprune import pipeline, summary

        done = pipeline.publish(run, pipeline.PublishOptions.of(given))
        typer.echo(pipeline.to_json(done) if as_json else summary.publish_summary(done))


@app.command(
    epilog="Examples:  hubprune score meta-llama/Llama-3.2-3B --attn-drop 3 --num-samples 128"
    "  |  hubprune score meta-llama/Llama-3.2-3B --calibration cosmopedia,c4,lima --plot pictures"
)
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
        from hubprune import studies

        done = studies.conduct(asked.kind, made, counts=asked.counts, plot=plot)
        typer.echo(to_json(done.value) if as_json else done.text)


@app.command(epilog="Example:  hubprune prune meta-llama/Llama-3.2-3B --drop-attn 18,21,22 --out pruned")
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
        made = open_run(options.make_recipe(given), endpoint, reporter)
        from hubprune import run as stages
        from hubprune import summary

        _, pruned = stages.prune(made, out)
        typer.echo(to_json(pruned) if as_json else summary.pruned_lines(pruned.written, folder=out))


@app.command(epilog="Examples:  hubprune verify ./pruned --base ./base  |  hubprune verify me/Llama-3.2-3B-attn-drop-3")
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
        from hubprune import checkup, summary

        seen = checkup.check(
            checkpoint,
            base=base,
            revision=revision,
            trust="any" if trust_remote_code else "own",
            session=session,
            reporter=reporter,
        )
        typer.echo(to_json(seen) if as_json else summary.verification_table(seen))
        checkup.require_passed(seen)


app.command(epilog=reproduce_command.EPILOG)(reproduce_command.reproduce)


@app.command(
    epilog="Examples:  hubprune sweep meta-llama/Llama-3.2-3B --method attn,joint --counts 0:12 --limit 200 --out sweep"
    "  |  hubprune sweep ./base --tasks none --perplexity texts.jsonl"
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
        from hubprune.sweep import command, report

        done = command.sweep(run, request)
        typer.echo(report.to_json(done) if as_json else report.lines(done, out=out))


@app.command(
    epilog="Examples:  hubprune speed me/Llama-3.2-3B-attn-drop-3"
    "  |  hubprune speed ./base ./pruned --depths 0,1024 --batch-size 8 --report speed.json"
)
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
        from hubprune.timing import command, lines

        done = command.measure_speed(pruned, request, session=session, reporter=reporter)
        typer.echo(to_json(done) if as_json else lines.speed_lines(done))


@app.command(
    epilog="Examples:  hubprune compare ./attn-drop-3 ./attn-drop-6"
    "  |  hubprune compare me/Llama-3.2-3B-attn-drop-3 me/Llama-3.2-3B-attn-drop-3@v2"
)
def compare(
    first: options.Compared, second: options.Compared, endpoint: options.Endpoint = None, as_json: options.Json = False
) -> None:
    """Compare two pruned folders, repos, reports or plans: what went, what is left, what was measured."""
    with errors_shown():
        session = open_session(endpoint)
        from hubprune import comparison

        seen = comparison.compare(first, second, session=session)
        typer.echo(to_json(seen) if as_json else comparison.comparison_text(seen))


@app.command(epilog="Examples:  hubprune preview ./kept  |  hubprune preview me/Llama-3.2-3B-attn-drop-3@v2")
def preview(
    published: options.Published,
    no_open: options.NoOpen = False,
    port: options.HubPort = 0,
    endpoint: options.Endpoint = None,
) -> None:
    """Show the card of a folder or repo in a browser, as the Hub would, until Ctrl-C."""
    with errors_shown() as reporter:
        from hubprune import cards

        shown = cards.preview(published, open_session=lambda: open_session(endpoint), reporter=reporter)
        show_page(shown, port=port, opens=not no_open, reporter=reporter)


@export.command(epilog="Example:  hubprune export gguf me/Llama-3.2-3B-attn-drop-3 --outtype q8_0 --out pruned.gguf")
def gguf(
    checkpoint: options.Checkpoint,
    out: options.ExportOut = None,
    outtype: options.Outtype = "f16",
    base: options.ControlBase = None,
    revision: options.VerifyRevision = None,
    no_verify: options.NoVerify = False,
    endpoint: options.Endpoint = None,
    as_json: options.Json = False,
) -> None:
    """Write a GGUF file for llama.cpp, and compare it with the checkpoint in transformers."""
    with errors_shown() as reporter:
        session = open_session(endpoint)
        from hubprune.exporting import command, lines

        chosen = command.ExportOptions(
            out=out,
            outtype=command.check_outtype(outtype),
            base=base,
            revision=revision or "main",
            verify="skip" if no_verify else "compare",
        )
        made = command.export_gguf(checkpoint, chosen, session=session, reporter=reporter)
        typer.echo(to_json(made) if as_json else lines.export_lines(made))


@app.command(epilog="Example:  hubprune hub --dir ./hub --port 8080")
def hub(
    directory: options.HubDirectory,
    port: options.HubPort = 0,
    no_xet: options.NoXet = False,
) -> None:
    """Serve a local Hub on loopback; the first two lines on stdout are HF_ENDPOINT=... and HF_TOKEN=..."""
    with errors_shown():
        from hubprune.localhub import serve

        serve(directory, port=port, xet=not no_xet, announce=lambda line: print(line, flush=True))


@app.command(epilog="Example:  hubprune demo --base tiny-mistral")
def demo(base: options.DemoBase = "tiny-llama", directory: options.DemoDirectory = None) -> None:
    """Publish an embedded tiny model on a local Hub, with every stage and nothing to download."""
    with errors_shown() as reporter:
        from hubprune import demonstration

        raise typer.Exit(demonstration.run(base, directory=directory, reporter=reporter))


@app.command()
def env(as_json: options.Json = False) -> None:
    """Print versions, machine, and where unfinished work is kept."""
    from hubprune import summary
    from hubprune.environment import describe_environment
    from hubprune.stages import work_folder

    found = describe_environment()
    typer.echo(to_json(found) if as_json else f"{summary.environment_table(found)}\nwork folder  {work_folder()}")
