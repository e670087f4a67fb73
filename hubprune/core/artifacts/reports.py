"""Reports: what a whole command found, as versioned JSON.

`score` over several circumstances, `compare`, `reproduce`, `publish`, `refresh`, and `doctor`.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

# fmt: off
# isort: off
from hubprune.core.artifacts.base import (
    Aggregation, Artifact, BaseCheckpoint, Environment, ImportanceScores, LayerScores, Layout, Method, Metric,
    SublayerKind,
)
from hubprune.core.artifacts.evaluation import BenchmarkComparison, GenerationComparison
from hubprune.core.artifacts.pruning import (
    DropPlan, LoadedBack, PublishedCommit, SnippetRun, UploadPlan, Verification, WrittenCheckpoint,
)
from hubprune.core.artifacts.siblings import SiblingLink, SiblingReport
from hubprune.core.artifacts.speed import SpeedReport
# isort: on
# fmt: on

# ---- studies ---------------------------------------------------------------------------------------------------------

StudyKind = Literal["revisions", "calibration", "samples"]
"""What varies: the commit of the base, the calibration mix, or the number of samples of one mix."""
ScoreKind = Literal["attn", "mlp", "block"]


class Agreement(Artifact):
    """How well the order of layers by one set of scores agrees with the order by the reference."""

    kind: ScoreKind
    spearman: float | None
    """Spearman's rho; None where all scores are equal."""
    kendall: float | None
    """Kendall's tau-b; None where all scores are equal."""
    lowest: int
    """N of the overlap."""
    overlap: int
    """How many of the N layers with the lowest scores are the same."""


class StudyEntry(Artifact):
    """The scores under one of the circumstances."""

    label: str
    """Revision or mix as it was asked for, or the number of samples."""
    commit: str | None
    """Commit of the base; None for a local folder."""
    mix: str
    documents: int
    """Documents that were scored, or packed sequences."""
    tokens: int
    mean: ImportanceScores
    standard_error: ImportanceScores
    agreements: tuple[Agreement, ...] = ()
    """With the reference, one per kind of score; none for the reference itself."""


class ScoreStudy(Artifact):
    """Scores of one base side by side."""

    schema_version: Literal[1] = 1
    kind: StudyKind
    base: str
    metric: Metric
    aggregation: Aggregation
    seed: int
    dtype: str
    device: str
    entries: tuple[StudyEntry, ...] = Field(min_length=1)
    """In the order they were asked for; numbers of samples ascending."""
    reference: str
    """Label of the entry that the others are compared with: the last revision, the first mix, the largest number."""
    nested: bool
    """Whether each smaller draw is the beginning of the larger ones, subset by subset."""


# ---- comparison ------------------------------------------------------------------------------------------------------

SameBase = Literal["same", "different", "unknown"]


class ComparedSide(Artifact):
    """One of the two.  What its files do not tell is None."""

    name: str
    """Folder, file or repo id as it was given."""
    base: str | None
    base_commit: str | None
    num_hidden_layers: int
    """Decoder layers of the base."""
    methods: tuple[Method, ...]
    """Empty where only its config.json tells what went."""
    layout: Layout
    dropped_attn: tuple[int, ...]
    """Original numbers of the layers that lost their attention."""
    dropped_mlp: tuple[int, ...]
    widths: tuple[int, ...] | None
    """Neurons that the MLPs keep, per layer of the base; None for as wide as they were."""
    parameters: int | None = None
    kv_bytes_per_token: int | None = None
    quantization: str | None = None
    """Scheme, method and bits of the quantized weights; None where none are quantized."""
    training: str | None = None
    """How it was trained after it was pruned; None where it was not."""
    weights_sha256: str | None = None
    """Digest of its weight files, where a manifest or a report tells theirs."""
    calibration: str | None = None
    """Mix, samples and tokens that it was scored on."""
    calibration_sha256: str | None = None
    """Digest of the token ids."""


