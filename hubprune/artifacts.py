"""What crosses a stage: frozen values that are also written as JSON.

Every stage takes some of these and returns one.  The JSON files in the work folder, the manifest of a published repo
and the context of a model card are made of the same types, so that each number has one source.

Layers are numbered from 0.  "Original" numbers are the base's, "published" ones those of the pruned checkpoint; they
differ only where whole layers went.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

SublayerKind = Literal["attn", "mlp"]
Aggregation = Literal["document", "token"]


class Artifact(BaseModel):
    """A frozen value whose JSON form is stable: unknown keys are refused, NaN never gets in."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


# ---- the base ----------------------------------------------------------------------------------------------------


class RepoFile(Artifact):
    """One file of a repo or folder."""

    path: str
    size: int
    """Bytes."""
    sha256: str | None = None
    """Known for files stored as LFS or Xet objects, and for local files once hashed."""
    git_oid: str | None = None
    """Git blob id, for files on a Hub."""


class BaseCard(Artifact):
    """What is taken over from the base's model card: its languages and its licence, nothing else."""

    language: tuple[str, ...] = ()
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None


class BaseCheckpoint(Artifact):
    """A base model, resolved: which files at which commit, and its config.json.  No weights have been read."""

    name: str
    """Repo id on the Hub, or the name of a local folder."""
    commit: str | None
    """40 hex digits, or None for a local folder."""
    folder: str | None = None
    """Local folder with the files: the given one, or the cache's snapshot once downloaded."""
    config: dict[str, Any]
    """The parsed config.json, unchanged."""
    files: tuple[RepoFile, ...]
    card: BaseCard = BaseCard()

    @property
    def num_hidden_layers(self) -> int:
        """Number of decoder layers."""
        return int(self.config["num_hidden_layers"])


# ---- scores ------------------------------------------------------------------------------------------------------


class CalibrationSource(Artifact):
    """One subset of the mix as it was really drawn."""

    dataset: str
    config: str | None
    split: str
    commit: str | None
    """Commit of the data set repo, or None for a local file."""
    weight: float
    """Share of the mix; the weights of all subsets add up to 1."""
    documents: int
    tokens: int
    """Tokens that were scored, after truncation."""

    @property
    def label(self) -> str:
        """Short name: the config where there is one, else the data set."""
        return self.config or self.dataset


class CalibrationRecord(Artifact):
    """The calibration set behind a set of scores."""

    mix: str
    """Name of the mix."""
    sources: tuple[CalibrationSource, ...]
    max_tokens: int
    """Tokens after which a document was cut off."""
    seed: int
    shuffle_buffer: int
    """Documents in the streaming shuffle buffer."""
    token_sha256: str
    """SHA-256 over the token ids of all documents, in order."""

    @property
    def documents(self) -> int:
        """Documents in all."""
        return sum(s.documents for s in self.sources)

    @property
    def tokens(self) -> int:
        """Scored tokens in all."""
        return sum(s.tokens for s in self.sources)


class ImportanceScores(Artifact):
    """Importance S = 1 - cos(X, Y), one value per layer, for each of the three ways to look at a layer."""

    attn: tuple[float, ...]
    mlp: tuple[float, ...]
    block: tuple[float, ...]

    def ascending(self, kind: Literal["attn", "mlp", "block"]) -> list[int]:
        """Order the layers by one kind of score, lowest first; of two equal ones the deeper comes first."""
        scores: tuple[float, ...] = getattr(self, kind)
        return sorted(range(len(scores)), key=lambda layer: (scores[layer], -layer))


class DocumentScores(Artifact):
    """Mean scores over one document's tokens."""

    source: int
    """Index into the calibration sources."""
    tokens: int
    scores: ImportanceScores


class LayerScores(Artifact):
    """Importance of every sublayer and block of a base over a calibration mix."""

    metric: Literal["cosine"] = "cosine"
    aggregation: Aggregation
    """`document`: mean over a document's tokens, then over documents, then the mix's weights.  `token`: over tokens."""
    dtype: str
    """dtype that the layers ran in; the scores themselves are computed in float32 and summed in float64."""
    device: str
    mean: ImportanceScores
    standard_error: ImportanceScores
    """Standard error of each mean over documents, stratified by subset."""
    by_source: tuple[ImportanceScores, ...]
    """Mean scores per calibration source, in the order of `calibration.sources`."""
    calibration: CalibrationRecord
    per_document: tuple[DocumentScores, ...] = ()
    """Kept in the work folder for paired statistics; left out of the manifest."""


