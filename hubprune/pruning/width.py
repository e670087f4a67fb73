"""Make MLPs narrower: which tensors that takes, which neurons stay, and their part of a tensor, byte for byte.

A neuron of a gated MLP is one row of the gate and of the up projection, and one column of the down projection:
down(act(gate(x)) * up(x)).  The importance of neuron j is read off the j-th rows g of the gate and u of the up
projection:

max_abs   max|g| + max|u|                                "absolute maximum weights"
ppm       (max g + |min g|) + (max u + |min u|)          peak-to-peak magnitude
vow       var g + var u, each over n - 1                 variance of weights
pon       |g|_1 * |u|_1                                  product of norms
l2        |g|_2 + |u|_2

The first is that of the models of P. Martra, "Exploring GLU Expansion Ratios: Structured Pruning in Llama-3.2 Models";
`ppm` is that of arXiv:2512.22671, whose first version calls it maximum absolute weight (MAW); `vow` and `pon` are the
alternatives that both compare it with.  torch is imported only where weights are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hubprune.core.architectures import Architecture
from hubprune.core.artifacts import DropPlan, WidthMetric, WidthPlan
from hubprune.core.errors import CheckpointError, ScoringError
from hubprune.core.weights import DTYPE_BITS, TensorEntry, Weights

if TYPE_CHECKING:
    import torch

BLOCK_ELEMENTS = 2**20
"""Elements that are looked at together; they are 8 MiB in float64."""
INTEGERS = {8: "uint8", 16: "int16", 32: "int32", 64: "int64"}
"""Bits of an element -> the dtype of torch that holds them uninterpreted."""

OF_ROWS: Mapping[WidthMetric, Callable[[torch.Tensor], torch.Tensor]] = {
    "max_abs": lambda rows: rows.abs().amax(1),
    "ppm": lambda rows: rows.amax(1) + rows.amin(1).abs(),
    "vow": lambda rows: rows.var(1, correction=1),
    "pon": lambda rows: rows.abs().sum(1),
    "l2": lambda rows: rows.square().sum(1).sqrt(),
}
"""What a metric takes from every row of one projection: [rows, columns] -> [rows]."""


@dataclass(frozen=True, slots=True)
class Cut:
    """How a tensor of an MLP gets narrower."""

    layer: int
    """Number in the base."""
    axis: Literal[0, 1]
    """0 where a neuron is a row, 1 where it is a column."""
    blocks: int
    """How many projections the tensor holds, one below the other: 2 where gate and up are fused."""
    width: int
    """Neurons before."""
    kept: int
    """Neurons after."""


@dataclass(frozen=True, slots=True)
class KeptTensor:
    """A tensor that stays, whole or narrower."""

    entry: TensorEntry
    """In the base."""
    name: str
    """In the pruned checkpoint."""
    cut: Cut | None = None
    """None where it stays whole."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its new shape."""
        left = list(self.entry.shape)
        if self.cut:
            left[self.cut.axis] = self.cut.blocks * self.cut.kept
        return tuple(left)

    @property
    def parameters(self) -> int:
        """Its new number of elements."""
        return self.entry.parameters * self.cut.kept // self.cut.width if self.cut else self.entry.parameters

    @property
    def size(self) -> int:
        """Its new bytes."""
        return self.entry.size * self.cut.kept // self.cut.width if self.cut else self.entry.size


def cuts(weights: Weights, plan: DropPlan, architecture: Architecture) -> dict[str, Cut]:
    """Map the names, in the base, of all tensors that get narrower to how they do.

    Raises:
        CheckpointError: a projection is not there, or not as wide as config.json says.
    """
    entries = {tensor.name: tensor for _, tensor in weights}
    found = {}
    for name, cut in _planned_cuts(plan, architecture):
        if name not in entries:
            if name.endswith(".weight"):
                raise CheckpointError(f"{weights.folder} has no {name} to make narrower.")
            continue
        shape, dtype = entries[name].shape, entries[name].dtype
        if DTYPE_BITS[dtype] % 8:
            raise CheckpointError(f"{name} has dtype {dtype}, whose elements are no whole bytes to pick.")
        if len(shape) <= cut.axis or shape[cut.axis] != cut.blocks * cut.width:
            raise CheckpointError(
                f"{name} has shape {list(shape)}, which does not fit the {cut.width} neurons of config.json."
            )
        found[name] = cut
    return found


