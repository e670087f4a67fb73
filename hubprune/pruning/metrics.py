"""What a sublayer is ranked by: numbers per token, from what one layer made of a batch.

A layer turns the residual stream X into Y by its attention, and Y into Z by its MLP.  The metrics are those of He et
al. 2024, "What Matters in Transformers? Not All Attention is Needed":

cosine               1 - cos(X, Y): input and output of the sublayer with its norm and the residual (section 3)
cosine-no-residual   1 - cos(U, f(U)): what the attention or MLP itself is handed, behind the norm, and what it returns,
                     "solely the inputs and outputs of the Attention or MLP layers" (appendix B, Table 6)
relative-magnitude   |F| / |X + F|: what is added to the residual stream, over the sum (Table 7; Samragh et al. 2023,
                     "Weight subcloning", through ShortGPT)

F is what really enters the sum: behind the norm that some families have after a sublayer, and times their residual
multiplier.  It is taken where it is made, since Y - X in bfloat16 is mostly rounding error.  The paper defines neither
of the last two for a whole layer: F is then the sum of what attention and MLP add, and 1 - cos(X, F) is taken.

Neurons of gated MLPs: how important each is, which stay, and their part of a tensor, byte for byte.

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

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hubprune.core.architectures import Architecture
from hubprune.core.artifacts import Metric, WidthMetric, WidthPlan
from hubprune.core.errors import CheckpointError, ScoringError
from hubprune.core.weights import DTYPE_BITS, TensorEntry, Weights
from hubprune.pruning.streaming import TORCH_DTYPES
from hubprune.pruning.width import Cut

# ---- metrics -------------------------------------------------------------------------------------------------------


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
    layer: nn.Module,
    entering: torch.Tensor,
    arguments: dict[str, Any],
    *,
    architecture: Architecture,
    metric: Metric,
) -> Passage:
    """Run one layer on one batch and note what a metric needs.

    Args:
        layer: with its weights.
        entering: hidden states, [documents, tokens, hidden_size].
        arguments: what the model hands to the layer besides.
        architecture: the base's family.
        metric: what the passage is for.
    """
    passage = Passage(entering)
    with ExitStack() as hooks:
        hooks.enter_context(_noting_between(layer, passage, architecture))
        if metric != "cosine":
            hooks.enter_context(_noting_parts(layer, passage, architecture))
        output = layer(entering, **arguments)
    passage.leaving = output if isinstance(output, torch.Tensor) else output[0]
    if metric != "cosine":
        factor = getattr(layer, architecture.residual_multiplier) if architecture.residual_multiplier else 1.0
        for part in (passage.attn, passage.mlp):
            part.added = factor * part.added.float().expand_as(entering)
            part.returned = part.returned.expand_as(entering)
    return passage


@contextmanager
def _noting_between(layer: nn.Module, passage: Passage, architecture: Architecture) -> Iterator[None]:
    def note(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        passage.between = inputs[0]

    hook = layer.get_submodule(architecture.mlp_entry).register_forward_pre_hook(note)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def _noting_parts(layer: nn.Module, passage: Passage, architecture: Architecture) -> Iterator[None]:
    rows = (
        (passage.attn, architecture.attn_module, architecture.attn_parts()),
        (passage.mlp, architecture.mlp_module, architecture.mlp_parts()),
    )
    hooks = [
        layer.get_submodule(name).register_forward_hook(_noting(part, whole=name == module), with_kwargs=True)
        for part, module, names in rows
        for name in names
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


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


# ---- the metrics -------------------------------------------------------------------------------------------------


def _cosine(passage: Passage) -> list[torch.Tensor]:
    x, y, z = (_unit(states) for states in (passage.entering, passage.between, passage.leaving))
    return [_half_squared(x, y), _half_squared(y, z), _half_squared(x, z)]


def _cosine_no_residual(passage: Passage) -> list[torch.Tensor]:
    attn, mlp = passage.attn, passage.mlp
    pairs = (
        (attn.given, attn.returned), (mlp.given, mlp.returned), (passage.entering, attn.added + mlp.added),
    )  # fmt: skip
    return [_one_minus_cosine(one.float(), other.float()) for one, other in pairs]


def _relative_magnitude(passage: Passage) -> list[torch.Tensor]:
    attn, mlp = passage.attn.added, passage.mlp.added
    pairs = ((attn, passage.between), (mlp, passage.leaving), (attn + mlp, passage.leaving))
    return [_share(_length(added), _length(total.float())) for added, total in pairs]


MEASURES: Mapping[Metric, Callable[[Passage], list[torch.Tensor]]] = {
    "cosine": _cosine, "cosine-no-residual": _cosine_no_residual, "relative-magnitude": _relative_magnitude,
}  # fmt: skip


def measure(passage: Passage, metric: Metric) -> torch.Tensor:
    """Return a metric per token, float32, [documents, tokens, 3], in the order attention, MLP, block."""
    return torch.stack(MEASURES[metric](passage), dim=-1)


def _unit(states: torch.Tensor) -> torch.Tensor:
    return nn.functional.normalize(states.float(), dim=-1)


def _half_squared(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return (one - other).square_().sum(dim=-1) / 2


def _one_minus_cosine(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return 1 - cos; 1 where a vector is zero, as in `torch.nn.functional.cosine_similarity`."""
    nothing = (_length(one) == 0) | (_length(other) == 0)
    return torch.where(nothing, 1.0, _half_squared(_unit(one), _unit(other)))


def _length(states: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(states, dim=-1)


def _share(part: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """Return part / whole; 0 where nothing is added, to whatever."""
    return torch.where(part == 0, 0.0, part / whole)


# ---- neurons -------------------------------------------------------------------------------------------------------


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
