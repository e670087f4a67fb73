"""The layers of a GGUF file: which of llama.cpp's architectures runs them, and what stands where a sublayer is missing.

    neither sublayer           the layer goes, the rest is renumbered

where the architecture is `deci`:
    attention without MLP      an MLP of 256 zero neurons: with a width of 0, the attention's result gets lost
    no attention in the first  "linear attention" whose only matrix is zero: sizes are read from the first layer
    no attention elsewhere     nothing

and in all others, whose layers are equal:
    no attention, no MLP       one of zeros, whose result is exactly zero, also behind a norm; it costs its room in the
                               file, in memory and in the KV cache
    MLPs of several widths     all as wide as the widest, with zero neurons
    RoPE in other layers       layers of zeros between, until each layer is where llama.cpp does what it needs
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hubprune.core.config import Structure
from hubprune.core.errors import UnsupportedArchitectureError
from hubprune.exporting.families import UNEVEN, GgufFamily
from hubprune.exporting.hyperparameters import MAX_LAYERS

ZERO_MLP_WIDTH = 256
"""Neurons of an MLP of `deci` that stands in for none, and of all where no layer has one: a block of k-quants."""
ROPE_LIST = "no_rope_layers"
"""Key of config.json: 1 for every layer with RoPE."""


SAVED = (
    "missing attentions ({}) take no room in the KV cache where llama.cpp runs with flash attention, its default;"
    " without it, values have the room of all layers"
)
"""From a run: `llama_kv_cache::llama_kv_cache` lays values out in equal columns then."""


@dataclass(frozen=True, kw_only=True)
class LayerSlot:
    """One layer of the file."""

    source: int | None
    """Its number in the checkpoint; None for one of zeros."""
    attention: Literal["full", "linear", "zero", "none"]
    """`linear` is the zero matrix that stands in for none, `zero` a whole attention of zeros."""
    has_mlp: bool
    mlp_width: int
    """Neurons in the file, also those of a zero MLP."""
    stored_width: int
    """Neurons in the checkpoint."""


def lay_out(
    structure: Structure, family: GgufFamily, config: Mapping[str, Any], *, uneven: bool, name: str
) -> tuple[str, tuple[LayerSlot, ...]]:
    """Return llama.cpp's architecture and the layers of the file, in order; `uneven` tells whether `deci` will do.

    Raises:
        UnsupportedArchitectureError: no layer is left, or too many are needed.
    """
    gone = structure.no_attn & structure.no_mlp
    kept = [layer for layer in range(structure.num_hidden_layers) if layer not in gone]
    if not kept:
        raise UnsupportedArchitectureError(f"{name} has no layer with a sublayer, which llama.cpp does not run.")
    holes = any(layer in structure.no_attn or layer in structure.no_mlp for layer in kept)
    if uneven and (holes or len({structure.mlp_widths[layer] for layer in kept}) > 1):
        return UNEVEN, tuple(_slot(structure, layer, first=layer == kept[0]) for layer in kept)
    widest = max(structure.mlp_widths[layer] for layer in kept) or ZERO_MLP_WIDTH
    slots = [_whole(structure, layer, widest) for layer in kept]
    if family.no_rope_every:
        rope = structure.architecture.lists_of(config)[ROPE_LIST]
        slots = [*_aligned(slots, [bool(value) for value in rope], every=family.no_rope_every)]
    if len(slots) > MAX_LAYERS:
        raise UnsupportedArchitectureError(f"{name} needs {len(slots)} layers; llama.cpp takes at most {MAX_LAYERS}.")
    return family.architecture, tuple(slots)


def _slot(structure: Structure, layer: int, *, first: bool) -> LayerSlot:
    absent: Literal["linear", "none"] = "linear" if first else "none"
    has_mlp, width = layer not in structure.no_mlp, structure.mlp_widths[layer]
    return LayerSlot(
        source=layer, attention=absent if layer in structure.no_attn else "full", has_mlp=has_mlp,
        mlp_width=width if has_mlp else ZERO_MLP_WIDTH, stored_width=width,
    )  # fmt: skip


def _whole(structure: Structure, layer: int, widest: int) -> LayerSlot:
    """Return a layer of an architecture whose layers are equal."""
    return LayerSlot(
        source=layer, attention="zero" if layer in structure.no_attn else "full", has_mlp=layer not in structure.no_mlp,
        mlp_width=widest, stored_width=structure.mlp_widths[layer],
    )  # fmt: skip


def _aligned(slots: Sequence[LayerSlot], rope: Sequence[bool], *, every: int) -> Iterator[LayerSlot]:
    """Yield the layers with as few of zeros between as it takes: in the file, each `every`th one is without RoPE."""
    number = 0
    for slot in slots:
        assert slot.source is not None
        while slot.attention == "full" and rope[slot.source] == ((number + 1) % every == 0):
            yield LayerSlot(source=None, attention="zero", has_mlp=False, mlp_width=slot.mlp_width, stored_width=0)
            number += 1
        yield slot
        number += 1


def layer_notes(architecture: str, slots: Sequence[LayerSlot]) -> tuple[str, ...]:
    """Say what missing sublayers save or still cost."""
    if architecture == UNEVEN:
        missing = sum(slot.attention != "full" for slot in slots)
        return (SAVED.format(missing),) if missing else ()
    stored = [slot for slot in slots if slot.source is not None]
    between = len(slots) - len(stored)
    without_attention = sum(slot.attention == "zero" for slot in stored)
    without_mlp = sum(not slot.has_mlp for slot in stored)
    widened = sum(slot.has_mlp and slot.stored_width < slot.mlp_width for slot in stored)
    notes = []
    if without_attention:
        notes.append(
            f"{without_attention} attentions of zeros stand in for missing ones: this architecture of llama.cpp has "
            "layers of one kind, so that they take their memory and their part of the KV cache"
        )
    if without_mlp:
        notes.append(f"{without_mlp} MLPs of zeros stand in for missing ones, and take their memory")
    if widened:
        notes.append(f"{widened} MLPs are filled up with zero neurons to the width of the widest, {slots[0].mlp_width}")
    if between:
        notes.append(
            f"{between} layers of zeros stand between the others: llama.cpp applies RoPE by a layer's number in this "
            "architecture"
        )
    return tuple(notes)