class DroppedSets(Artifact):
    """What went of one kind of sublayer, in the base's layer numbers."""

    kind: SublayerKind
    both: tuple[int, ...]
    only_first: tuple[int, ...]
    only_second: tuple[int, ...]


class ComparedMetric(Artifact):
    """One metric of one task that both were measured by, on the same documents."""

    task: str
    metric: str
    documents: int
    first: float
    second: float
    first_base: float
    """What the base reached in the first one's run."""
    second_base: float
    change: float
    """Second minus first: in percentage points for shares, in the metric's own unit for others."""
    unit: Literal["points", "own"]


class CheckpointComparison(Artifact):
    """What differs between two pruned checkpoints or plans."""

    schema_version: Literal[1] = 1
    first: ComparedSide
    second: ComparedSide
    base: SameBase
    dropped: tuple[DroppedSets, ...]
    """Per kind of sublayer; empty where the bases differ, since layer numbers then name different layers."""
    agreements: tuple[Agreement, ...]
    """Between the orders of both sets of scores; empty where there are not two, or the bases differ."""
    benchmarks: tuple[ComparedMetric, ...]
    notes: tuple[str, ...]
    """What could not be compared, and why."""


# ---- reproduction ----------------------------------------------------------------------------------------------------

Scalar = str | int | float | bool | None
Outcome = Literal["equal", "differs", "nothing to compare", "not compared"]
"""`nothing to compare`: there never was such a part; `not compared`: it cannot be equal, and the detail says why."""


class Difference(Artifact):
    """One value that should be equal and is not."""

    place: str
    """Where in the JSON of its part, as in `mean.attn[3]`, or the path of a file."""
    published: Scalar
    """None where there is none."""
    found: Scalar
    """The reproduced value; of the manifest, what the published files really are."""


class ComparedPart(Artifact):
    """One part of a result."""

    name: str
    outcome: Outcome
    detail: str
    """How much was compared, or what is wrong in one sentence."""
    largest_difference: float | None = None
    """Between two numbers that should be equal; None where all numbers are."""
    differences: tuple[Difference, ...] = ()


class Reproduction(Artifact):
    """What is equal and what differs between a published result and the same run anew."""

    schema_version: Literal[1] = 1
    name: str
    """Folder or repo id, as it was asked for."""
    commit: str | None
    """Of the repo; None for a folder."""
    base: str
    base_commit: str
    equal: bool
    """Whether everything is that should be."""
    parts: tuple[ComparedPart, ...]
    causes: tuple[str, ...]
    """What differed from the published run and may be why; versions are named even where nothing came of it."""
    folder: str | None = None
    """Where the reproduced files are; None where they were equal and not asked for."""
    environment: Environment
    """Where it was reproduced."""
    seconds: dict[str, float] = Field(default_factory=dict)
    """Wall-clock seconds per stage."""


# ---- refreshing ------------------------------------------------------------------------------------------------------

FileOutcome = Literal["added", "changed", "removed", "same"]
RefreshOutcome = Literal["up to date", "would change", "committed", "proposed", "failed"]
"""`would change`: of a check that found something to do; `proposed`: in a pull request."""


class FileChange(Artifact):
    """One file of a repo, as it is and as it would be."""

    path: str
    outcome: FileOutcome
    before: str | None
    """SHA-256; None for one that is not there."""
    after: str | None
    """SHA-256; None for one that goes."""
    size: int = 0
    """Bytes that are sent for it."""


class ConfigChange(Artifact):
    """One key of config.json that is another, with dots where it is inside of another key."""

    key: str
    before: Any = None
    """None where there is none."""
    after: Any = None


class Refreshed(Artifact):
    """One refresh, as hubprune.json keeps it."""

    from_version: str
    """hubprune that wrote the files before."""
    to_version: str
    commit: str
    """Commit that the refresh went on top of."""
    tag: str | None
    """Name of the files as they were; None where they had none."""
    files: tuple[FileChange, ...]
    """Files of the checkpoint that changed; card and manifest follow from them."""
    config: tuple[str, ...] = ()
    """Keys of config.json that changed."""