# ---- plan --------------------------------------------------------------------------------------------------------


class DroppedSublayer(Artifact):
    """One sublayer that goes, and why."""

    kind: SublayerKind
    layer: int
    """Original number."""
    score: float | None = None
    """Its importance, or None where the layers were given by hand and nothing was scored."""
    rank: int | None = None
    """Place in the ascending order of scores, from 1; None where nothing was ranked."""


class Margin(Artifact):
    """How clearly the last dropped sublayer and the first kept candidate are told apart."""

    last_dropped: int
    first_kept: int
    difference: float
    """Score of the first kept minus score of the last dropped."""
    standard_error: float
    """Of that difference, paired by document."""

    @property
    def near_tie(self) -> bool:
        """True where the difference is within two standard errors."""
        return self.difference <= 2 * self.standard_error


class DropPlan(Artifact):
    """What goes.  Selection makes it; the writer, the modeling file, verification and the card follow it."""

    method: Literal["attn-drop", "mlp-drop", "block-drop", "joint-drop"] = "attn-drop"
    selected_by: Literal["score", "hand"]
    num_hidden_layers: int
    """Decoder layers of the base."""
    dropped: tuple[DroppedSublayer, ...]
    """In the order of selection."""
    protected: tuple[int, ...] = ()
    margin: Margin | None = None

    def layers(self, kind: SublayerKind) -> tuple[int, ...]:
        """Original numbers of the layers that lose their sublayer of this kind, ascending."""
        return tuple(sorted(d.layer for d in self.dropped if d.kind == kind))

    @property
    def sublayers(self) -> tuple[tuple[SublayerKind, int], ...]:
        """Kind and original number of everything that goes, in a fixed order: what a checkpoint depends on."""
        return tuple(sorted((d.kind, d.layer) for d in self.dropped))

    @property
    def removed_layers(self) -> tuple[int, ...]:
        """Original numbers of the layers with neither sublayer left: they go altogether."""
        return tuple(sorted(set(self.layers("attn")) & set(self.layers("mlp"))))

    @property
    def published_numbers(self) -> dict[int, int]:
        """Original number -> published number of every layer that stays."""
        kept = [i for i in range(self.num_hidden_layers) if i not in self.removed_layers]
        return {original: published for published, original in enumerate(kept)}

    def published_layers(self, kind: SublayerKind) -> tuple[int, ...]:
        """Published numbers of the layers that stay without their sublayer of this kind, ascending."""
        numbers = self.published_numbers
        return tuple(numbers[i] for i in self.layers(kind) if i in numbers)


# ---- written checkpoint ------------------------------------------------------------------------------------------


class WrittenCheckpoint(Artifact):
    """A pruned checkpoint on disk."""

    files: tuple[RepoFile, ...]
    """All files with their SHA-256, sorted by path."""
    parameters: int
    base_parameters: int
    weight_bytes: int
    """Sum of the tensors' bytes."""
    base_weight_bytes: int
    dtypes: tuple[str, ...]
    """dtypes of the stored tensors, as safetensors spells them."""
    kv_bytes_per_token: int
    """Bytes that the KV cache grows by per token, at the stored dtype."""
    base_kv_bytes_per_token: int


class Check(Artifact):
    """One check of the verification."""

    name: str
    passed: bool
    detail: str
    """What was seen, with its figures."""


class Verification(Artifact):
    """What a fresh process saw when it loaded the checkpoint as a reader would."""

    checks: tuple[Check, ...]
    max_logit_difference: float
    """Largest absolute difference to the base with the dropped sublayers bypassed, in float32."""
    parameters: int
    cache_bytes: int
    """Bytes in the KV cache after `cache_tokens` tokens."""
    cache_tokens: int
    transformers: str

    @property
    def passed(self) -> bool:
        """True where every check passed."""
        return all(c.passed for c in self.checks)


class PrunedCheckpoint(Artifact):
    """A checkpoint that was written and verified."""

    written: WrittenCheckpoint
    verification: Verification


