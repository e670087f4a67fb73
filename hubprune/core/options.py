"""What can be asked: every option once, as a field with its type, default, help and panel.

A request is a frozen dataclass that inherits the groups of options that it needs; `hubprune.core.requests` has one for
every command.  The command line makes its flags of the fields, the Python API its parameters, and both make the request
that a workflow takes.  What is a list or a mapping may be given as Python has it or as the text that the flag takes:
`attn_layers=[18, 21]` or "18,21", `num_fewshot={"mmlu": 5}` or "mmlu=5".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from inspect import get_annotations
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from hubprune.core.errors import RecipeError
from hubprune.core.suites import DEFAULT_SUITE, describe

DROPPING, SCORING, MEASURING, TARGET = "What to drop", "Scoring", "Measuring", "Where it goes"
TRAINING = "Training"
BESIDE = "Beside it"
CARD, ELSEWHERE, STUDY = "The card", "Where it runs", "Side by side (one of these may be a list)"
PANELS = STUDY, DROPPING, TRAINING, SCORING, MEASURING, TARGET, BESIDE, CARD, ELSEWHERE
"""Headings of a help, from the top."""


@dataclass(frozen=True)
class Option:
    """What people read of one option."""

    help: str
    metavar: str | None = None
    """Stands for the value; None for the name of its type."""
    panel: str | None = None
    """Heading of the help that it stands below; None for the general one."""
    flag: str | None = None
    """Its spelling on the command line; None for its name with hyphens."""
    least: float | None = None
    """Smallest value."""
    most: float | None = None
    """Largest value."""
    formerly: str | None = None
    """Name of the field in earlier versions, which still works."""


class Argument(Option):
    """An option that is named by its place."""


@dataclass(frozen=True)
class Asked:
    """One option of a request."""

    name: str
    option: Option
    type: Any
    """As annotated."""
    default: Any
    """`MISSING` where it has to be given."""


def options_of(kind: type[Request]) -> list[Asked]:
    """List the options of a request: its own in their order, then those of its groups from left to right."""
    hints, defaults = get_type_hints(kind, include_extras=True), {f.name: f.default for f in fields(kind)}
    names = dict.fromkeys(name for part in kind.__mro__ for name in get_annotations(part))
    return [
        Asked(name, hints[name].__metadata__[0], hints[name].__origin__, defaults.get(name, MISSING))
        for name in names
        if hasattr(hints[name], "__metadata__")
    ]


def renamed(asked: Sequence[Asked], given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Put what was given by a name of earlier versions under the one of today.

    Returns:
        The values by the names of today, and old name -> name of today of those that were given so.

    Raises:
        RecipeError: an option was given by both names.
    """
    values, used = dict(given), {}
    for name, old in ((option.name, option.option.formerly) for option in asked):
        if old is not None and (value := values.pop(old, None)) is not None:
            if values.get(name) is not None:
                raise RecipeError(f"{old} is the old name of {name}, and both were given.", hint="Pass one of them.")
            values[name], used[old] = value, name
    return values, used


def as_typed(request: Request, *names: str) -> Iterator[str]:
    """Write options of a request as one would type them; what was not given is passed over."""
    for name in names:
        if (value := getattr(request, name)) is not None:
            flag = name.replace("_", "-")
            if isinstance(value, bool):
                yield f"--{flag}" if value else f"--no-{flag}"
                continue
            if isinstance(value, Mapping):
                value = ",".join(f"{key}={number}" for key, number in value.items())
            elif isinstance(value, Sequence) and not isinstance(value, str):
                value = ",".join(map(str, value)) or "none"
            yield from (f"--{flag}", str(value))


# fmt: off
# ---- options that several requests share -------------------------------------------------------------------------

