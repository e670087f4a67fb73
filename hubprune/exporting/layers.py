"""How the layers of a pruned checkpoint are laid out for llama.cpp.

llama.cpp runs a Llama with uneven layers as architecture `deci`.  What it does not run is written as something that
it does and that computes the same:

    neither sublayer               the layer goes, the rest is renumbered
    attention without MLP          an MLP of 32 zero neurons: with a width of 0, the attention's result gets lost
    no attention in the first one  "linear attention" whose only matrix is zero: sizes are read from the first layer
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from hubprune.core.errors import UnsupportedArchitectureError
from hubprune.core.structure import Structure
from hubprune.exporting.artifact import GgufArchitecture

ZERO_MLP_WIDTH = 32
"""Neurons of an MLP that stands in for none: one block of the quantized types."""


@dataclass(frozen=True, kw_only=True)
class LayerSlot:
    """One layer of the file."""

    source: int
    """Its number in the checkpoint."""
    attention: Literal["full", "linear", "none"]
    """`linear` is the zero matrix that stands in for none."""
    has_mlp: bool
    mlp_width: int
    """Neurons in the file, also those of a zero MLP."""


def lay_out(structure: Structure, *, name: str) -> tuple[LayerSlot, ...]:
    """Return the layers of the file, in order.

    Raises:
        UnsupportedArchitectureError: no layer is left.
    """
    gone = structure.no_attn & structure.no_mlp
    kept = [layer for layer in range(structure.num_hidden_layers) if layer not in gone]
    if not kept:
        raise UnsupportedArchitectureError(f"{name} has no layer with a sublayer, which llama.cpp does not run.")
    return tuple(_slot(structure, layer, first=layer == kept[0]) for layer in kept)


def _slot(structure: Structure, layer: int, *, first: bool) -> LayerSlot:
    absent: Literal["linear", "none"] = "linear" if first else "none"
    has_mlp = layer not in structure.no_mlp
    return LayerSlot(
        source=layer,
        attention=absent if layer in structure.no_attn else "full",
        has_mlp=has_mlp,
        mlp_width=structure.mlp_widths[layer] if has_mlp else ZERO_MLP_WIDTH,
    )


def gguf_architecture(slots: Sequence[LayerSlot]) -> GgufArchitecture:
    """Return `llama` where all layers have both sublayers and MLPs of one width, else `deci`."""
    whole = all(slot.attention == "full" and slot.has_mlp for slot in slots)
    return "llama" if whole and len({slot.mlp_width for slot in slots}) == 1 else "deci"
