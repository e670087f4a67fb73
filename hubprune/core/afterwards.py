"""What can be asked of what was made before: to verify, load, reproduce, refresh, describe or export it.

`hubprune.core.requests` has the requests that make something, and hands these on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

# fmt: off
# isort: off
from hubprune.core.options import (
    Argument, Budgeted, CardTemplate, Device, Notes, OnHub, Option, Place, Port, RepoRevision, ReportFile,
    TrustRemoteCode,
)
# isort: on

Checkpoint = Annotated[str, Argument("A folder or repo that hubprune wrote.", metavar="FOLDER_OR_REPO")]


@dataclass(frozen=True, kw_only=True)
class VerifyRequest(Budgeted):
    """Check a pruned folder or repo against its base."""

    checkpoint: Checkpoint = field(kw_only=False)
    base: Annotated[str | None, Option("Repo id or folder of the base. Default: the one it names.")] = None
    runtimes: Annotated[str | Sequence[str] | None, Option(
        "Run it in these as well, and compare each with transformers.", metavar="vllm,llama.cpp,mlx", flag="--runtime"
    )] = None
    revision: RepoRevision = None
    trust_remote_code: TrustRemoteCode = False
    device: Device = None


@dataclass(frozen=True, kw_only=True)
class LoadRequest(Budgeted):
    """Load a pruned folder or repo; in Python only."""

    checkpoint: Checkpoint = field(kw_only=False)
    revision: RepoRevision = None
    device: Annotated[str, Option("Where it goes: auto, cpu, mps, cuda or cuda:N. auto takes the first GPU.")] = "auto"
    dtype: Annotated[str, Option("Of its weights: auto, its own, or float32, bfloat16 or float16.")] = "auto"
    trust_remote_code: TrustRemoteCode = False


@dataclass(frozen=True, kw_only=True)
class ReproduceRequest(Budgeted):
    """Run the recipe of a published result again."""

    published: Annotated[str, Argument(
        "A folder or repo that hubprune publish wrote.", metavar="FOLDER_OR_REPO")] = field(kw_only=False)
    revision: RepoRevision = None
    calibration: Annotated[Sequence[Place] | None, Option(
        "A local file that it was scored on, found by its name; may be given again.", metavar="FILE")] = None
    trust_tasks: Annotated[bool, Option(
        "Run the benchmark definitions that come with it: their templates are code.")] = False
    fresh: Annotated[bool, Option("Start over instead of going on where it was stopped.")] = False
    out: Annotated[Place | None, Option("New folder that keeps the reproduced files.", metavar="FOLDER")] = None
    device: Annotated[str | None, Option(
        "Where to compute. Default: where the recipe says.", metavar="auto|cpu|mps|cuda[:N]")] = None
    card_template: CardTemplate = None
    report: ReportFile = None


@dataclass(frozen=True, kw_only=True)
class RefreshRequest(OnHub):
    """Bring repos that are out to what this version writes."""

    repos: Annotated[Sequence[str], Argument(
        "Repo ids of what hubprune publish wrote.", metavar="REPO...")] = field(kw_only=False)
    check: Annotated[bool, Option("Only tell what would change; needs no right to write.")] = False
    create_pr: Annotated[bool, Option("Open a pull request instead of committing.")] = False
    revision: Annotated[str, Option("Branch of the repo.")] = "main"
    overwrite: Annotated[bool, Option(
        "Replace card, config.json, tokenizer and modeling file even where somebody edited them; never weights."
    )] = False
    card_template: CardTemplate = None
    no_load_back: Annotated[bool, Option(
        "Neither build the model beforehand nor download the result and load it.")] = False


# ---- other shapes of it --------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class CardRequest(OnHub):
    """Render the card of a published folder again, or show one."""

    published: Annotated[str, Argument(
        "A folder that publish --out wrote; with --preview also a repo, or repo@revision.", metavar="FOLDER_OR_REPO"
    )] = field(kw_only=False)
    notes: Notes = None
    card_template: CardTemplate = None
    overwrite_card: Annotated[bool, Option("Replace a README.md that was edited by hand.")] = False
    preview: Annotated[bool, Option(
        "Change nothing; show the card in a browser, as the Hub would, until Ctrl-C.")] = False
    no_open: Annotated[bool, Option("Print the address of the preview, and open no browser.")] = False
    port: Port = 0


@dataclass(frozen=True, kw_only=True)
class ExportRequest(Budgeted):
    """Write a checkpoint as a GGUF file."""

    checkpoint: Checkpoint = field(kw_only=False)
    out: Annotated[Place | None, Option(
        "Folder for <checkpoint>-<OUTTYPE>.gguf; what ends in .gguf is the file itself. Default: this folder.",
        metavar="FOLDER")] = None
    outtype: Annotated[str, Option(
        "Type of the matrices; norms and biases stay f32. Those with a k, like q4_k_m, are made by llama.cpp itself.",
        metavar="f32|f16|bf16|q8_0|q4_k_m|...")] = "f16"
    base: Annotated[str | None, Option(
        "Folder or repo of the unpruned base, compared as a control. Default: the one it names, if here.")] = None
    revision: RepoRevision = None
    no_verify: Annotated[bool, Option("Do not compare the file with transformers.")] = False
