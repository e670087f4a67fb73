"""What all artifacts share, and the first of them: a base, the calibration set and the scores of its layers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

SublayerKind = Literal["attn", "mlp"]
Ranking = Literal["attn", "mlp", "block", "joint"]
"""What is ranked by score: attentions, MLPs, whole layers, or attentions and MLPs in one list."""
Method = Literal["attn-drop", "mlp-drop", "block-drop", "joint-drop", "mlp-width"]
Schedule = Literal["one-shot", "iterative"]
Metric = Literal[
    "cosine", "cosine-no-residual", "relative-magnitude", "loss", "kl", "angular", "reverse-order", "random",
]  # fmt: skip
"""What sublayers are ranked by: how far one turns or moves the hidden state; what the model loses without it, as the
rise of its loss or as KL(base || without it), in nats per token; how far a run of layers turns the last token, for as
many layers as go; or an order that looks at nothing."""
BY_LOSS: frozenset[Metric] = frozenset({"loss", "kl"})
"""Metrics in nats per token; of them, only what a ranking looks at is computed."""
WidthMetric = Literal["max_abs", "ppm", "vow", "pon", "l2"]
AdoptedForm = Literal["llm-drop", "anymodel", "fewer"]
"""How others wrote a pruned model: lists of dropped sublayers, `block_configs`, or just fewer layers or neurons."""
Aggregation = Literal["document", "token"]
Layout = Literal["stock", "nemotron-nas", "pruned"]
"""How a checkpoint says which sublayers it has: not at all, in `block_configs`, or in keys of our own."""
LayoutChoice = Literal["auto", "stock", "nemotron-nas", "pruned"]
"""A layout, or `auto` for the first of them that fits."""


Shown = TypeVar("Shown", bound="Artifact")


class Artifact(BaseModel):
    """A frozen value whose JSON form is stable: unknown keys are refused, NaN never gets in."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def _repr_html_(self) -> str | None:
        """Show the value in a notebook, as whatever `shown_by` named for its type; None leaves it to its repr."""
        views = (VIEWS[kind] for kind in type(self).__mro__ if kind in VIEWS)
        return next((view(self) for view in views), None)


VIEWS: dict[type, Callable[[Any], str]] = {}
"""Type of an artifact -> what writes it as HTML.  Tables and pictures are made on higher floors, which enter them."""


def shown_by(kind: type[Shown], view: Callable[[Shown], str]) -> None:
    """Name what a notebook shows of an artifact: a function that writes one of this type as HTML."""
    VIEWS[kind] = view


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


# ---- the base --------------------------------------------------------------------------------------------------------


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
    private: bool = False
    """Whether only some may see its repo."""
    folder: str | None = None
    """Local folder with the files: the given one, or the cache's snapshot once downloaded."""
    config: dict[str, Any]
    """The parsed config.json; of a downloaded base, with what transformers makes of its weights where it is silent."""
    files: tuple[RepoFile, ...]
    card: BaseCard = BaseCard()
    tensor_names: Mapping[str, str | None] = Field(default={}, exclude=True)
    """Name of a tensor in the files -> in the model, None where transformers does not use it; others keep theirs."""

    @property
    def num_hidden_layers(self) -> int:
        """Number of decoder layers."""
        return int(self.config["num_hidden_layers"])


# ---- its scores ------------------------------------------------------------------------------------------------------


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
    """Documents that were scored, or sequences where they were packed."""
    texts: int | None = None
    """Documents that packed sequences were made of; None where nothing was packed."""
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
    """Tokens after which a document was cut off, or the exact length of a packed sequence."""
    packed: bool = False
    """Whether documents were joined and cut into sequences of one length."""
    chat_template: bool = False
    """Whether documents went through the chat template of the base."""
    seed: int
    shuffle_buffer: int
    """Documents in the streaming shuffle buffer."""
    token_sha256: str
    """SHA-256 over the token ids of all documents, in order."""

    @property
    def unit(self) -> Literal["documents", "sequences"]:
        """What is counted: one sample is a document, or a packed sequence."""
        return "sequences" if self.packed else "documents"

    @property
    def documents(self) -> int:
        """Documents in all, or sequences where they were packed."""
        return sum(s.documents for s in self.sources)

    @property
    def tokens(self) -> int:
        """Scored tokens in all."""
        return sum(s.tokens for s in self.sources)


