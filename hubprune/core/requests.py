"""One request per command: what `hubprune publish`, `score` and the others can be asked, and the same calls in Python.

`hubprune.core.options` has the groups that they share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

# fmt: off
# isort: off
from hubprune.core.afterwards import (
    Checkpoint, VerifyRequest, LoadRequest, ReproduceRequest, RefreshRequest, CardRequest, ExportRequest,
)
from hubprune.core.options import (
    BESIDE, CARD, DROPPING, ELSEWHERE, MEASURING, SCORING, STUDY, TARGET, Argument, BaseOrFolder, Budgeted,
    CardTemplate, Delivering, Device, Dropping, Dtype, Measuring, Notes, OnHub, Option, Place, RepoRevision,
    ReportFile, Scoring, TRAINING, Target, TrustRemoteCode, Weighing,
)
# isort: on

__all__ = [
    "AdoptRequest", "CardRequest", "CompareRequest", "DoctorRequest", "ExportRequest", "HealRequest",
    "JobRequest", "LoadRequest", "PruneRequest", "PublishRequest", "PushRequest", "QuantizeRequest",
    "RefreshRequest", "ReproduceRequest", "ScoreRequest", "SpeedRequest", "SweepRequest", "VerifyRequest",
]

# ---- making --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class PublishRequest(Dropping, Scoring, Measuring, Target, Delivering):
    """Score, prune, verify, benchmark and publish a base."""

    everyday: ClassVar[tuple[str, ...]] = ("attn_drop", "tasks", "repo_id", "private", "dry_run", "recipe")
    """Options that the help shows first."""

    base: Annotated[str | None, Argument(
        "Repo id of the base, as in meta-llama/Llama-3.2-3B.")] = field(default=None, kw_only=False)
    from_sweep: Annotated[Place | None, Option(
        "Publish what the sweep in this folder recommends. Of several methods name one: --attn-drop auto.",
        metavar="FOLDER", panel=DROPPING)] = None
    max_loss: Annotated[str | int | float | Mapping[str, float] | None, Option(
        "Publish nothing, and exit with 4, where the mean of all tasks, or a task (piqa=5), lost more points, or more "
        "texts loop (loops=5) or repeat themselves (repetition=10); with auto, what the number may cost (default: 1).",
        metavar="POINTS|TASK=POINTS,...|none", panel=MEASURING, formerly="max_drop_pp")] = None
    prompts: Annotated[Place | None, Option(
        "Prompts for the free text, one per line.", metavar="FILE", panel=MEASURING)] = None
    primer: Annotated[bool, Option(
        "Ask the Hub first which parts of the base it has, so that they are not sent; costs up to 0.3 MB a shard.",
        flag="--primer/--no-primer", panel=TARGET)] = True
    force: Annotated[bool, Option("Run even if the last publish is up to date.", panel=TARGET)] = False
    only_if_changed: Annotated[bool, Option(
        "Compute nothing for --dry-run and --out either where the last publish is up to date.", panel=TARGET)] = False
    dry_run: Annotated[bool, Option(
        "Do everything but write to the Hub; say what would change there and how much would be sent.", panel=TARGET
    )] = False
    out: Annotated[Place | None, Option(
        "New folder that keeps the published files.", metavar="FOLDER", panel=TARGET)] = None
    adopt: Annotated[str | None, Option(
        "Publish anew, with credit, what somebody else pruned: a folder or repo of LLM-Drop, ModelOpt, optipfair or "
        "mergekit. BASE need not be named where its card does.", metavar="FOLDER_OR_REPO", panel=DROPPING)] = None
    adopt_revision: Annotated[str | None, Option(
        "Branch, tag or commit of that repo. Default: main.", panel=DROPPING)] = None
    heal: Annotated[bool | None, Option(
        "Train it on what the base says, and publish it healed too, as NAME-healed.", flag="--heal/--no-heal",
        panel=BESIDE)] = None
    heal_steps: Annotated[int | None, Option("Steps of that training. Default: 200.", least=1, panel=BESIDE)] = None
    healed: Annotated[Place | None, Option(
        "Publish as NAME-healed what was trained elsewhere from this pruned model.", metavar="FOLDER", panel=BESIDE
    )] = None
    quantize: Annotated[str | None, Option(
        "Publish it quantized too, as NAME-W4A16 and so on: by GPTQ, or with :rtn each weight rounded by itself.",
        metavar="w4a16|w8a16|fp8[:rtn]|none", panel=BESIDE)] = None
    group_size: Annotated[int | None, Option(
        "Columns that share a scale there. Default: 128; fp8 has one scale per row.", least=1, panel=BESIDE)] = None
    gguf: Annotated[str | Sequence[str] | None, Option(
        "Publish it as GGUF files too, as NAME-GGUF.", metavar="q8_0,q4_k_m,...|none", panel=BESIDE)] = None
    notes: Notes = None
    card_template: CardTemplate = None
    speed: Annotated[bool | None, Option(
        "Time both models on this machine, for the card: prefill, decoding, peak memory. Default: where it has a CUDA "
        "GPU.", panel=CARD)] = None
    runtimes: Annotated[str | Sequence[str] | None, Option(
        "Run the result in these as well, and show on the card what they did. Default: auto, those that are found "
        "here.", metavar="auto|none|vllm,llama.cpp,mlx", panel=CARD)] = None
    recipe: Annotated[Place | None, Option("YAML with all of this; options win over it.", metavar="FILE")] = None


@dataclass(frozen=True, kw_only=True)
class JobRequest(PublishRequest):
    """A publish that may run on a machine of Hugging Face Jobs instead of this one."""

    check: Annotated[bool, Option(
        "Compute and write nothing: list what would stop it, and what every stage needs of disk, memory and time.",
        panel=TARGET)] = False
    show_card: Annotated[bool, Option("Print the card that a dry run would publish.", panel=TARGET)] = False
    on: Annotated[str | None, Option(
        "Run it on Hugging Face Jobs and follow its log; Ctrl-C leaves the job running.", metavar="hf-jobs",
        panel=ELSEWHERE)] = None
    flavor: Annotated[str | None, Option(
        "Machine of the job, one of `hf jobs hardware`.", metavar="a100-large", panel=ELSEWHERE)] = None
    timeout: Annotated[str | None, Option(
        "Time after which the job is ended. Default: 12h.", metavar="12h", panel=ELSEWHERE)] = None
    namespace: Annotated[str | None, Option(
        "Who runs and pays the job. Default: you.", metavar="NAME", panel=ELSEWHERE)] = None
    requirement: Annotated[str | None, Option(
        "What the job installs. Default: this version of hubprune from PyPI.", metavar="PACKAGE", panel=ELSEWHERE
    )] = None

    @property
    def needs(self) -> str | None:
        """None where something else than a computation may come out."""
        return None if self.check or self.runs_elsewhere or self.only_if_changed else super().needs

    @property
    def runs_elsewhere(self) -> bool:
        """Whether a job is meant: one of its options was given."""
        asked = self.on, self.flavor, self.timeout, self.namespace, self.requirement
        return any(value is not None for value in asked)


@dataclass(frozen=True, kw_only=True)
class PushRequest(Delivering):
    """Publish what a dry run made."""

    folder: Annotated[Place, Argument("What publish --dry-run --out wrote.", metavar="FOLDER")] = field(kw_only=False)
    dry_run_report: Annotated[Place | None, Argument(
        "The report of the same run. Default: FOLDER-report.json.", metavar="REPORT"
    )] = field(default=None, kw_only=False)


@dataclass(frozen=True, kw_only=True)
class PruneRequest(Dropping, Scoring):
    """Write a pruned and verified checkpoint into a folder."""

    base: BaseOrFolder = field(kw_only=False)
    out: Annotated[Place, Option("New folder for the checkpoint.", metavar="FOLDER")]


@dataclass(frozen=True, kw_only=True)
class AdoptRequest(Budgeted):
    """Read what others published pruned, and write it anew so that it loads."""

    checkpoint: Annotated[str, Argument(
        "A folder or repo that LLM-Drop, ModelOpt, optipfair, mergekit or a script pruned.", metavar="FOLDER_OR_REPO"
    )] = field(kw_only=False)
    base: Annotated[str | None, Option(
        "Repo id or folder of what it was made of. Default: the one that its card or config.json names.")] = None
    out: Annotated[Place | None, Option(
        "New folder for the checkpoint; without it, only what was found is told.", metavar="FOLDER")] = None
    revision: RepoRevision = None
    base_revision: Annotated[str | None, Option("Branch, tag or commit of the base. Default: main.")] = None
    layout: Annotated[str | None, Option(
        "How it is written. Default: auto, what most runtimes can load.", metavar="auto|stock|nemotron-nas|pruned"
    )] = None
    device: Device = None
    dtype: Dtype = None


@dataclass(frozen=True, kw_only=True)
class QuantizeRequest(Budgeted):
    """Write a checkpoint, pruned or not, in fewer bits."""

    checkpoint: Annotated[str, Argument(
        "A folder or repo with 16-bit or 32-bit floats, pruned or not.", metavar="FOLDER_OR_REPO"
    )] = field(kw_only=False)
    scheme: Annotated[str | None, Option(
        "Bits of the weights and of what they are multiplied with. Default: w4a16.", metavar="w4a16|w8a16|fp8")] = None
    group_size: Annotated[int | None, Option(
        "Columns that share a scale. Default: 128; fp8 has one scale per row.", least=1, metavar="128|64|32")] = None
    method: Annotated[str | None, Option(
        "GPTQ makes up for every error in the columns behind; rtn rounds. Default: gptq.", metavar="gptq|rtn")] = None
    out: Annotated[Place | None, Option(
        "New folder. Default: <checkpoint>-W4A16, or another scheme, in this folder.", metavar="FOLDER")] = None
    revision: RepoRevision = None
    calibration: Annotated[str | None, Option(
        "`cosmopedia` (the default), `c4`, `codealpaca`, `mathinstruct`, `lima`, a .yaml with a mix, or a file of "
        "documents; `none` for rtn without any measurement.", panel=SCORING)] = None
    num_samples: Annotated[int | None, Option(
        "Calibration documents in all, or packed sequences; a few more are drawn to measure on. Default: the mix's own,"
        " 400 for cosmopedia.", least=1, panel=SCORING)] = None
    max_tokens: Annotated[int | None, Option(
        "Tokens after which a document is cut off, or per packed sequence. Default: the mix's own, 512 for "
        "cosmopedia.", least=2, panel=SCORING)] = None
    seed: Annotated[int | None, Option("Seed of the calibration draw. Default: 0.", least=0)] = None
    device: Device = None
    dtype: Dtype = None


@dataclass(frozen=True, kw_only=True)
class ScoreRequest(Scoring, Weighing):
    """Score a base, once or side by side."""

    base: BaseOrFolder = field(kw_only=False)
    revisions: Annotated[str | Sequence[str] | None, Option(
        "Score the base at several branches, tags or commits, as in step1000,step2000.", metavar="A,B,...", panel=STUDY
    )] = None
    # Two types are wider than those of the group: a study varies them, and each of its passes has one.
    calibration: Annotated[str | Sequence[str] | None, Option(
        "`cosmopedia` (the default), `c4`, `codealpaca`, `mathinstruct`, `lima`, a .yaml with a mix, or a file of "
        "documents.  Several: scores side by side.", metavar="A[,B,...]", panel=STUDY)] = None  # type: ignore[assignment]
    num_samples: Annotated[str | int | Sequence[int] | None, Option(
        "Calibration documents in all, or packed sequences. Default: the mix's own, 400 for cosmopedia.  Several: "
        "how stable the order is.", metavar="N[,N,...]", panel=STUDY)] = None  # type: ignore[assignment]
    attn_drop: Annotated[int | str | None, Option(
        "Mark the N attention sublayers that would go. Default: 1.", metavar="N", panel=DROPPING)] = None
    plot: Annotated[Place | None, Option(
        "Draw the scores, or the frontier, as PNG and SVG into this folder.", metavar="FOLDER", panel=SCORING)] = None


@dataclass(frozen=True, kw_only=True)
class HealRequest(Budgeted):
    """Train a pruned model until it says again what its base does."""

    checkpoint: Checkpoint = field(kw_only=False)
    out: Annotated[Place, Option("New folder for the healed checkpoint.", metavar="FOLDER")]
    adapter: Annotated[Place | None, Option(
        "New folder for the adapters alone, which peft puts on the pruned model; with --method lora.", metavar="FOLDER"
    )] = None
    steps: Annotated[int | None, Option("Steps of training. Default: 200.", least=1, panel=TRAINING)] = None
    tokens: Annotated[int | None, Option(
        "Train on about so many tokens, instead of --steps.", least=1, panel=TRAINING)] = None
    minutes: Annotated[float | None, Option(
        "Train for about so long on this machine, instead of --steps.", least=0.01, panel=TRAINING)] = None
    method: Annotated[str, Option(
        "Adapters that are merged at the end, or all weights, which takes a second model in memory and its "
        "optimizer.", metavar="lora|full", panel=TRAINING)] = "lora"
    rank: Annotated[int, Option("Rank of the adapters.", least=1, most=1024, panel=TRAINING)] = 16
    loss: Annotated[str, Option(
        "KL to the base; the same and the hidden states; or cross entropy with the texts, which brings perplexity back "
        "and not the base's answers.", metavar="kl|kl+hidden|ce", panel=TRAINING)] = "kl"
    learning_rate: Annotated[float | None, Option(
        "Highest learning rate. Default: by the model's width.", metavar="RATE", panel=TRAINING)] = None
    batch_size: Annotated[int, Option("Documents per step.", least=1, panel=TRAINING)] = 8
    data: Annotated[str | None, Option(
        "Mix or file of documents to train on, without those that were scored. Default: the calibration mix.",
        metavar="MIX|FILE", panel=TRAINING)] = None
    held_out: Annotated[int, Option(
        "Documents that are not trained on, for the curve and the end.", least=2, panel=TRAINING)] = 64
    tasks: Annotated[str | Sequence[str] | None, Option(
        "Benchmarks whose texts must not be among the documents, or none. Default: those it was measured on.",
        metavar="a,b,c", panel=TRAINING)] = None
    include_path: Annotated[str | None, Option("Task YAMLs of your own.", metavar="FOLDER", panel=TRAINING)] = None
    base: Annotated[str | None, Option("Repo id or folder of the base. Default: the one it names.")] = None
    revision: RepoRevision = None
    seed: Annotated[int, Option("Seed of the adapters and of the order of the documents.", least=0)] = 0
    device: Device = None
    dtype: Dtype = None


# ---- measuring -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SweepRequest(Scoring, Measuring):
    """Measure what every number of drops costs."""

    base: BaseOrFolder = field(kw_only=False)
    method: Annotated[str | Sequence[str], Option(
        "What to drop, each as a curve.", metavar="attn,mlp,block,joint", panel=DROPPING)] = "attn"
    counts: Annotated[str | Sequence[int], Option(
        "Numbers of drops; 0:12 is 0 to 12.", metavar="0:12|0:12:3|0,2,4", panel=DROPPING)] = "0:12"
    perplexity: Annotated[str | None, Option(
        "Measure perplexity on a file of documents or a mix; what was scored on is left out.", metavar="FILE|MIX",
        panel=MEASURING)] = None
    perplexity_samples: Annotated[int | None, Option(
        "Documents for the perplexity. Default: 64.", least=1, panel=MEASURING)] = None
    speed: Annotated[bool, Option("Time decoding against the base, in paired rounds.", panel=MEASURING)] = False
    speed_depth: Annotated[int, Option(
        "Tokens in the KV cache when timed decoding starts.", least=1, panel=MEASURING)] = 512
    speed_rounds: Annotated[int, Option("Rounds of timing per point.", least=20, panel=MEASURING)] = 20
    max_loss: Annotated[float, Option(
        "Points of the mean that the recommendation may lose.", metavar="POINTS", least=0, panel=MEASURING)] = 1.0
    max_rise: Annotated[float, Option(
        "Percent that its perplexity may rise.", metavar="%", least=0, panel=MEASURING)] = 5.0
    out: Annotated[Place | None, Option("Folder for sweep.csv, sweep.json and pictures.", metavar="FOLDER")] = None


@dataclass(frozen=True, kw_only=True)
class SpeedRequest(Budgeted):
    """Time a pruned checkpoint against its base."""

    first: Annotated[str, Argument(
        "A folder or repo that hubprune wrote; or its base, and the other behind it.", metavar="PRUNED_OR_BASE"
    )] = field(kw_only=False)
    second: Annotated[str | None, Argument(
        "What hubprune wrote, where another base than the one it names comes first.", metavar="PRUNED"
    )] = field(default=None, kw_only=False)
    depths: Annotated[str | Sequence[int], Option(
        "Tokens in the KV cache when decoding starts: lengths of the prompt, cut to what the model has positions for.",
        metavar="0,512,2048", panel=MEASURING)] = "0,512,2048"
    new_tokens: Annotated[int, Option("Tokens that are decoded.", least=1, panel=MEASURING)] = 32
    batch_size: Annotated[int, Option("Sequences at once.", least=1, panel=MEASURING)] = 1
    rounds: Annotated[int, Option("Rounds per depth, after three that do not count.", least=20, panel=MEASURING)] = 20
    largest_batch: Annotated[bool, Option(
        "Search for the largest batch that fits on the GPU, too.", panel=MEASURING)] = False
    revision: RepoRevision = None
    trust_remote_code: TrustRemoteCode = False
    report: ReportFile = None
    seed: Annotated[int, Option("Seed of the order within a round and of the intervals.")] = 0
    device: Device = None
    dtype: Dtype = None


Compared = Annotated[str, Argument(
    "A pruned folder, a repo id (with @ and a revision where it is not main), a report or a plan as JSON.")]


@dataclass(frozen=True, kw_only=True)
class CompareRequest(OnHub):
    """Compare two pruned checkpoints or plans."""

    first: Compared = field(kw_only=False)
    second: Compared = field(kw_only=False)


# ---- looking ahead -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class DoctorRequest(Budgeted):
    """Look at this machine, and at what a publish of a base would need on it."""

    base: Annotated[str | None, Argument(
        "Repo id of a base, or a folder; its config.json and index are enough.")] = field(default=None, kw_only=False)
    base_revision: Annotated[str | None, Option("Branch, tag or commit of the base. Default: main.")] = None
    tasks: Annotated[str | Sequence[str] | None, Option(
        "Suites or lm-eval tasks that it would be measured on, or none. Default: those of a publish.", metavar="a,b,c"
    )] = None
    device: Device = None
    dtype: Dtype = None
    needs = None  # it says what is not there