Place = str | Path
BaseOrFolder = Annotated[str, Argument("Repo id of the base, or a local folder.")]
ReportFile = Annotated[Place | None, Option("Write the whole report as JSON.", metavar="FILE")]
RepoRevision = Annotated[str | None, Option("Branch, tag or commit of the repo. Default: main.")]
CardTemplate = Annotated[Place | None, Option(
    "Card templates that take the place of the shipped ones.", metavar="FOLDER", panel=CARD)]
Notes = Annotated[Place | None, Option(
    "Your own words for the card, Markdown without HTML.", metavar="FILE", panel=CARD)]
TrustRemoteCode = Annotated[bool, Option("Run its modeling file even if this version of hubprune writes another.")]
Device = Annotated[str | None, Option(
    "Where to compute. Default: auto, the first GPU or else the CPU.", metavar="auto|cpu|mps|cuda[:N]")]
Dtype = Annotated[str | None, Option(
    "dtype to compute in; files are never cast. Default: auto, the base's own where the device has units for it.",
    metavar="auto|float32|bfloat16|float16")]
MaxMemory = Annotated[str | int | None, Option(
    "At most so much of this machine's memory, and of each GPU's. Default: what is free.",
    metavar="8GB")]
Port = Annotated[int, Option("Port on 127.0.0.1; 0 takes a free one.", least=0, most=65535)]


# ---- groups --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked."""

    @property
    def needs(self) -> str | None:
        """The extra that it takes; None for what the plain package does."""
        return None


@dataclass(frozen=True, kw_only=True)
class OnHub(Request):
    """What asks a Hub."""

    endpoint: Annotated[str | None, Option(
        "Address of the Hub. Default: HF_ENDPOINT, else https://huggingface.co.")] = None
    quiet: bool = False
    """In Python only: whether stages and progress are left out of stderr; warnings are not."""


@dataclass(frozen=True, kw_only=True)
class Budgeted(OnHub):
    """What loads weights, and keeps to a budget of memory."""

    max_memory: MaxMemory = None

    @property
    def needs(self) -> str | None:
        """The one that brings what loads weights."""
        return "torch"


@dataclass(frozen=True, kw_only=True)
class Scoring(Budgeted):
    """By what sublayers are ranked: the base, the texts, the metric, the machine."""

    protect: Annotated[str | int | Sequence[int] | None, Option(
        "Layers that are never dropped.", metavar="0,1", panel=DROPPING)] = None
    base_revision: Annotated[str | None, Option(
        "Branch, tag or commit of the base. Default: main.", panel=DROPPING)] = None
    calibration: Annotated[str | None, Option(
        "`cosmopedia` (the default), `c4`, `codealpaca`, `mathinstruct`, `lima`, a .yaml with a mix, or a file of "
        "documents.", panel=SCORING)] = None
    num_samples: Annotated[int | None, Option(
        "Calibration documents in all, or packed sequences. Default: the mix's own, 400 for cosmopedia.", panel=SCORING
    )] = None
    max_tokens: Annotated[int | None, Option(
        "Tokens after which a document is cut off, or per packed sequence. Default: the mix's own, 512 for "
        "cosmopedia.", panel=SCORING)] = None
    calibration_chat_template: Annotated[bool | None, Option(
        "Put every calibration document through the base's chat template: a text as what a user says.",
        flag="--calibration-chat-template/--no-calibration-chat-template", panel=SCORING)] = None
    metric: Annotated[str | None, Option(
        "What sublayers are ranked by: how far one turns the hidden state (cosine, the default), or what the model "
        "loses without it, by its loss or by KL to the base; these take n/2 + 2 passes for the attentions of n layers. "
        "As in --metric loss --schedule iterative. "
        "`angular` takes one run of layers, as many as --block-drop says.",
        metavar="cosine|cosine-no-residual|relative-magnitude|loss|kl|angular|reverse-order|random",
        panel=SCORING)] = None
    aggregation: Annotated[str | None, Option(
        "What the scores average over. Default: document.", metavar="document|token", panel=SCORING)] = None
    score_batch_size: Annotated[int | None, Option(
        "Documents per batch while scoring. Default: 8.", panel=SCORING)] = None
    seed: Annotated[int | None, Option("Seed of the calibration draw and of the benchmarks. Default: 0.")] = None
    device: Device = None
    dtype: Dtype = None


