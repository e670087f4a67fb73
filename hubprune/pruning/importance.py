"""Score every attention, MLP and block of a base in one pass over the calibration set.

For a sublayer that turns the residual stream X into Y, the importance of a token is

    s = 1 - cos(x, y) = 0.5 * || x/|x| - y/|y| ||^2

with the residual included (He et al. 2024, "What Matters in Transformers? Not All Attention is Needed", section 3).
The squared difference is computed in float32 and summed in float64: it is never negative, and keeps its digits where
`1 - cos` in float32 is noise below 1e-6 and in bfloat16 has steps of 0.004.

The other metrics of that paper look inside the layer, whose attention turns X into Y and whose MLP turns Y into Z:

cosine-no-residual   1 - cos(U, f(U)): what the attention or MLP itself is handed, behind the norm, and what it returns,
                     "solely the inputs and outputs of the Attention or MLP layers" (appendix B, Table 6)
relative-magnitude   |F| / |X + F|: what is added to the residual stream, over the sum (Table 7; Samragh et al. 2023,
                     "Weight subcloning", through ShortGPT)

F is what really enters the sum: behind the norm that some families have after a sublayer, and times their residual
multiplier.  It is taken where it is made, since Y - X in bfloat16 is mostly rounding error.  The paper defines neither
of the two for a whole layer: F is then the sum of what attention and MLP add, and 1 - cos(X, F) is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hubprune.core.architectures import Architecture
from hubprune.core.artifacts import (
    Aggregation,
    DocumentScores,
    ImportanceScores,
    LayerScores,
    Metric,
    Ranking,
    SublayerKind,
)  # fmt: skip
from hubprune.core.console import Advance, Reporter
from hubprune.core.errors import ScoringError
from hubprune.core.streaming import StreamedModel
from hubprune.pruning.aggregation import aggregate
from hubprune.pruning.calibration import CalibrationSet, Document


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """How a base is scored."""

    architecture: Architecture
    own_code: bool = False
    """Whether the folder holds a modeling file of ours, which is then run."""
    tensor_names: Mapping[str, str | None] = field(default_factory=dict)
    """Name of a tensor in the files -> in the model, as in `BaseCheckpoint`."""
    metric: Metric = "cosine"
    aggregation: Aggregation = "document"
    """How documents are averaged."""
    batch_size: int = 8
    """Documents per batch; it changes the time that scoring takes and nothing else."""
    dtype: str = "float32"
    """What the layers run in."""
    device: str = "cpu"
    """Where they run."""


def score(folder: Path, calibration: CalibrationSet, scoring: Scoring, *, reporter: Reporter) -> LayerScores:
    """Score a base, whose files are in the folder: attention, MLP and block importance of every layer.

    Raises:
        ScoringError: a score is not finite.
        CheckpointError: the weights do not fit the config.
        DiskSpaceError: the hidden states fit neither into memory nor into the temporary folder.
    """
    scorer = Scorer(folder, calibration, scoring)
    with reporter.progress("scoring", total=scorer.cost(), unit="batches") as advance:
        scorer.run(advance)
    return scorer.scores()


class Scorer:
    """A base and the hidden states of its calibration set, scored from any layer on.

    Padding is masked out of every sum.

    Raises:
        CheckpointError: the embedding does not have the tokens.
        DiskSpaceError: the hidden states fit neither into memory nor into the temporary folder.
    """

    def __init__(
        self, folder: Path, calibration: CalibrationSet, scoring: Scoring, *, keeps_states: bool = False
    ) -> None:
        """Open a base; nothing but its embedding is read.

        With `keeps_states` the states that enter each layer are kept, so that it can be run from there again.
        """
        self._scoring, self._calibration = scoring, calibration
        self._batches = make_batches(calibration.documents, scoring.batch_size)
        self.model = StreamedModel(
            folder,
            architecture=scoring.architecture,
            dtype=scoring.dtype,
            device=scoring.device,
            own_code=scoring.own_code,
            tensor_names=scoring.tensor_names,
        )
        layers, ids = len(self.model), [batch.ids for batch in self._batches]
        with torch.inference_mode():
            rooms = self.model.embed(ids, rooms=layers if keeps_states else 1)
        # With one room, what leaves a layer takes the place of what entered it.
        self._entering = rooms if keeps_states else rooms * layers
        self._values = torch.zeros(layers, len(calibration.documents), 3, dtype=torch.float64)
        self.layer_runs = 0.0
        """How often a layer was run so far, over the whole calibration set."""

    def bypass(self, kind: SublayerKind, layer: int) -> None:
        """Let a sublayer be gone from now on."""
        self.model.bypass(kind, layer)

    def look_at(self, ranking: Ranking) -> None:
        """Do nothing: one pass has the scores of all rankings."""

    def cost(self, start: int = 0) -> int:
        """Return how many batches a run takes over all layers, from the layer `start` on."""
        return len(self._batches) * len(self._active(start))

    def _active(self, start: int) -> list[int]:
        return [number for number in range(start, len(self.model)) if not self.model.does_nothing(number)]

    def run(self, advance: Advance, *, start: int = 0) -> None:
        """Run all batches through one layer after the other, and tell of every batch that a layer is through with.

        What enters the layer `start` has to be there from an earlier run.

        Raises:
            ScoringError: a score is not finite.
            CheckpointError: the weights do not fit the config.
        """
        active = self._active(start)
        with torch.inference_mode(), closing(self.model.layers(active)) as layers:
            for number in range(start, len(self.model)):
                layer = next(layers) if number in active else None
                self.layer_runs += layer is not None
                for place in range(len(self._batches)):
                    self._run_layer(number, layer, place)
                    advance(int(layer is not None))

    def _run_layer(self, number: int, layer: nn.Module | None, place: int) -> None:
        """Run one batch through one layer; None stands for one that only hands on."""
        leaving = entering = self._entering[number][place]
        if layer is not None:
            batch, metric = self._batches[place], self._scoring.metric
            arguments = self.model.arguments(number, batch.ids.shape[1])
            entering = entering.to(self.model.device)
            passage = pass_through(layer, entering, arguments, architecture=self._scoring.architecture, metric=metric)
            leaving, inside = passage.leaving, batch.mask[..., None]
            # The few numbers that are left are summed on the CPU: not every device has float64.
            sums = torch.where(inside, measure(passage, metric).cpu(), 0).sum(dim=1, dtype=torch.float64)
            means = sums / inside.sum(dim=1)  # [documents, 3]
            for kind, values in zip(("attn", "mlp", "block"), means.T, strict=True):
                if not values.isfinite().all():
                    raise ScoringError(
                        f"The {kind} score of layer {number} is not a finite number.",
                        hint="Its weights are broken, or overflow: try --dtype float32.",
                    )
            self._values[number, list(batch.documents)] = means
        if number + 1 < len(self.model):
            self._entering[number + 1][place].copy_(leaving)

    def scores(self) -> LayerScores:
        """Average what the runs have found."""
        rows, how = [], self._scoring
        for document, values in zip(self._calibration.documents, self._values.unbind(dim=1), strict=True):
            attn, mlp, block = (tuple(column) for column in values.T.tolist())
            found = ImportanceScores(attn=attn, mlp=mlp, block=block)
            rows.append(DocumentScores(source=document.source, tokens=len(document.ids), scores=found))
        told, record = {"dtype": how.dtype, "device": how.device}, self._calibration.record
        return aggregate(rows, record, metric=how.metric, aggregation=how.aggregation, **told)


@dataclass(frozen=True, slots=True)
class Batch:
    """Documents of similar length, padded on the right to the longest."""

    documents: tuple[int, ...]
    """Indices into the calibration set."""
    ids: torch.Tensor
    """int64, [documents, tokens]; 0 where padded."""
    mask: torch.Tensor
    """bool, [documents, tokens]; True where a document has a token."""


def make_batches(documents: Sequence[Document], batch_size: int) -> list[Batch]:
    """Group documents of similar length, the longest first, so that the first batch shows whether memory suffices."""
    order = sorted(range(len(documents)), key=lambda i: -len(documents[i].ids))
    batches = []
    for start in range(0, len(order), batch_size):
        members = order[start : start + batch_size]
        rows = [torch.tensor(documents[i].ids) for i in members]
        ids, lengths = nn.utils.rnn.pad_sequence(rows, batch_first=True), torch.tensor([len(row) for row in rows])
        batches.append(Batch(tuple(members), ids, torch.arange(ids.shape[1]) < lengths[:, None]))
    return batches


@dataclass(slots=True)
class Part:
    """One sublayer at work on a batch; states of shape [documents, tokens, hidden_size]."""

    given: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    """What its attention or MLP is handed."""
    returned: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    """What its attention or MLP returns."""
    added: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    """What comes to the residual stream, float32 once the layer is through."""


@dataclass(slots=True)
class Passage:
    """A batch on its way through one layer; the parts are empty for a metric that does not look inside."""

    entering: torch.Tensor
    between: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    leaving: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    attn: Part = field(default_factory=Part)
    mlp: Part = field(default_factory=Part)


def pass_through(
    layer: nn.Module, entering: torch.Tensor, arguments: dict[str, Any], *, architecture: Architecture, metric: Metric
) -> Passage:
    """Run one layer on one batch, [documents, tokens, hidden_size], and note what a metric needs.

    The arguments are what the model hands to the layer besides.
    """
    passage = Passage(entering)

    def note_between(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        passage.between = inputs[0]

    with ExitStack() as hooks:
        entry = layer.get_submodule(architecture.mlp_entry)
        hooks.callback(entry.register_forward_pre_hook(note_between).remove)
        parts: dict[SublayerKind, Part] = {"attn": passage.attn, "mlp": passage.mlp} if metric != "cosine" else {}
        for kind, part in parts.items():
            for name in architecture.parts[kind]:
                whole = name in (architecture.attn_module, architecture.mlp_module)
                hook = layer.get_submodule(name).register_forward_hook(_noting(part, whole=whole), with_kwargs=True)
                hooks.callback(hook.remove)
        output = layer(entering, **arguments)
    passage.leaving = output if isinstance(output, torch.Tensor) else output[0]
    factor = getattr(layer, architecture.residual_multiplier) if architecture.residual_multiplier else 1.0
    for part in parts.values():
        part.added = factor * part.added.float().expand_as(entering)
        part.returned = part.returned.expand_as(entering)
    return passage


def _noting(part: Part, *, whole: bool) -> Callable[..., None]:
    """Return a hook for an attention or MLP, which is `whole`, or for a norm of its sublayer.

    Of these modules, the last to run returns what is added.
    """

    def note(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        part.added = output if isinstance(output, torch.Tensor) else output[0]
        if whole:
            part.given = inputs[0] if inputs else named["hidden_states"]
            part.returned = part.added

    return note


def measure(passage: Passage, metric: Metric) -> torch.Tensor:
    """Return a metric per token, float32, [documents, tokens, 3], in the order attention, MLP, block."""
    return torch.stack(MEASURES[metric](passage), dim=-1)


def _cosine(passage: Passage) -> list[torch.Tensor]:
    x, y, z = (_unit(states) for states in (passage.entering, passage.between, passage.leaving))
    return [_half_squared(x, y), _half_squared(y, z), _half_squared(x, z)]


def _cosine_no_residual(passage: Passage) -> list[torch.Tensor]:
    attn, mlp = passage.attn, passage.mlp
    pairs = (
        (attn.given, attn.returned), (mlp.given, mlp.returned), (passage.entering, attn.added + mlp.added),
    )  # fmt: skip
    found = []
    for one, other in ((one.float(), other.float()) for one, other in pairs):
        # 1 where a vector is zero, as in `torch.nn.functional.cosine_similarity`.
        nothing = (_length(one) == 0) | (_length(other) == 0)
        found.append(torch.where(nothing, 1.0, _half_squared(_unit(one), _unit(other))))
    return found


def _relative_magnitude(passage: Passage) -> list[torch.Tensor]:
    attn, mlp = passage.attn.added, passage.mlp.added
    pairs = ((attn, passage.between), (mlp, passage.leaving), (attn + mlp, passage.leaving))
    lengths = ((_length(added), _length(total.float())) for added, total in pairs)
    return [torch.where(part == 0, 0.0, part / whole) for part, whole in lengths]  # 0 where nothing is added


MEASURES: Mapping[Metric, Callable[[Passage], list[torch.Tensor]]] = {
    "cosine": _cosine, "cosine-no-residual": _cosine_no_residual, "relative-magnitude": _relative_magnitude,
}  # fmt: skip


def _unit(states: torch.Tensor) -> torch.Tensor:
    return nn.functional.normalize(states.float(), dim=-1)


def _half_squared(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return (one - other).square_().sum(dim=-1) / 2


def _length(states: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(states, dim=-1)
