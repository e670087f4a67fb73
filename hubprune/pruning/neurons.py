"""Neurons of gated MLPs: how important each is, which stay, and their part of a tensor, byte for byte.

The importance of neuron j is read off the j-th rows g of the gate and u of the up projection:

max_abs   max|g| + max|u|                                "absolute maximum weights"
ppm       (max g + |min g|) + (max u + |min u|)          peak-to-peak magnitude
vow       var g + var u, each over n - 1                 variance of weights
pon       |g|_1 * |u|_1                                  product of norms
l2        |g|_2 + |u|_2

The first is that of the models of P. Martra, "Exploring GLU Expansion Ratios: Structured Pruning in Llama-3.2 Models";
`ppm` is that of arXiv:2512.22671, whose first version calls it maximum absolute weight (MAW); `vow` and `pon` are the
alternatives that both compare it with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from hubprune.core.architectures import Architecture
from hubprune.core.artifacts import WidthMetric, WidthPlan
from hubprune.core.errors import CheckpointError, ScoringError
from hubprune.core.weights import DTYPE_BITS, TensorEntry, Weights
from hubprune.pruning.streaming import TORCH_DTYPES
from hubprune.pruning.width import Cut

BLOCK_ELEMENTS = 2**20
"""Elements that are looked at together; they are 8 MiB in float64."""
INTEGERS = {8: torch.uint8, 16: torch.int16, 32: torch.int32, 64: torch.int64}

OF_ROWS: Mapping[WidthMetric, Callable[[torch.Tensor], torch.Tensor]] = {
    "max_abs": lambda rows: rows.abs().amax(1),
    "ppm": lambda rows: rows.amax(1) + rows.amin(1).abs(),
    "vow": lambda rows: rows.var(1, correction=1),
    "pon": lambda rows: rows.abs().sum(1),
    "l2": lambda rows: rows.square().sum(1).sqrt(),
}
"""What a metric takes from every row of one projection: [rows, columns] -> [rows]."""


class Neurons:
    """Which neurons of every MLP stay; an MLP's weights are read when it is asked for, one projection at a time."""

    def __init__(self, weights: Weights, widths: WidthPlan, architecture: Architecture) -> None:
        self._where = {tensor.name: (shard.path, tensor) for shard, tensor in weights}
        self._widths = widths
        self._architecture = architecture
        self._kept: dict[int, torch.Tensor] = {}

    def kept(self, layer: int) -> torch.Tensor:
        """Return the numbers of an MLP's neurons that stay, ascending, as int64 [kept].

        Raises:
            CheckpointError: a projection is not there or cannot be read.
            ScoringError: a weight is NaN or infinite.
        """
        if layer not in self._kept:
            self._kept[layer] = highest(self.importance(layer), self._widths.kept[layer])
        return self._kept[layer]

    def importance(self, layer: int) -> torch.Tensor:
        """Compute the importance of every neuron of a layer's MLP, as float32 [neurons].

        Sums are taken in float64 and rounded: their order, which is the machine's own, then hardly ever matters.
        """
        family = self._architecture
        if family.fused_gate_up:
            gate, up = self._of_rows(layer, family.fused_gate_up).chunk(2)
        else:
            gate, up = (self._of_rows(layer, name) for name in (family.mlp_gate, family.mlp_up))
        found = (gate * up if self._widths.metric == "pon" else gate + up).float()
        if not (finite := found.isfinite()).all():
            number = int(finite.logical_not().nonzero()[0])
            raise ScoringError(
                f"Neuron {number} of the MLP of layer {layer} has importance {float(found[number])}.",
                hint="The base has NaN or infinite weights; it cannot be pruned by them.",
            )
        return found

    def _of_rows(self, layer: int, name: str) -> torch.Tensor:
        full = f"{self._architecture.layers_prefix}{layer}.{name}"
        if full not in self._where:
            raise CheckpointError(f"The base has no tensor {full!r}.")
        path, entry = self._where[full]
        if entry.dtype not in TORCH_DTYPES or len(entry.shape) != 2:
            raise CheckpointError(f"{path}: {full!r} is no matrix of a dtype that can be scored.")
        rows = read_tensor(path, entry).view(TORCH_DTYPES[entry.dtype])
        blocks = rows.split(max(1, BLOCK_ELEMENTS // max(1, entry.shape[1])))
        return torch.cat([OF_ROWS[self._widths.metric](block.double()) for block in blocks])


def highest(importance: torch.Tensor, count: int) -> torch.Tensor:
    """Return the numbers of the `count` most important, ascending; of two equal ones the lower stays."""
    order = torch.sort(importance, descending=True, stable=True).indices
    return order[:count].sort().values


def mask_of(kept: torch.Tensor) -> str:
    """Write which neurons stay as hex digits of a number whose bit j stands for neuron j."""
    return f"{sum(1 << int(number) for number in kept):x}"


def from_mask(mask: str) -> torch.Tensor:
    """Read the numbers of the neurons that stay, ascending."""
    bits = bin(int(mask, 16))[:1:-1]
    return torch.tensor([number for number, bit in enumerate(bits) if bit == "1"], dtype=torch.int64)


# ---- tensors -----------------------------------------------------------------------------------------------------


def read_tensor(path: Path, entry: TensorEntry) -> torch.Tensor:
    """Read a tensor as integers of its elements' size: no bit of it is interpreted.

    Raises:
        CheckpointError: the file ends before it does.
    """
    data = torch.empty(entry.size, dtype=torch.uint8)
    view, done = memoryview(data.numpy()), 0
    with path.open("rb", buffering=0) as file:
        file.seek(entry.begin)
        while done < entry.size:
            count = file.readinto(view[done:])
            if not count:
                raise CheckpointError(f"{path} became shorter while it was read.")
            done += count
    return data.view(INTEGERS[DTYPE_BITS[entry.dtype]]).view(entry.shape)


def stacked(kept: torch.Tensor, *, width: int, blocks: int) -> torch.Tensor:
    """Return the rows that stay of a tensor that holds several projections of `width` rows, one below the other."""
    return torch.cat([kept + block * width for block in range(blocks)])


def cut_bytes(path: Path, entry: TensorEntry, cut: Cut, kept: torch.Tensor) -> memoryview:
    """Read a tensor and return the bytes of what stays of it, row by row.

    Args:
        path: of the base's shard.
        entry: the tensor in it.
        cut: how it gets narrower.
        kept: the neurons that stay.

    Raises:
        CheckpointError: the file ends before the tensor does.
    """
    picked = stacked(kept, width=cut.width, blocks=cut.blocks)
    left = read_tensor(path, entry).index_select(cut.axis, picked)
    return memoryview(left.flatten().view(torch.uint8).numpy())