@dataclass(frozen=True, kw_only=True)
class Saving(OnHub):
    """What is to be saved, instead of a number of drops, and by what."""

    target: Annotated[str | Mapping[str, str] | None, Option(
        "Reach this at the least loss instead of dropping a number, as in kv=-30% or params=-10%,memory=8GB; of "
        "params, bytes, flops, kv, memory (files and KV cache) and latency, which is measured here first.",
        metavar="GOAL=-N%,...", panel=DROPPING)] = None
    target_over: Annotated[str | Sequence[str] | None, Option(
        "What it may be reached by. Default: attn for kv, else all that fit.", metavar="attn,mlp,block,width",
        panel=DROPPING)] = None
    at: Annotated[str | int | None, Option(
        "Context, and sequences, at which KV cache, operations and latency count. Default: 2048x1.",
        metavar="TOKENS[xBATCH]", panel=DROPPING)] = None


@dataclass(frozen=True, kw_only=True)
class Weighing(Saving):
    """What all savings cost."""

    frontier: Annotated[str | None, Option(
        "Show what every saving costs at the least, from one pass that leaves out each sublayer.",
        metavar="params|bytes|flops|kv|memory|latency", panel=SCORING)] = None


@dataclass(frozen=True, kw_only=True)
class Dropping(Saving):
    """What goes, and how the rest is written."""

    attn_drop: Annotated[int | str | None, Option(
        "Drop the N attention sublayers with the lowest score; publish sweeps for the number where it is auto.",
        metavar="N|N%", panel=DROPPING)] = None
    mlp_drop: Annotated[int | str | None, Option(
        "Drop the N MLP sublayers with the lowest score.", metavar="N|N%", panel=DROPPING)] = None
    block_drop: Annotated[int | str | None, Option(
        "Drop the N whole layers with the lowest score.", metavar="N|N%", panel=DROPPING)] = None
    joint_drop: Annotated[int | str | None, Option(
        "Drop the N lowest of attentions and MLPs, ranked in one list.", metavar="N|N%", panel=DROPPING)] = None
    per: Annotated[str | None, Option(
        "Rank by the score per unit saved, as in --joint-drop 4 --metric loss --per bytes.",
        metavar="params|bytes|flops|kv|latency", panel=DROPPING)] = None
    attn_layers: Annotated[str | int | Sequence[int] | None, Option(
        "Drop the attention of exactly these layers.", metavar="18,21,22", panel=DROPPING, formerly="drop_attn"
    )] = None
    mlp_layers: Annotated[str | int | Sequence[int] | None, Option(
        "Drop the MLP of exactly these layers.", metavar="18,21,22", panel=DROPPING, formerly="drop_mlp")] = None
    neuron_drop: Annotated[str | None, Option(
        "Share of every MLP's neurons that goes.", metavar="60%", panel=DROPPING, formerly="drop_neurons")] = None
    mlp_width: Annotated[str | int | Sequence[int] | None, Option(
        "Neurons that every MLP keeps, or one number per layer.", metavar="N|N,N,...", panel=DROPPING)] = None
    expansion_ratio: Annotated[float | None, Option(
        "Neurons that every MLP keeps, over hidden size.", metavar="R", panel=DROPPING)] = None
    width_metric: Annotated[str | None, Option(
        "Importance of a neuron. Default: max_abs.", metavar="max_abs|ppm|vow|pon|l2", panel=DROPPING)] = None
    width_multiple: Annotated[int | None, Option(
        "Round widths to a multiple of N; 1 takes the share exactly. Default: 64.", metavar="N", panel=DROPPING)] = None
    schedule: Annotated[str | None, Option(
        "Drop by one set of scores, or score again after every drop. Default: one-shot.", metavar="one-shot|iterative",
        panel=DROPPING)] = None
    layout: Annotated[str | None, Option(
        "How it is written. Default: auto, what most runtimes can load.", metavar="auto|stock|nemotron-nas|pruned",
        panel=DROPPING)] = None


