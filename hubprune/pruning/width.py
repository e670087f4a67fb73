"""Plan how wide every MLP becomes, and which tensors get narrower by that; pure arithmetic, no torch.

A neuron of a gated MLP is one row of the gate and of the up projection, and one column of the down projection:
down(act(gate(x)) * up(x)).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Literal

from hubprune.core.architectures import Architecture
from hubprune.core.artifacts import DropPlan, WidthPlan
from hubprune.core.errors import CheckpointError, PlanError
from hubprune.core.specs import WidthSpec
from hubprune.core.structure import Structure
from hubprune.core.weights import DTYPE_BITS, TensorEntry, Weights

# ---- how wide ----------------------------------------------------------------------------------------------------


def plan_widths(
    spec: WidthSpec, structure: Structure, config: Mapping[str, Any], *, name: str, gone: Collection[int] = ()
) -> WidthPlan:
    """Decide how many neurons every MLP keeps; a base that was narrowed before counts from its own widths.

    Args:
        spec: the request.
        structure: of the base.
        config: the base's config.json; the hidden size is read here.
        name: how error messages call the base.
        gone: layers whose MLP is dropped, so that its width does not matter.

    Raises:
        PlanError: more neurons than there are, another number of widths than of layers, no neuron left, or none gone.
    """
    before = structure.mlp_widths
    _check_request(spec, structure, name)
    kept = list(before)
    for layer in (layer for layer, width in enumerate(before) if width and layer not in gone):
        wanted = _wanted(spec, layer, width=before[layer], hidden_size=config["hidden_size"])
        if wanted > before[layer]:
            raise _too_wide(spec, wanted, structure, layer, config["hidden_size"], name)
        kept[layer] = _rounded(spec, wanted, width=before[layer])
    if kept == list(before):
        raise _nothing_goes(spec, before, name)
    multiple = spec.multiple if spec.width is None else 1
    return WidthPlan(before=before, kept=tuple(kept), metric=spec.metric, multiple=multiple)


def _check_request(spec: WidthSpec, structure: Structure, name: str) -> None:
    layers = structure.num_hidden_layers
    if isinstance(spec.width, tuple) and len(spec.width) != layers:
        raise PlanError(
            f"--mlp-width lists {len(spec.width)} widths: {name} has {layers} layers.",
            hint=f"Pass one number for all layers, or {layers} of them.",
        )
    if spec.drop_neurons and _share(spec.drop_neurons) == 1:
        raise PlanError(
            f"--drop-neurons {spec.drop_neurons} leaves no neuron in {name}.",
            hint="Pass less, or drop whole MLPs with --mlp-drop.",
        )


def _share(percent: str) -> Fraction:
    # A fraction, since 0.6 * 8190 is less than 4914 in binary.
    return Fraction(percent.removesuffix("%")) / 100


def _wanted(spec: WidthSpec, layer: int, *, width: int, hidden_size: int) -> Fraction:
    """Return the neurons that are asked for, before rounding to a multiple.

    Of a share that goes, the rounded-down number goes: 60 % of 8192 leaves 8192 - floor(4915.2) = 3277.
    """
    if spec.drop_neurons:
        return Fraction(width - int(_share(spec.drop_neurons) * width))
    if spec.expansion_ratio:
        return Fraction(str(spec.expansion_ratio)) * hidden_size
    widths = spec.width or ()
    return Fraction(widths if isinstance(widths, int) else widths[layer])


def _rounded(spec: WidthSpec, wanted: Fraction, *, width: int) -> int:
    """Round to the nearest multiple, at least one of them and at most the width that there is; halves go up."""
    if spec.width is not None:
        return int(wanted)
    nearest = int(wanted / spec.multiple + Fraction(1, 2)) * spec.multiple
    return min(max(nearest, spec.multiple), width)


def _too_wide(
    spec: WidthSpec, wanted: Fraction, structure: Structure, layer: int, hidden_size: int, name: str
) -> PlanError:
    width = structure.mlp_widths[layer]
    least = min(w for w in structure.mlp_widths if w)
    ratio = int(Fraction(least, hidden_size) * 1000) / 1000
    most = f"--expansion-ratio {ratio:g}" if spec.expansion_ratio else f"--mlp-width {least}"
    return PlanError(
        f"Cannot keep {float(wanted):g} neurons: the MLP of layer {layer} of {name} has {width}.",
        hint=f"Pass {most} or less.",
    )


def _nothing_goes(spec: WidthSpec, before: Sequence[int], name: str) -> PlanError:
    widths = sorted({width for width in before if width})
    text = " to ".join(str(w) for w in dict.fromkeys((widths[0], widths[-1])))
    if spec.width is not None or spec.multiple == 1:
        return PlanError(f"No neuron would go: the MLPs of {name} have {text}.", hint="Ask for fewer.")
    return PlanError(
        f"No neuron would go: the MLPs of {name} have {text}, and widths are rounded to a multiple of {spec.multiple}.",
        hint="Ask for fewer, or pass --width-multiple 1.",
    )


# ---- which tensors -----------------------------------------------------------------------------------------------


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

    def shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape that is left."""
        left = list(shape)
        left[self.axis] = self.blocks * self.kept
        return tuple(left)


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
        return self.cut.shape(self.entry.shape) if self.cut else self.entry.shape

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
        if name in entries:
            _check_fits(entries[name], cut)
            found[name] = cut
        elif name.endswith(".weight"):
            raise CheckpointError(f"{weights.folder} has no {name} to make narrower.")
    return found


def _planned_cuts(plan: DropPlan, architecture: Architecture) -> Iterator[tuple[str, Cut]]:
    if plan.widths is None:
        return
    gone, widths = plan.gone("mlp"), zip(plan.widths.before, plan.widths.kept, strict=True)
    for layer, (width, kept) in enumerate(widths):
        if kept == width or layer in gone:
            continue
        prefix = f"{architecture.layers_prefix}{layer}."
        rows = Cut(layer=layer, axis=0, blocks=1, width=width, kept=kept)
        if fused := architecture.fused_gate_up:
            rows = replace(rows, blocks=2)
        for name in (fused,) if fused else (architecture.mlp_gate, architecture.mlp_up):
            yield prefix + name, rows
            yield prefix + name.removesuffix("weight") + "bias", rows
        yield prefix + architecture.mlp_output, replace(rows, axis=1, blocks=1)


def _check_fits(entry: TensorEntry, cut: Cut) -> None:
    if DTYPE_BITS[entry.dtype] % 8:
        raise CheckpointError(f"{entry.name} has dtype {entry.dtype}, whose elements are no whole bytes to pick.")
    if len(entry.shape) <= cut.axis or entry.shape[cut.axis] != cut.blocks * cut.width:
        raise CheckpointError(
            f"{entry.name} has shape {list(entry.shape)}, which does not fit the {cut.width} neurons of config.json."
        )
