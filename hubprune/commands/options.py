"""Options that several commands share, and how they become a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hubprune import __version__
from hubprune.core.suites import DEFAULT_SUITE, describe

if TYPE_CHECKING:
    pass

DROPPING, SCORING, MEASURING, TARGET, RUNNING = "What to drop", "Scoring", "Measuring", "Where it goes", "How it runs"

Base = Annotated[str | None, typer.Argument(help="Repo id of the base, as in meta-llama/Llama-3.2-3B.")]
BaseOrFolder = Annotated[str, typer.Argument(help="Repo id of the base, or a local folder.")]
BaseRevision = Annotated[
    str | None, typer.Option(help="Branch, tag or commit of the base. Default: main.", rich_help_panel=DROPPING)
]
AttnDrop = Annotated[
    str | None,
    typer.Option(
        metavar="N|N%", help="Drop the N attention sublayers with the lowest score.", rich_help_panel=DROPPING
    ),
]
MlpDrop = Annotated[
    str | None,
    typer.Option(metavar="N|N%", help="Drop the N MLP sublayers with the lowest score.", rich_help_panel=DROPPING),
]
BlockDrop = Annotated[
    str | None,
    typer.Option(metavar="N|N%", help="Drop the N whole layers with the lowest score.", rich_help_panel=DROPPING),
]
JointDrop = Annotated[
    str | None,
    typer.Option(
        metavar="N|N%",
        help="Drop the N lowest of attentions and MLPs, ranked in one list.",
        rich_help_panel=DROPPING,
    ),
]
DropAttn = Annotated[
    str | None,
    typer.Option(metavar="18,21,22", help="Drop the attention of exactly these layers.", rich_help_panel=DROPPING),
]
DropMlp = Annotated[
    str | None,
    typer.Option(metavar="18,21,22", help="Drop the MLP of exactly these layers.", rich_help_panel=DROPPING),
]
DropNeurons = Annotated[
    str | None,
    typer.Option(metavar="60%", help="Share of every MLP's neurons that goes.", rich_help_panel=DROPPING),
]
MlpWidth = Annotated[
    str | None,
    typer.Option(
        metavar="N|N,N,...", help="Neurons that every MLP keeps, or one number per layer.", rich_help_panel=DROPPING
    ),
]
ExpansionRatio = Annotated[
    float | None,
    typer.Option(metavar="R", help="Neurons that every MLP keeps, over hidden size.", rich_help_panel=DROPPING),
]
WidthMetric = Annotated[
    str | None,
    typer.Option(
        metavar="max_abs|ppm|vow|pon|l2", help="Importance of a neuron. Default: max_abs.", rich_help_panel=DROPPING
    ),
]
WidthMultiple = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Round widths to a multiple of N; 1 takes the share exactly. Default: 64.",
        rich_help_panel=DROPPING,
    ),
]
Schedule = Annotated[
    str | None,
    typer.Option(
        metavar="one-shot|iterative",
        help="Drop by one set of scores, or score again after every drop. Default: one-shot.",
        rich_help_panel=DROPPING,
    ),
]
Metric = Annotated[
    str | None,
    typer.Option(
        metavar="cosine|cosine-no-residual|relative-magnitude|reverse-order|random",
        help="What sublayers are ranked by. Default: cosine.",
        rich_help_panel=SCORING,
    ),
]
Protect = Annotated[
    str | None, typer.Option(metavar="0,1", help="Layers that are never dropped.", rich_help_panel=DROPPING)
]
Layout = Annotated[
    str | None,
    typer.Option(
        metavar="auto|stock|nemotron-nas|pruned",
        help="How it is written. Default: auto, what most runtimes can load.",
        rich_help_panel=DROPPING,
    ),
]
Calibration = Annotated[
    str | None,
    typer.Option(
        help="`cosmopedia` (the default), `c4`, `codealpaca`, `mathinstruct`, `lima`, a .yaml with a mix, or a file "
        "of documents.",
        rich_help_panel=SCORING,
    ),
]
NumSamples = Annotated[
    int | None,
    typer.Option(
        help="Calibration documents in all, or packed sequences. Default: the mix's own, 400 for cosmopedia.",
        rich_help_panel=SCORING,
    ),
]
MaxTokens = Annotated[
    int | None,
    typer.Option(
        help="Tokens after which a document is cut off, or per packed sequence. Default: the mix's own, 512 for "
        "cosmopedia.",
        rich_help_panel=SCORING,
    ),
]
Aggregation = Annotated[
    str | None,
    typer.Option(
        metavar="document|token", help="What the scores average over. Default: document.", rich_help_panel=SCORING
    ),
]
ScoreBatchSize = Annotated[
    int | None, typer.Option(help="Documents per batch while scoring. Default: 8.", rich_help_panel=SCORING)
]
Tasks = Annotated[
    str | None,
    typer.Option(
        metavar="a,b,c",
        help=f"Suites or lm-eval tasks, in any mixture, or none. Default: {DEFAULT_SUITE}. Suites: {describe()}.",
        rich_help_panel=MEASURING,
    ),
]
NumFewshot = Annotated[
    str | None,
    typer.Option(
        metavar="N|TASK=N,...",
        help="Examples before each question, of all tasks or of single ones. Default: the suite's or the task's own.",
        rich_help_panel=MEASURING,
    ),
]
MaxDropPp = Annotated[
    str | None,
    typer.Option(
        metavar="TASK=POINTS,...|none",
        help="Publish nothing, and exit with 4, where a task, or the mean of all (mean=3), lost more points than this.",
        rich_help_panel=MEASURING,
    ),
]
Limit = Annotated[int | None, typer.Option(help="Documents per task at most.", rich_help_panel=MEASURING)]
IncludePath = Annotated[
    str | None,
    typer.Option(metavar="FOLDER", help="Task YAMLs of your own; they are published too.", rich_help_panel=MEASURING),
]
BatchSize = Annotated[
    int | None,
    typer.Option(help="Benchmark sequences per batch. Default: as many as fit.", rich_help_panel=MEASURING),
]
EvalBackend = Annotated[
    str | None,
    typer.Option(
        metavar="shared|hf",
        help="Run what base and pruned model share once (default), or lm-eval's own backend for each.",
        rich_help_panel=MEASURING,
    ),
]
Prompts = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Prompts for the free text, one per line.", rich_help_panel=MEASURING),
]
RepoId = Annotated[
    str | None,
    typer.Option(help="Target. Default: <your namespace>/<base>-attn-drop-<N>.", rich_help_panel=TARGET),
]
Revision = Annotated[str | None, typer.Option(help="Branch of the target. Default: main.", rich_help_panel=TARGET)]
Private = Annotated[
    bool | None, typer.Option("--private", help="Create the target as a private repo.", rich_help_panel=TARGET)
]
CreatePr = Annotated[
    bool | None,
    typer.Option("--create-pr", help="Open a pull request instead of committing.", rich_help_panel=TARGET),
]
Staged = Annotated[
    bool | None,
    typer.Option(
        "--staged",
        help="Open a pull request, load the result back from it, and only then merge it.",
        rich_help_panel=TARGET,
    ),
]
Collection = Annotated[
    str | None,
    typer.Option(
        metavar="SLUG|TITLE", help="Collection to add the result to; made where it is missing.", rich_help_panel=TARGET
    ),
]
Supersedes = Annotated[
    str | None,
    typer.Option(
        metavar="REPO",
        help="Propose to this repo, by pull request, to name the result as its new version.",
        rich_help_panel=TARGET,
    ),
]
OverwriteCard = Annotated[
    bool,
    typer.Option("--overwrite-card", help="Replace a README.md that was edited on the Hub.", rich_help_panel=TARGET),
]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        help="Replace whatever was changed on the Hub since the last publish: weights, configs, tokenizer, card. "
        "Without it, a publish stops there and exits with 5.",
        rich_help_panel=TARGET,
    ),
]
NoOpen = Annotated[bool, typer.Option("--no-open", help="Print the address of the preview, and open no browser.")]
Primer = Annotated[
    bool,
    typer.Option(
        "--primer/--no-primer",
        help="Ask the Hub first which parts of the base it has, so that they are not sent; costs up to 0.3 MB a shard.",
        rich_help_panel=TARGET,
    ),
]
Force = Annotated[
    bool,
    typer.Option("--force", help="Run even if the last publish is up to date.", rich_help_panel=TARGET),
]
OnlyIfChanged = Annotated[
    bool,
    typer.Option(
        "--only-if-changed",
        help="Compute nothing for --dry-run and --out either where the last publish is up to date.",
        rich_help_panel=TARGET,
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Do everything but write to the Hub; print the card, the files and how much would be sent.",
        rich_help_panel=TARGET,
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="New folder that keeps the published files.", rich_help_panel=TARGET),
]
RecipeFile = Annotated[Path | None, typer.Option(metavar="FILE", help="YAML with all of this; options win over it.")]
ReportFile = Annotated[Path | None, typer.Option(metavar="FILE", help="Write the whole report as JSON.")]
Seed = Annotated[int | None, typer.Option(help="Seed of the calibration draw and of the benchmarks. Default: 0.")]
Device = Annotated[
    str | None,
    typer.Option(
        metavar="auto|cpu|mps|cuda[:N]", help="Where to compute. Default: auto, the first GPU or else the CPU."
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        metavar="auto|float32|bfloat16|float16",
        help="dtype to compute in; files are never cast. Default: auto, the base's own.",
    ),
]
Endpoint = Annotated[
    str | None, typer.Option(help="Address of the Hub. Default: HF_ENDPOINT, else https://huggingface.co.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Marked = Annotated[
    str, typer.Option(metavar="N", help="Mark the N attention sublayers that would go.", rich_help_panel=DROPPING)
]
NewFolder = Annotated[Path, typer.Option(metavar="FOLDER", help="New folder for the checkpoint.")]
ExportOut = Annotated[
    Path | None,
    typer.Option("--out", metavar="FILE", help="New file. Default: <checkpoint>-<OUTTYPE>.gguf in this folder."),
]
Outtype = Annotated[
    str, typer.Option(metavar="f32|f16|bf16|q8_0", help="Type of the matrices; norms and biases stay f32.")
]
ControlBase = Annotated[
    str | None,
    typer.Option(
        "--base", help="Folder or repo of the unpruned base, compared as a control. Default: the one it names, if here."
    ),
]
NoVerify = Annotated[bool, typer.Option("--no-verify", help="Do not compare the file with transformers.")]
Checkpoint = Annotated[str, typer.Argument(metavar="FOLDER_OR_REPO", help="A folder or repo that hubprune wrote.")]
Compared = Annotated[
    str,
    typer.Argument(
        help="A pruned folder, a repo id (with @ and a revision where it is not main), a report or a plan as JSON."
    ),
]
VerifyBase = Annotated[str | None, typer.Option(help="Repo id or folder of the base. Default: the one it names.")]
VerifyRevision = Annotated[str | None, typer.Option(help="Branch, tag or commit of the repo. Default: main.")]
TrustRemoteCode = Annotated[
    bool,
    typer.Option("--trust-remote-code", help="Run its modeling file even if this version of hubprune writes another."),
]
HubDirectory = Annotated[
    Path, typer.Option("--dir", metavar="FOLDER", help="Where repos, objects and tokens are kept.")
]
HubPort = Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 takes a free one.")]
NoXet = Annotated[bool, typer.Option("--no-xet", help="Announce no Xet, so that downloads take the LFS path.")]
DemoBase = Annotated[str, typer.Option(metavar="tiny-llama|tiny-mistral", help="Which embedded model.")]
DemoDirectory = Annotated[
    Path | None, typer.Option("--dir", metavar="FOLDER", help="Where the demo keeps its Hub. Default: the work folder.")
]


def _show_version(wanted: bool) -> None:  # noqa: FBT001
    if wanted:
        typer.echo(f"hubprune {__version__}")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
]