# ---- evaluation --------------------------------------------------------------------------------------------------


class MetricValue(Artifact):
    """A metric of one model on one task."""

    value: float
    standard_error: float | None = None


class TaskComparison(Artifact):
    """One metric of one task, for both models, on the same documents."""

    task: str
    metric: str
    """As lm-eval writes it, without the filter: `acc_norm`."""
    higher_is_better: bool
    documents: int
    documents_available: int
    num_fewshot: int
    version: str
    """Task version from lm-eval."""
    dataset: str | None
    """Data set id from lm-eval's own task config."""
    dataset_config: str | None
    dataset_commit: str | None
    split: str | None
    base: MetricValue
    pruned: MetricValue

    @property
    def is_share(self) -> bool:
        """True for metrics between 0 and 1, whose change is told in points."""
        return self.metric in {"acc", "acc_norm", "exact_match", "f1", "mcc", "em"}

    @property
    def change_points(self) -> float | None:
        """Pruned minus base in percentage points; None for metrics that are not shares."""
        return 100 * (self.pruned.value - self.base.value) if self.is_share else None

    @property
    def change_relative(self) -> float | None:
        """Pruned over base minus one, in percent; None where the base is 0."""
        return 100 * (self.pruned.value / self.base.value - 1) if self.base.value else None


class BenchmarkComparison(Artifact):
    """The benchmarks of base and pruned, measured in one run."""

    tasks: tuple[TaskComparison, ...]
    """The first metric of each task is its main one."""
    limit: int | None
    """Documents per task at most; None for all."""
    batch_size: int
    dtype: str
    device: str
    seed: int
    lm_eval: str
    """Version of lm-eval."""
    base_seconds: float
    pruned_seconds: float

    def main_metrics(self) -> tuple[TaskComparison, ...]:
        """The first metric of each task."""
        seen: dict[str, TaskComparison] = {}
        for task in self.tasks:
            seen.setdefault(task.task, task)
        return tuple(seen.values())

    @property
    def mean_change_points(self) -> float | None:
        """Mean change in points over the tasks whose main metric is a share."""
        changes = [c for t in self.main_metrics() if (c := t.change_points) is not None]
        return sum(changes) / len(changes) if changes else None


class Continuation(Artifact):
    """What both models wrote after one prompt."""

    prompt: str
    base: str
    pruned: str
    base_tokens: int
    """New tokens, the end-of-text token included."""
    pruned_tokens: int


class GenerationComparison(Artifact):
    """Free text of base and pruned on the same prompts."""

    continuations: tuple[Continuation, ...]
    max_new_tokens: int
    decoding: Literal["greedy"] = "greedy"
    dtype: str
    device: str


# ---- publishing --------------------------------------------------------------------------------------------------


class PublishedCommit(Artifact):
    """What is on the Hub now."""

    repo_id: str
    commit: str
    parent: str | None
    url: str
    created: bool
    """False where the remote files were already the same and no commit was made."""
    tag: str | None = None
    pull_request_url: str | None = None
    files: tuple[RepoFile, ...]
    """The remote files, each compared with what was uploaded."""


class LoadedBack(Artifact):
    """What the published model wrote after a fresh process had loaded it from the Hub."""

    prompt: str
    text: str
    """The prompt with its greedy continuation."""
    parameters: int


class Environment(Artifact):
    """Where a run took place."""

    hubprune: str
    python: str
    platform: str
    machine: str
    """Processor or GPU by name."""
    threads: int
    versions: dict[str, str]
    """Library -> version."""


class PublishReport(Artifact):
    """Everything one publish did and saw, as versioned JSON."""

    schema_version: Literal[1] = 1
    recipe: dict[str, Any]
    base: BaseCheckpoint
    scores: LayerScores | None
    plan: DropPlan
    checkpoint: WrittenCheckpoint
    verification: Verification
    benchmarks: BenchmarkComparison | None
    generation: GenerationComparison | None
    published: PublishedCommit | None
    """None for a dry run."""
    loaded_back: LoadedBack | None = None
    environment: Environment
    seconds: dict[str, float] = Field(default_factory=dict)
    """Wall-clock seconds per stage; a stage that was taken from the work folder keeps those of the run that did it."""
