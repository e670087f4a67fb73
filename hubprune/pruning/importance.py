"""Score every attention, MLP and block of a base in one pass over the calibration set.

For a sublayer that turns the residual stream X into Y, the importance of a token is

    s = 1 - cos(x, y) = 0.5 * || x/|x| - y/|y| ||^2

with the residual included (He et al. 2024, "What Matters in Transformers? Not All Attention is Needed", section 3).
The squared difference is computed in float32 and summed in float64: it is never negative, and keeps its digits where
`1 - cos` in float32 is noise below 1e-6 and in bfloat16 has steps of 0.004.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hubprune.architectures import Architecture
from hubprune.artifacts import Aggregation, DocumentScores, ImportanceScores, LayerScores
from hubprune.console import Advance, Reporter
from hubprune.errors import ScoringError
from hubprune.pruning.aggregation import aggregate
from hubprune.pruning.calibration import CalibrationSet, Document
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
    reporter: Reporter,
) -> LayerScores:
    """Score a base: attention, MLP and block importance of every layer.

    The batch size changes the time it takes and nothing else: padding is masked out of every sum.

    Args:
        folder: the base's files.
        calibration: the documents.
        own_code: whether the folder holds a modeling file of ours, which is then run.
        architecture: the base's family.
        aggregation: how documents are averaged.
        batch_size: documents per batch.
        dtype: what the layers run in.
        device: where they run.
        reporter: shown the progress in batches, over all layers.

    Raises:
        ScoringError: a score is not finite.
        CheckpointError: the weights do not fit the config.
        DiskSpaceError: the hidden states fit neither into memory nor into the temporary folder.
    """
    batches = make_batches(calibration.documents, batch_size)
    model = StreamedModel(folder, architecture=architecture, dtype=dtype, device=device, own_code=own_code)
    with (
        torch.inference_mode(),
        reporter.progress("scoring", total=len(model) * len(batches), unit="batches") as advance,
    ):
        rows = _score_layers(model, batches, architecture, advance)
    scored = [_document_scores(d, values) for d, values in zip(calibration.documents, rows, strict=True)]
    return aggregate(scored, calibration.record, aggregation=aggregation, dtype=dtype, device=device)


def _score_layers(
    model: StreamedModel, batches: Sequence[Batch], architecture: Architecture, advance: Advance
) -> list[list[torch.Tensor]]:
    """Run all batches through one layer after the other.

    Returns:
        For each document, one float64 tensor per layer: attention, MLP and block.
    """
    states = model.embed([batch.ids for batch in batches])
    rows: list[list[torch.Tensor]] = [[] for batch in batches for _ in batch.documents]
    for number, layer in enumerate(model.layers()):
        for place, batch in enumerate(batches):
            arguments = model.arguments(number, batch.ids.shape[1])
            entering = states[place].to(model.device)
            leaving, values = _score_layer(layer, entering, batch.mask, arguments, architecture)
            states[place].copy_(leaving)
            _require_finite(values, layer=number)
            for document, value in zip(batch.documents, values, strict=True):
                rows[document].append(value)
            advance(1)
    return rows


def make_batches(documents: Sequence[Document], batch_size: int) -> list[Batch]:
    """Group documents of similar length, the longest first, so that the first batch shows whether memory suffices."""
    order = sorted(range(len(documents)), key=lambda i: -len(documents[i].ids))
    return [_batch(documents, order[start : start + batch_size]) for start in range(0, len(order), batch_size)]


def _batch(documents: Sequence[Document], members: Sequence[int]) -> Batch:
    rows = [torch.tensor(documents[i].ids) for i in members]
    lengths = torch.tensor([len(row) for row in rows])
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return Batch(tuple(members), ids, torch.arange(ids.shape[1]) < lengths[:, None])


def _score_layer(
    layer: nn.Module, entering: torch.Tensor, mask: torch.Tensor, arguments: dict[str, Any], architecture: Architecture
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run one layer on one batch.

    Returns:
        The hidden states that leave it, and float64 means over each document's tokens, [documents, 3], in the order
        attention, MLP, block.
    """
    between: list[torch.Tensor] = []
    entry = layer.get_submodule(architecture.mlp_entry)
    hook = entry.register_forward_pre_hook(lambda _, inputs: between.append(inputs[0]))
    try:
        output = layer(entering, **arguments)
    finally:
        hook.remove()
    leaving = output if isinstance(output, torch.Tensor) else output[0]
    x, y, z = (_unit(states) for states in (entering, between[0], leaving))
    # The few numbers that are left are summed on the CPU: not every device has float64.
    tokens = torch.stack([_half_squared(x, y), _half_squared(y, z), _half_squared(x, z)], dim=-1).cpu()
    inside = mask[..., None]
    sums = torch.where(inside, tokens, 0).sum(dim=1, dtype=torch.float64)
    return leaving, (sums / inside.sum(dim=1)).cpu()


def _require_finite(values: torch.Tensor, *, layer: int) -> None:
    for kind, means in zip(("attn", "mlp", "block"), values.T, strict=True):
        if not means.isfinite().all():
            raise ScoringError(
                f"The {kind} score of layer {layer} is not a finite number.",
                hint="Its weights are broken, or overflow: try --dtype float32.",
            )


def _unit(states: torch.Tensor) -> torch.Tensor:
    return nn.functional.normalize(states.float(), dim=-1)


def _half_squared(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return (one - other).square_().sum(dim=-1) / 2


def _document_scores(document: Document, values: Sequence[torch.Tensor]) -> DocumentScores:
    attn, mlp, block = torch.stack(list(values)).T.tolist()
    scores = ImportanceScores(attn=tuple(attn), mlp=tuple(mlp), block=tuple(block))
    return DocumentScores(source=document.source, tokens=len(document.ids), scores=scores)
