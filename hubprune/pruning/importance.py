"""Score every attention, MLP and block of a base in one pass over the calibration set.

For a sublayer that turns the residual stream X into Y, the importance of a token is

    s = 1 - cos(x, y) = 0.5 * || x/|x| - y/|y| ||^2

with the residual included (He et al. 2024, "What Matters in Transformers? Not All Attention is Needed", section 3).
The squared difference is computed in float32 and summed in float64: it is never negative, and keeps its digits where
`1 - cos` in float32 is noise below 1e-6 and in bfloat16 has steps of 0.004.  Other metrics are in `metrics`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from hubprune.core.architectures import Architecture
from hubprune.core.artifacts import Aggregation, DocumentScores, ImportanceScores, LayerScores, Metric
from hubprune.core.console import Advance, Reporter
from hubprune.core.errors import ScoringError
from hubprune.pruning.aggregation import aggregate
from hubprune.pruning.calibration import CalibrationSet, Document
from hubprune.pruning.metrics import measure, pass_through
from hubprune.pruning.streaming import StreamedModel


@dataclass(frozen=True, slots=True)
class Batch:
    """Documents of similar length, padded on the right to the longest."""

    documents: tuple[int, ...]
    """Indices into the calibration set."""
    ids: torch.Tensor
    """int64, [documents, tokens]; 0 where padded."""
    mask: torch.Tensor
    """bool, [documents, tokens]; True where a document has a token."""


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

        Args:
            folder: the base's files.
            calibration: the documents.
            scoring: how.
            keeps_states: whether the states that enter each layer are kept, so that it can be run from there again.
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

    def cost(self, start: int = 0) -> int:
        """Return how many batches a run takes over all layers, from the layer `start` on."""
        return len(self._batches) * len(self._active(start))

    def run(self, advance: Advance, *, start: int = 0) -> None:
        """Run all batches through one layer after the other.

        Args:
            advance: told of every batch that a layer is through with.
            start: the first layer; what enters it has to be there from an earlier run.

        Raises:
            ScoringError: a score is not finite.
            CheckpointError: the weights do not fit the config.
        """
        active = self._active(start)
        with torch.inference_mode(), closing(self.model.layers(active)) as layers:
            for number in range(start, len(self.model)):
                layer = next(layers) if number in active else None
                for place in range(len(self._batches)):
                    self._run_layer(number, layer, place)
                    advance(int(layer is not None))

    def scores(self) -> LayerScores:
        """Average what the runs have found."""
        rows = [
            _document_scores(document, values)
            for document, values in zip(self._calibration.documents, self._values.unbind(dim=1), strict=True)
        ]
        how = self._scoring
        return aggregate(
            rows,
            self._calibration.record,
            metric=how.metric,
            aggregation=how.aggregation,
            dtype=how.dtype,
            device=how.device,
        )

    def _active(self, start: int) -> list[int]:
        return [number for number in range(start, len(self.model)) if not self.model.does_nothing(number)]

    def _run_layer(self, number: int, layer: nn.Module | None, place: int) -> None:
        """Run one batch through one layer; None stands for one that only hands on."""
        leaving = entering = self._entering[number][place]
        if layer is not None:
            batch = self._batches[place]
            passage = pass_through(
                layer,
                entering.to(self.model.device),
                self.model.arguments(number, batch.ids.shape[1]),
                architecture=self._scoring.architecture,
                metric=self._scoring.metric,
            )
            leaving = passage.leaving
            values = _document_means(measure(passage, self._scoring.metric), batch.mask)
            _require_finite(values, layer=number)
            self._values[number, list(batch.documents)] = values
        if number + 1 < len(self.model):
            self._entering[number + 1][place].copy_(leaving)


def score(
    folder: Path,
    calibration: CalibrationSet,
    *,
    own_code: bool = False,
    architecture: Architecture,
    aggregation: Aggregation,
    batch_size: int,
    dtype: str,
    device: str,
    metric: Metric = "cosine",
    reporter: Reporter,
) -> LayerScores:
    """Score a base: attention, MLP and block importance of every layer.

    Args:
        folder: the base's files.
        calibration: the documents.
        own_code: as in `Scoring`, like all that are not said here.
        architecture: the base's family.
        aggregation: how documents are averaged.
        batch_size: documents per batch.
        dtype: what the layers run in.
        device: where they run.
        metric: what is measured.
        reporter: shown the progress in batches, over all layers.

    Raises:
        ScoringError: a score is not finite.
        CheckpointError: the weights do not fit the config.
        DiskSpaceError: the hidden states fit neither into memory nor into the temporary folder.
    """
    scoring = Scoring(
        architecture=architecture,
        own_code=own_code,
        metric=metric,
        aggregation=aggregation,
        batch_size=batch_size,
        dtype=dtype,
        device=device,
    )
    scorer = Scorer(folder, calibration, scoring)
    with reporter.progress("scoring", total=scorer.cost(), unit="batches") as advance:
        scorer.run(advance)
    return scorer.scores()


def make_batches(documents: Sequence[Document], batch_size: int) -> list[Batch]:
    """Group documents of similar length, the longest first, so that the first batch shows whether memory suffices."""
    order = sorted(range(len(documents)), key=lambda i: -len(documents[i].ids))
    return [_batch(documents, order[start : start + batch_size]) for start in range(0, len(order), batch_size)]


def _batch(documents: Sequence[Document], members: Sequence[int]) -> Batch:
    rows = [torch.tensor(documents[i].ids) for i in members]
    lengths = torch.tensor([len(row) for row in rows])
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return Batch(tuple(members), ids, torch.arange(ids.shape[1]) < lengths[:, None])


def _document_means(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return float64 means over each document's tokens, [documents, 3]."""
    # The few numbers that are left are summed on the CPU: not every device has float64.
    inside = mask[..., None]
    sums = torch.where(inside, tokens.cpu(), 0).sum(dim=1, dtype=torch.float64)
    return sums / inside.sum(dim=1)


def _require_finite(values: torch.Tensor, *, layer: int) -> None:
    for kind, means in zip(("attn", "mlp", "block"), values.T, strict=True):
        if not means.isfinite().all():
            raise ScoringError(
                f"The {kind} score of layer {layer} is not a finite number.",
                hint="Its weights are broken, or overflow: try --dtype float32.",
            )


def _document_scores(document: Document, values: torch.Tensor) -> DocumentScores:
    """Take a document's values, [layers, 3], as plain numbers."""
    attn, mlp, block = values.T.tolist()
    scores = ImportanceScores(attn=tuple(attn), mlp=tuple(mlp), block=tuple(block))
    return DocumentScores(source=document.source, tokens=len(document.ids), scores=scores)