class ImportanceScores(Artifact):
    """Importance by some metric, one value per layer, for each of the three ways to look at a layer.

    Where a metric takes runs of its own for each of them, those that nobody asked for are empty.
    """

    attn: tuple[float, ...]
    mlp: tuple[float, ...]
    block: tuple[float, ...]

    @property
    def kinds(self) -> tuple[Literal["attn", "mlp", "block"], ...]:
        """The kinds that were computed."""
        found: tuple[Literal["attn", "mlp", "block"], ...] = ("attn", "mlp", "block")
        return tuple(kind for kind in found if getattr(self, kind))

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

    metric: Metric = "cosine"
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
    per_document: tuple[DocumentScores, ...] = Field(default=(), repr=False)
    """Kept in the work folder for paired statistics; left out of the manifest."""

    def only(self, kinds: Collection[Literal["attn", "mlp", "block"]]) -> LayerScores:
        """Return the same with the scores of some kinds alone."""
        gone: dict[str, tuple[float, ...]] = {kind: () for kind in ("attn", "mlp", "block") if kind not in kinds}
        rows = [row.model_copy(update={"scores": row.scores.model_copy(update=gone)}) for row in self.per_document]
        return self.model_copy(update={
            "mean": self.mean.model_copy(update=gone),
            "standard_error": self.standard_error.model_copy(update=gone),
            "by_source": tuple(found.model_copy(update=gone) for found in self.by_source),
            "per_document": tuple(rows),
        })  # fmt: skip


# ---- what saving costs ----------------------------------------------------------------------------------------------

Unit = Literal["params", "bytes", "flops", "kv", "latency"]
"""What a sublayer saves: parameters, bytes in the files, floating-point operations per token, bytes of KV cache,
seconds per token."""
Goal = Literal["params", "bytes", "flops", "kv", "memory", "latency"]
"""What a target can be of; memory is the files and the KV caches of all sequences together."""
Part = Literal["attn", "mlp", "block", "width"]
"""What a target can be reached by: attentions, MLPs, whole layers, narrower MLPs."""


class LatencyTable(Artifact):
    """What sublayers take on one device, of one token that is written after a context."""

    attn: dict[str, float]
    """Kind of attention -> seconds of one of them; 0 where it was not told apart from nothing."""
    mlp: float
    """Seconds of one MLP."""
    total: float
    """Seconds of the whole model."""
    device: str
    dtype: str
    context: int
    """Tokens in the KV cache."""
    batch: int
    rounds: int
    """Paired rounds behind every figure."""


class NarrowerLoss(Artifact):
    """What the base loses with fewer neurons in one MLP."""

    layer: int
    width: int
    """Neurons that stay."""
    loss: float
    """Rise of the loss, in nats per token."""


class LeftOut(Artifact):
    """What a base loses by every change that a target may be reached by, each alone: one pass."""

    scores: LayerScores
    """Of the changes that are sublayers or whole layers."""
    narrower: tuple[NarrowerLoss, ...] = ()
    base_loss: float
    """Nats per token of the unpruned base."""
    layer_runs: float
    """How often a layer was run, in runs over the whole calibration set."""


class FrontierPoint(Artifact):
    """The least loss that a saving is to be had for, by losses that are added up."""

    saved: int
    """In the unit of the frontier."""
    loss: float
    """Sum of the losses of what goes, in nats per token: predicted."""
    attn: tuple[int, ...] = ()
    """Layers that lose their attention; those of a whole layer are in both."""
    mlp: tuple[int, ...] = ()
    widths: tuple[tuple[int, int], ...] = ()
    """Layer, and neurons that stay in its MLP."""
    measured: float | None = None
    """Rise of the loss with all of it gone at once; None where that was not computed."""


class Frontier(Artifact):
    """Loss against saving of one base."""

    base: str
    goal: Goal
    before: int
    """What the base takes, in the unit of the goal; of latency in nanoseconds, all others as they are called."""
    context: int
    batch: int
    over: tuple[Part, ...]
    metric: Metric = "loss"
    base_loss: float
    layer_runs: float
    """Of the one pass that all points come from."""
    points: tuple[FrontierPoint, ...]
    """Ascending by what is saved; the first one is the base."""


class Reached(Artifact):
    """One target, and what came of it."""

    goal: Goal
    asked: str
    """As it was asked for: -30%, or 8GB."""
    before: int
    after: int

    @property
    def change(self) -> float:
        """Relative change."""
        return self.after / self.before - 1


class TargetFound(Artifact):
    """How a plan was found that reaches a target at the least loss."""

    reached: tuple[Reached, ...]
    predicted: float
    """Sum of the losses of what goes, each measured alone, in nats per token."""
    measured: float
    """Rise of the loss on the same texts with all of it gone at once."""
    frontier: Frontier
    """Of the first target, from the same pass; the chosen plan is the one measured point of it."""
    latency: LatencyTable | None = None