class RefreshReport(Artifact):
    """What became of one repo."""

    repo_id: str
    outcome: RefreshOutcome
    from_version: str | None = None
    to_version: str | None = None
    parent: str | None = None
    """Commit that was looked at."""
    files: tuple[FileChange, ...] = ()
    """All that were looked at, card and manifest included where something changes."""
    config: tuple[ConfigChange, ...] = ()
    notes: tuple[str, ...] = ()
    """What could not be done, and what readers may meet."""
    commit: str | None = None
    """The new commit; None where there is none."""
    url: str | None = None
    """Of the commit or the pull request."""
    tag: str | None = None
    sent_bytes: int = 0
    """Size of the files of the commit."""
    loaded_back: str | None = None
    """What it wrote when a fresh process had loaded it from the Hub; None where that was left out."""
    seconds: float = 0.0
    error: str | None = None
    hint: str | None = None
    exit_code: int = 0
    """What the command line ends with for a repo that failed."""

    @property
    def changed(self) -> tuple[FileChange, ...]:
        """The files that are not the same."""
        return tuple(file for file in self.files if file.outcome != "same")


# ---- publishing ------------------------------------------------------------------------------------------------------


class PublishReport(Artifact):
    """Everything one publish did and saw, as versioned JSON."""

    schema_version: Literal[1] = 1
    recipe: dict[str, Any]
    repo_id: str
    """Where the result goes, or would have gone."""
    endpoint: str
    """Address of the Hub that the base is on."""
    base: BaseCheckpoint
    scores: LayerScores | None
    plan: DropPlan
    checkpoint: WrittenCheckpoint
    verification: Verification
    benchmarks: BenchmarkComparison | None
    generation: GenerationComparison | None
    speed: SpeedReport | None = None
    """None where it was not asked for."""
    notes: str | None = None
    """The author's own words on the card."""
    snippet: SnippetRun | None = None
    """None in reports of versions that did not run it."""
    refreshed: tuple[Refreshed, ...] = ()
    """What later versions wrote anew in the repo without computing, oldest first."""
    published: PublishedCommit | None
    """None for a dry run."""
    upload: UploadPlan | None = None
    """What a dry run would have changed and sent."""
    loaded_back: LoadedBack | None = None
    beside: tuple[SiblingLink, ...] = ()
    """The siblings that its card names."""
    siblings: tuple[SiblingReport, ...] = ()
    """What became of those, as far as the publish came."""
    environment: Environment
    seconds: dict[str, float] = Field(default_factory=dict)
    """Wall-clock seconds per stage; a stage that was taken from the work folder keeps those of the run that did it."""
    fingerprint: dict[str, dict[str, str]] = Field(default_factory=dict)
    """What the result depends on, in named parts."""
    stage_keys: dict[str, str] = Field(default_factory=dict)
    """Stage -> key of all that its result depends on, this machine included (`stages.key_of`)."""


# ---- looking ahead ---------------------------------------------------------------------------------------------------


class Finding(Artifact):
    """One thing that was looked at before anything is computed."""

    name: str
    status: Literal["ok", "warning", "error"]
    told: str
    hint: str | None = None
    """What to do about it."""


class StageNeed(Artifact):
    """What a stage will need, by arithmetic."""

    stage: str
    way: str
    """How it fits into the memory that is free."""
    memory: int
    """Bytes of the device, or of the machine where that is a CPU."""
    read: int
    """Bytes of weights, from disk or page cache."""
    written: int = 0
    """Bytes that come to the disk."""
    flop: float = 0.0
    """Floating-point operations."""
    seconds: float | None
    """Roughly; None where that depends on the network."""


class Checkup(Artifact):
    """What a publish, or any work at all, would find on this machine."""

    base: str | None
    findings: tuple[Finding, ...]
    stages: tuple[StageNeed, ...] = ()

    @property
    def failed(self) -> bool:
        """Whether something stands in the way."""
        return any(finding.status == "error" for finding in self.findings)
