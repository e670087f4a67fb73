"""Artifacts of the pruning room: the base, its scores, what goes, and the written checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from hubprune.core.artifacts.artifact import (
    Aggregation,
    Artifact,
    Layout,
    Method,
    Metric,
    Ranking,
    Schedule,
    SublayerKind,
    WidthMetric,
)

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
    """Importance by some metric, one value per layer, for each of the three ways to look at a layer."""

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
    ranking: Ranking = "attn"
    """What it was ranked among; a layer that goes by its block score is two sublayers with the same rank."""
    round: int | None = None
    """In which round of an iterative schedule it went, from 1."""


class Margin(Artifact):
    """How clearly the last dropped sublayer and the first kept candidate are told apart."""

    ranking: Ranking = "attn"
    last_dropped: int
    first_kept: int
    kinds: tuple[SublayerKind, SublayerKind] = ("attn", "attn")
    """Kind of the last dropped and of the first kept, which differ only in a joint ranking."""
    difference: float
    """Score of the first kept minus score of the last dropped."""
    standard_error: float
    """Of that difference, paired by document."""

    @property
    def neighbours(self) -> tuple[int, int]:
        """Layers of the last dropped and of the first kept."""
        return self.last_dropped, self.first_kept

    @property
    def near_tie(self) -> bool:
        """True where the difference is within two standard errors."""
        return self.difference <= 2 * self.standard_error


class WidthPlan(Artifact):
    """How many neurons every MLP keeps, and by which importance they are chosen."""

    before: tuple[int, ...]
    """Neurons that the base has, per layer; 0 where it has no MLP."""
    kept: tuple[int, ...]
    """Neurons that stay, per layer of the base; what it says of an MLP that goes is void."""
    metric: WidthMetric = "max_abs"
    multiple: int = 1
    """What the widths were rounded to."""

    @property
    def changes(self) -> dict[tuple[int, int], tuple[int, ...]]:
        """Neurons before and after -> layers of the base whose MLP gets so much narrower, ascending."""
        found: dict[tuple[int, int], tuple[int, ...]] = {}
        for layer, pair in enumerate(zip(self.before, self.kept, strict=True)):
            if pair[0] != pair[1]:
                found[pair] = (*found.get(pair, ()), layer)
        return found


class DropPlan(Artifact):
    """What goes.  Selection makes it; the writer, the modeling file, verification and the card follow it."""

    methods: tuple[Method, ...] = ("attn-drop",)
    selected_by: Literal["score", "hand"]
    num_hidden_layers: int
    """Decoder layers of the base; all original numbers are the base's own."""
    dropped: tuple[DroppedSublayer, ...]
    """In the order of selection."""
    absent: tuple[tuple[SublayerKind, int], ...] = ()
    """Sublayers that a base which was pruned before lacks already: kind and number in the base."""
    protected: tuple[int, ...] = ()
    margins: tuple[Margin, ...] = ()
    """One per ranking that something was chosen from and something left."""
    schedule: Schedule = "one-shot"
    metric: Metric = "cosine"
    widths: WidthPlan | None = None
    """None where the MLPs keep their widths."""
    layout: Layout = "pruned"
    """How the checkpoint is written; `stock` only where every layer that stays has both sublayers."""

    def layers(self, kind: SublayerKind) -> tuple[int, ...]:
        """Original numbers of the layers that lose their sublayer of this kind, ascending."""
        return tuple(sorted(d.layer for d in self.dropped if d.kind == kind))

    @property
    def sublayers(self) -> tuple[tuple[SublayerKind, int], ...]:
        """Kind and original number of everything that goes, in a fixed order."""
        return tuple(sorted((d.kind, d.layer) for d in self.dropped))

    @property
    def parts(self) -> str:
        """What kind of parts go, in words."""
        kinds = [*(["sublayers"] if self.dropped else []), *(["neurons"] if self.widths else [])]
        return " and ".join(kinds) or "sublayers"

    @property
    def content(self) -> object:
        """What a checkpoint's tensors depend on, for keys of stages."""
        widths = self.widths.model_dump(exclude={"before", "multiple"}) if self.widths else None
        return [self.sublayers, widths] if widths else self.sublayers

    @property
    def absent_layers(self) -> dict[SublayerKind, tuple[int, ...]]:
        """Numbers, in the base, of the layers that lack a sublayer already, ascending."""
        kinds: tuple[SublayerKind, ...] = ("attn", "mlp")
        return {kind: tuple(sorted(layer for k, layer in self.absent if k == kind)) for kind in kinds}

    def gone(self, kind: SublayerKind) -> tuple[int, ...]:
        """Original numbers of the layers without a sublayer of this kind, by this plan or before it, ascending."""
        return tuple(sorted({*self.layers(kind), *self.absent_layers[kind]}))

    @property
    def removed_layers(self) -> tuple[int, ...]:
        """Original numbers of the layers with neither sublayer left: they go altogether."""
        return tuple(sorted(set(self.gone("attn")) & set(self.gone("mlp"))))

    @property
    def published_numbers(self) -> dict[int, int]:
        """Original number -> published number of every layer that stays."""
        kept = [i for i in range(self.num_hidden_layers) if i not in self.removed_layers]
        return {original: published for published, original in enumerate(kept)}

    def published_layers(self, kind: SublayerKind) -> tuple[int, ...]:
        """Published numbers of the layers that stay without their sublayer of this kind, ascending."""
        numbers = self.published_numbers
        return tuple(numbers[i] for i in self.gone(kind) if i in numbers)


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
    """Largest absolute difference to the base with the dropped sublayers bypassed."""
    dtype: str = "float32"
    """dtype that both ran in for the comparison."""
    parameters: int
    cache_bytes: int
    """Bytes in the KV cache after `cache_tokens` tokens."""
    cache_tokens: int
    transformers: str
    runtimes: tuple[str, ...] = ()
    """Other runtimes that ran it and agreed, with their versions."""

    @property
    def passed(self) -> bool:
        """True where every check passed."""
        return all(c.passed for c in self.checks)


class PrunedCheckpoint(Artifact):
    """A checkpoint that was written and verified."""

    written: WrittenCheckpoint
    verification: Verification
