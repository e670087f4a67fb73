"""Artifacts of a pruned checkpoint: what goes, what was written and verified, and what is on the Hub."""

from __future__ import annotations

from typing import Literal

# fmt: off
# isort: off
from hubprune.core.artifacts.base import (
    AdoptedForm, Artifact, Layout, Method, Metric, Ranking, RepoFile, Schedule, SublayerKind, TargetFound, Unit,
    WidthMetric,
)
from hubprune.core.artifacts.runtimes import RuntimeComparison
# isort: on
# fmt: on

# ---- plan ------------------------------------------------------------------------------------------------------------


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
    neurons: tuple[str, ...] | None = None
    """Which neurons stay, one mask of bits in hex per layer of the base, where the metric did not choose them."""

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
    per: Unit | None = None
    """What the scores were divided by before they were ranked; None where they were ranked as they are."""
    target: TargetFound | None = None
    """How it was found, where a saving was asked for instead of a number."""
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
        widths = self.widths.model_dump(exclude={"before", "multiple"}, exclude_none=True) if self.widths else None
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


# ---- written checkpoint ----------------------------------------------------------------------------------------------


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
    device: str = "cpu"
    """What they ran on."""
    read_bytes: int = 0
    """Of the weights, what the memory had no room to keep and was read from disk again in every pass."""
    new_tokens: int = 24
    """Tokens of each text that was written, the fewer the longer one takes."""
    parameters: int
    cache_bytes: int
    """Bytes in the KV cache after `cache_tokens` tokens."""
    cache_tokens: int
    transformers: str
    runtimes: tuple[str, ...] = ()
    """Other runtimes that ran it and agreed, with their versions; where there is no `in_runtimes` to tell more."""
    in_runtimes: RuntimeComparison | None = None
    """What other runtimes made of it, where it was run in any."""

    @property
    def passed(self) -> bool:
        """True where every check passed."""
        return all(c.passed for c in self.checks)


class PrunedCheckpoint(Artifact):
    """A checkpoint that was written and verified."""

    written: WrittenCheckpoint
    verification: Verification


class Adoption(Artifact):
    """What others pruned, and what of its base is left in it."""

    source: str
    """Repo id, or the name of a folder."""
    commit: str | None
    form: AdoptedForm
    base_model: str
    base_commit: str | None
    plan: DropPlan
    """What went, in the base's numbers."""
    compared: int
    """Tensors that are left."""
    changed: tuple[str, ...]
    """Names, in the base, of those that have other values there."""
    rounded: tuple[str, ...]
    """Their dtypes, where the base has others."""
    made: PrunedCheckpoint | None = None
    """What was written of it."""


# ---- on the hub ------------------------------------------------------------------------------------------------------


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


class PlannedFile(Artifact):
    """A file of the target repo, and what a publish would do with it."""

    path: str
    size: int
    """Bytes; of one that would be deleted, those that are there."""
    change: Literal["new", "changed", "unchanged", "deleted"]
    new_bytes: int | None
    """Bytes of it that the Hub lacks, packed as they would be sent; None where that was not found out."""


class UploadPlan(Artifact):
    """What a publish would change in the target repo, and how much it would send."""

    repo_id: str
    revision: str
    """Branch."""
    parent: str | None
    """Commit that the files were compared with; None where the repo does not exist."""
    create_pr: bool
    files: tuple[PlannedFile, ...]
    """Sorted by path."""
    upload_bytes: int
    """Size of the files that are new or changed."""
    primer_bytes: int
    """What the primer would add to the Hub beside them."""
    new_bytes: int | None
    """Bytes that the Hub lacks, the primer's included; None where that was not found out."""
    card: str
    """README.md as it would be published."""


class LoadedBack(Artifact):
    """What the published model wrote after a fresh process had loaded it from the Hub."""

    prompt: str
    text: str
    """The prompt with its greedy continuation."""
    parameters: int


class SnippetRun(Artifact):
    """What the code that the card shows printed, when a fresh process ran it on the written files."""

    repo_id: str
    """Under which the code finds the files."""
    revision: str | None
    code: str
    """As it was run, and as the card shows it."""
    output: str
    transformers: str
    """Version."""