def _planned_cuts(plan: DropPlan, architecture: Architecture) -> Iterator[tuple[str, Cut]]:
    if plan.widths is None:
        return
    gone, fused = plan.gone("mlp"), architecture.fused_gate_up
    for layer, (width, kept) in enumerate(zip(plan.widths.before, plan.widths.kept, strict=True)):
        if kept == width or layer in gone:
            continue
        prefix = f"{architecture.layers_prefix}{layer}."
        rows = Cut(layer=layer, axis=0, blocks=2 if fused else 1, width=width, kept=kept)
        for name in (fused,) if fused else (architecture.mlp_gate, architecture.mlp_up):
            yield prefix + name, rows
            yield prefix + name.removesuffix("weight") + "bias", rows
        yield prefix + architecture.mlp_output, replace(rows, axis=1, blocks=1)


def neurons_of(weights: Weights, plan: DropPlan, architecture: Architecture) -> Neurons | None:
    """Return what tells which neurons stay, or None where all MLPs are as wide as they were."""
    return Neurons(weights, plan.widths, architecture) if plan.widths else None


class Neurons:
    """Which neurons of every MLP stay; an MLP's weights are read when it is asked for, one projection at a time."""

    def __init__(self, weights: Weights, widths: WidthPlan, architecture: Architecture) -> None:
        self._where = {tensor.name: (shard.path, tensor) for shard, tensor in weights}
        self._widths, self._architecture = widths, architecture
        self._kept: dict[int, torch.Tensor] = {}

    def kept(self, layer: int) -> torch.Tensor:
        """Return the numbers of an MLP's neurons that stay, ascending, as int64 [kept].

        Raises:
            CheckpointError: a projection is not there or cannot be read.
            ScoringError: a weight is NaN or infinite.
        """
        if layer not in self._kept:
            given = self._widths.neurons
            self._kept[layer] = (
                from_mask(given[layer]) if given else highest(self.importance(layer), self._widths.kept[layer])
            )
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
        import torch

        from hubprune.core.streaming import TORCH_DTYPES

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
    return importance.sort(descending=True, stable=True).indices[:count].sort().values


def cut_bytes(path: Path, entry: TensorEntry, cut: Cut, kept: torch.Tensor) -> memoryview:
    """Read a tensor of a base's shard and return the bytes of what stays of it, row by row.

    Raises:
        CheckpointError: the file ends before the tensor does.
    """
    import torch

    left = read_tensor(path, entry).index_select(cut.axis, stacked(kept, width=cut.width, blocks=cut.blocks))
    return memoryview(left.flatten().view(torch.uint8).numpy())


def stacked(kept: torch.Tensor, *, width: int, blocks: int) -> torch.Tensor:
    """Return the rows that stay of a tensor that holds several projections of `width` rows, one below the other."""
    import torch

    return torch.cat([kept + block * width for block in range(blocks)])


def read_tensor(path: Path, entry: TensorEntry) -> torch.Tensor:
    """Read a tensor as integers of its elements' size: no bit of it is interpreted.

    Raises:
        CheckpointError: the file ends before it does.
    """
    import torch

    data = torch.empty(entry.size, dtype=torch.uint8)
    view, done = memoryview(data.numpy()), 0
    with path.open("rb", buffering=0) as file:
        file.seek(entry.begin)
        while done < entry.size:
            if not (count := file.readinto(view[done:])):
                raise CheckpointError(f"{path} became shorter while it was read.")
            done += count
    return data.view(getattr(torch, INTEGERS[DTYPE_BITS[entry.dtype]])).view(entry.shape)


def mask_of(kept: torch.Tensor) -> str:
    """Write which neurons stay as hex digits of a number whose bit j stands for neuron j."""
    return f"{sum(1 << int(number) for number in kept):x}"


def from_mask(mask: str) -> torch.Tensor:
    """Read the numbers of the neurons that stay, ascending."""
    import torch

    bits = bin(int(mask, 16))[:1:-1]
    return torch.tensor([number for number, bit in enumerate(bits) if bit == "1"], dtype=torch.int64)
