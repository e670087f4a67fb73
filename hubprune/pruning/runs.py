"""Runs of consecutive layers: how far one turns the last token, and which of them goes as a whole.

    d(l, n) = 1 / pi * arccos(cos(x, y)),  x enters layer l and y leaves layer l + n - 1

for the last token of a document, the only one that has seen all others (Gromov et al. 2024, "The Unreasonable
Ineffectiveness of the Deeper Layers", arXiv 2403.17887; PruneMe is an implementation).  The run of n layers with the
smallest mean distance goes.  One pass over the base has the distances of all runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from hubprune.core.amounts import count_of
from hubprune.core.artifacts import DocumentScores, DropPlan, ImportanceScores, LayerScores
from hubprune.core.console import Reporter
from hubprune.core.errors import PlanError, ScoringError
from hubprune.core.specs import DropSpec
from hubprune.pruning.aggregation import aggregate
from hubprune.pruning.selection import KINDS, Candidate, Shape, check_request, finish, margin, rows_of

if TYPE_CHECKING:
    from hubprune.pruning.calibration import CalibrationSet
    from hubprune.pruning.importance import Scoring


def run_length(drop: DropSpec, layers: int) -> int:
    """Return how many layers a run has that a request drops.

    Raises:
        ValueError: it drops none.
    """
    if drop.block_drop is None:
        raise ValueError("a run of layers is asked for by a number of blocks")
    return count_of(drop.block_drop, of=layers)


def score_runs(
    folder: Path, calibration: CalibrationSet, scoring: Scoring, *, length: int, reporter: Reporter
) -> LayerScores:
    """Compute the mean distance over every run of so many layers, as block scores by the run's first layer.

    There are fewer of these scores than layers: the last ones begin no run.

    Raises:
        ScoringError: a state is not finite.
        CheckpointError: the weights do not fit the config.
        DiskSpaceError: the hidden states fit neither into memory nor into the temporary folder.
    """
    import torch

    from hubprune.core.streaming import StreamedModel
    from hubprune.pruning.importance import make_batches

    batches = make_batches(calibration.documents, scoring.batch_size)
    model = StreamedModel(
        folder, architecture=scoring.architecture, dtype=scoring.dtype, device=scoring.device,
        own_code=scoring.own_code, tensor_names=scoring.tensor_names,
    )  # fmt: skip
    layers, size = len(model), (len(calibration.documents), model.hidden_size)
    last = torch.empty(layers + 1, *size, dtype=torch.float64)  # of each document, what its last token was by then
    with torch.inference_mode(), reporter.progress("scoring", total=layers * len(batches), unit="batches") as advance:
        (states,) = model.embed([batch.ids for batch in batches])
        ends = [batch.mask.sum(1) - 1 for batch in batches]
        with closing(model.layers(range(layers))) as running:
            for number in range(layers + 1):
                layer = next(running) if number < layers else None
                for batch, end, state in zip(batches, ends, states, strict=True):
                    last[number, list(batch.documents)] = state[torch.arange(len(end)), end].cpu().double()
                    if layer is not None:
                        output = layer(state.to(model.device), **model.arguments(number, batch.ids.shape[1]))
                        state.copy_(output if isinstance(output, torch.Tensor) else output[0])
                        advance(1)
    unit = torch.nn.functional.normalize(last, dim=-1)
    one, other = unit[: layers + 1 - length], unit[length:]
    # Of nearly equal directions, arccos of their cosine would only have noise.
    apart, together = (torch.linalg.vector_norm(v, dim=-1) for v in (one - other, one + other))
    distances = torch.atan2(apart, together) * 2 / torch.pi  # [runs, documents]
    if not distances.isfinite().all():
        raise ScoringError("A hidden state is not finite.", hint="Its weights are broken: try --dtype float32.")
    rows = [
        DocumentScores(
            source=document.source, tokens=len(document.ids),
            scores=ImportanceScores(attn=(), mlp=(), block=tuple(distances[:, number].tolist())),
        )
        for number, document in enumerate(calibration.documents)
    ]  # fmt: skip
    told = {"dtype": scoring.dtype, "device": scoring.device}
    return aggregate(rows, calibration.record, metric="angular", aggregation=scoring.aggregation, **told)


def plan_run(drop: DropSpec, scores: LayerScores, shape: Shape) -> DropPlan:
    """Select the run of layers with the smallest distance, of those that may go as a whole.

    Raises:
        PlanError: the request does not fit the base, or no run may go.
    """
    check_request(drop, shape)
    length, distances = run_length(drop, shape.num_hidden_layers), scores.mean
    runs = [range(first, first + length) for first in distances.ascending("block")]
    free = [run for run in runs if _may_go(run, drop, shape)]
    if not free:
        raise PlanError(
            f"No run of {length} layers of {shape.name} may go as a whole.",
            hint="Drop fewer layers, protect less, or leave --metric angular out.",
        )
    first, *others = (Candidate(ranking="block", layer=run[0], kinds=KINDS) for run in free)
    rank = runs.index(free[0]) + 1
    dropped = [
        row.model_copy(update={"layer": layer})
        for layer in free[0]
        for row in rows_of(first, scores, rank=rank)
        if shape.has(row.kind, layer)
    ]
    margins = [margin(scores, first, others[0], shape=shape)] if others else []
    return finish(drop, dropped, shape, margins=margins, metric="angular")


def _may_go(run: Sequence[int], drop: DropSpec, shape: Shape) -> bool:
    """Tell whether none of a run is protected, and an attention of every kind and an MLP are left without it."""
    left = Counter(shape.needed(kind, layer) for kind in KINDS for layer in shape.layers(kind) if layer not in run)
    needed = {shape.needed(kind, layer) for kind in KINDS for layer in run if shape.has(kind, layer)}
    return not set(run) & set(drop.protect) and all(left[what] for what in needed)