@dataclass(frozen=True, kw_only=True)
class Measuring(OnHub):
    """Which benchmarks are run, and how."""

    tasks: Annotated[str | Sequence[str] | None, Option(
        f"Suites or lm-eval tasks, in any mixture, or none. Default: {DEFAULT_SUITE}. Suites, "
        f"with what one model is asked: {describe()}.",
        metavar="a,b,c", panel=MEASURING)] = None
    num_fewshot: Annotated[str | int | Mapping[str, int] | None, Option(
        "Examples before each question, of all tasks or of single ones. Default: the suite's or the task's own.",
        metavar="N|TASK=N,...", panel=MEASURING)] = None
    limit: Annotated[int | None, Option("Documents per task at most.", panel=MEASURING)] = None
    include_path: Annotated[str | None, Option(
        "Task YAMLs of your own; they are published too.", metavar="FOLDER", panel=MEASURING)] = None
    batch_size: Annotated[int | None, Option(
        "Benchmark sequences per batch. Default: as many as fit.", panel=MEASURING)] = None
    eval_backend: Annotated[str | None, Option(
        "Run what base and pruned model share once (default, layer by layer from their files where these are larger"
        " than memory), always read from the files, or let lm-eval's own backend run each.", metavar="shared|layers|hf",
        panel=MEASURING)] = None
    apply_chat_template: Annotated[bool | None, Option(
        "Ask benchmarks through the base's chat template, as lm-eval's option of that name does, or nothing at all. "
        "Default: free text and the code of the card where it has one, and no benchmarks.",
        flag="--apply-chat-template/--no-apply-chat-template", panel=MEASURING)] = None


@dataclass(frozen=True, kw_only=True)
class Target(OnHub):
    """Which repo becomes of it, and under which terms."""

    repo_id: Annotated[str | None, Option(
        "Target. Default: <your namespace>/<base>-attn-drop-<N>.", panel=TARGET)] = None
    revision: Annotated[str | None, Option("Branch of the target. Default: main.", panel=TARGET)] = None
    private: Annotated[bool | None, Option("Create the target as a private repo.", panel=TARGET)] = None
    create_pr: Annotated[bool | None, Option("Open a pull request instead of committing.", panel=TARGET)] = None
    staged: Annotated[bool | None, Option(
        "Open a pull request, load the result back from it, and only then merge it.", panel=TARGET)] = None
    collection: Annotated[str | None, Option(
        "Collection to add the result to; made where it is missing.", metavar="SLUG|TITLE", panel=TARGET)] = None
    supersedes: Annotated[str | None, Option(
        "Propose to this repo, by pull request, to name the result as its new version.", metavar="REPO", panel=TARGET
    )] = None
    license: Annotated[str | None, Option(
        "Licence, as in apache-2.0, of a base whose card names none.", metavar="ID", panel=CARD)] = None
    allow_name: Annotated[bool | None, Option(
        "Publish under a name that the base's licence does not allow.", panel=CARD)] = None


@dataclass(frozen=True, kw_only=True)
class Delivering(OnHub):
    """What may be replaced on the Hub, and where the report goes."""

    overwrite_card: Annotated[bool, Option("Replace a README.md that was edited on the Hub.", panel=TARGET)] = False
    overwrite: Annotated[bool, Option(
        "Replace whatever was changed on the Hub since the last publish: weights, configs, tokenizer, card. "
        "Without it, a publish stops there and exits with 5.", panel=TARGET)] = False
    report: ReportFile = None

    @property
    def replaces(self) -> Literal["nothing", "card", "everything"]:
        """What of other people's work may be replaced."""
        return "everything" if self.overwrite else "card" if self.overwrite_card else "nothing"
