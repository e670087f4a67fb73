"""Models without weights, of which is known where every tensor lies in the files.

A pruned checkpoint holds the base's tensors under other numbers of layers.  Those that look alike are twins: the base's
is read for both, and the first time the bytes of the other one are compared with it.  So most of a pruned model is
never read a second time, and what it does not share with the base is read from its own files.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from hubprune.core.devices import stored_dtype, with_dtype
from hubprune.core.errors import CheckpointError
from hubprune.core.files import scratch_folder
from hubprune.core.neutral import ATTENTION, neutral_config
from hubprune.core.streaming import Load, Stored, WeightReader, parameters_without_data
from hubprune.core.strict import parse_json
from hubprune.evaluation.layer_tree import Trunk, Variant, behaviour, grouped, why_not_anywhere, windows_of

LAYER = re.compile(r"(?<=layers\.)\d+(?=\.)")
GLANCE = 64
"""Bytes of a tensor's beginning, middle and end by which its twin is looked for."""
Slot = tuple[str, nn.Module, str, Stored]
"""Name of a parameter below a module, the module and the attribute that hold it, and where it lies."""


def skeleton(folder: Path, *, own_code: bool, dtype: str, device: str) -> Any:
    """Build the causal language model of a folder without weights; modules know where theirs lie.

    `dtype` is one of torch, or `auto` for the checkpoint's own.

    Raises:
        CheckpointError: a parameter is not in the files under its own name, or no model can be run layer by layer.
    """
    keys = parse_json((folder / "config.json").read_bytes(), where=str(folder / "config.json"))
    named = getattr(torch, stored_dtype(with_dtype(keys, folder)) if dtype == "auto" else dtype)
    with scratch_folder(name="skeleton") as scratch:
        link = scratch / "model"  # a folder's name becomes part of a module's, which is too long for some
        link.symlink_to(folder.resolve(), target_is_directory=True)
        config = neutral_config(link, own_code=own_code)
        with parameters_without_data():
            model = AutoModelForCausalLM.from_config(
                config, dtype=named, attn_implementation=ATTENTION, trust_remote_code=own_code
            )
    if reason := why_not_anywhere(Variant.of("", model.eval().requires_grad_(False))):
        raise CheckpointError(f"{folder} cannot be run layer by layer: {reason}.")
    reader, prefix = WeightReader(folder, {}), f"{model.base_model_prefix}."
    tied: Mapping[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    for path, module in model.named_modules():
        stored = {}
        for name, parameter in module.named_parameters(recurse=False):
            whole = f"{path}.{name}"
            spellings = (whole, whole.removeprefix(prefix), tied.get(whole, whole))
            found = next((spelling for spelling in spellings if spelling in reader.names), None)
            if found is None or reader.place(found).shape != tuple(parameter.shape):
                raise CheckpointError(f"{folder} has no tensor {whole!r} of shape {list(parameter.shape)}.")
            stored[name] = reader.place(found)
        vars(module)["_stored"] = stored
    decoder = getattr(model, model.base_model_prefix)
    decoder.embed_tokens.weight = nn.Parameter(torch.empty(0, dtype=named), requires_grad=False)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(device)
    model.hf_device_map = {"": device}
    return model


def slots(module: nn.Module) -> Iterator[Slot]:
    """Yield the parameters below a module of a skeleton."""
    for path, part in module.named_modules():
        for name, stored in getattr(part, "_stored", {}).items():
            yield f"{path}.{name}", part, name, stored


def fill(places: Sequence[Slot], tensors: Mapping[Stored, torch.Tensor]) -> None:
    """Give modules their weights."""
    for _, module, name, stored in places:
        setattr(module, name, nn.Parameter(tensors[stored], requires_grad=False))


# ---- twins -----------------------------------------------------------------------------------------------------------


@dataclass
class Twins:
    """Tensors of pruned models that hold what one of the base does, as far as is known."""

    base_of: dict[Stored, Stored] = field(default_factory=dict)
    """Where a tensor of a pruned model lies -> where that of the base does."""
    numbers: dict[Stored, int] = field(default_factory=dict)
    """The layer that a tensor of the base is of."""
    proved: set[Stored] = field(default_factory=set)
    """Those of pruned models whose bytes were compared, all of them."""

    def read_for(self, stored: Stored) -> Stored:
        """Return the tensor that is read in the place of one."""
        return self.base_of.get(stored, stored)

    def load(self, wanted: Sequence[Stored]) -> Load:
        """Return what has to be read for some tensors, with the twins whose bytes were never compared."""
        tensors = tuple(dict.fromkeys(map(self.read_for, wanted)))
        unproved = [stored for stored in dict.fromkeys(wanted) if stored in self.base_of and stored not in self.proved]
        return Load(tensors, tuple((tensors.index(self.read_for(stored)), stored) for stored in unproved))

    def find(self, base: Any, pruned: Any) -> None:
        """Look for the base's tensors in a pruned model: in the layer of which it has most, and outside of layers."""
        layers = {number: list(slots(layer)) for number, layer in enumerate(Variant.of("", base).layers)}
        self.numbers |= {stored: number for number, places in layers.items() for *_, stored in places}
        rest = [place for place in slots(base) if place[-1] not in self.numbers]
        known = {_look(name, stored): stored for name, *_, stored in rest}
        looks = {n: {_look(name, stored): stored for name, *_, stored in places} for n, places in layers.items()}
        for layer in Variant.of("", pruned).layers:
            own = {stored: _look(name, stored) for name, *_, stored in slots(layer)}
            votes = Counter(number for number, there in looks.items() for look in own.values() if look in there)
            if votes:
                there = looks[votes.most_common(1)[0][0]]
                self.base_of |= {stored: there[look] for stored, look in own.items() if look in there}
        in_layers = {stored for layer in Variant.of("", pruned).layers for *_, stored in slots(layer)}
        own = {stored: _look(name, stored) for name, *_, stored in slots(pruned) if stored not in in_layers}
        self.base_of |= {stored: known[look] for stored, look in own.items() if look in known}

    def forget(self, stored: Stored) -> None:
        """Take a tensor, or that of which these are some rows, for one that is no twin."""
        for own in list(self.base_of):
            if own.path == stored.path and own.begin <= stored.begin < own.begin + own.size:
                del self.base_of[own]


def _look(name: str, stored: Stored) -> object:
    """Return what twins have in common, without reading all of them."""
    size, found = stored.size, []
    with stored.path.open("rb", buffering=0) as file:
        if hasattr(os, "posix_fadvise"):  # a glance is no reason to read ahead
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        for place in (0, size // 2, max(0, size - GLANCE)):
            found.append(os.pread(file.fileno(), min(GLANCE, size - place), stored.begin + place))
    return LAYER.sub("*", name), stored.dtype, stored.shape, tuple(found)


# ---- which layer is run when -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Move:
    """What happens to the states of one room while some layers are in memory."""

    source: int
    target: int
    """The room that they leave for, which may be the same."""
    variant: int
    """One of the variants that they are of."""
    layers: tuple[int, ...]
    """Its layers that are run, none for states that only part from others."""


@dataclass(frozen=True)
class Step:
    """Layers that are in memory together, and what they are run on, in this order."""

    places: tuple[Slot, ...]
    moves: tuple[Move, ...]


@dataclass(frozen=True)
class Program:
    """What is run on which states."""

    beginnings: list[list[int]]
    """The variants by what they do before the first layer; each group begins in the room of its number."""
    steps: list[Step]
    rooms: list[int]
    """Where the states of each variant are at the end."""
    room_count: int


def program(variants: Sequence[Variant], twins: Twins) -> Program:
    """Order all layers of some variants: those that are made of the same tensors of the base are run together."""

    def weights(module: nn.Module) -> list[tuple[str, Stored]]:
        return [(name, twins.read_for(stored)) for name, *_, stored in slots(module)]

    def sign(number: int, layers: Sequence[int]) -> str:
        """Return what stands for some layers of a variant: where it is the same, so is what they do."""
        windows, there = windows_of(variants[number]), variants[number].layers
        return repr([(windows[layer], weights(there[layer]), behaviour(there[layer])) for layer in layers])

    beginnings = grouped(range(len(variants)), [Trunk.key(variant, weights) for variant in variants])
    limbs, steps = dict(enumerate(beginnings)), list[Step]()
    orders = [_order(variant, number, twins) for number, variant in enumerate(variants)]
    for key in sorted({key for order in orders for key in order}):
        due = [tuple(layer for layer, other in enumerate(order) if other == key) for order in orders]
        moves = list[Move]()
        for room, members in list(limbs.items()):
            parted = grouped(members, [sign(number, due[number]) for number in members])
            # What stays as it is stays where it is, and comes last: the others leave from there.
            parted.sort(key=lambda group: not due[group[0]])
            for group in parted:
                target = room if group is parted[-1] else len(limbs)
                limbs[target] = group
                if due[group[0]] or target != room:
                    moves.append(Move(room, target, group[0], due[group[0]]))
        run = [variants[move.variant].layers[layer] for move in moves for layer in move.layers]
        steps.append(Step(tuple(place for layer in run for place in slots(layer)), tuple(moves)))
    rooms = {number: room for room, group in limbs.items() for number in group}
    return Program(beginnings, steps, [rooms[number] for number in range(len(variants))], len(limbs))


def _order(variant: Variant, number: int, twins: Twins) -> list[tuple[int, int, int]]:
    """Return a key for each layer of a variant: ascending, and that of the base's layer that it is made of."""
    keys, last = list[tuple[int, int, int]](), (-1, 0, 0)
    for layer, module in enumerate(variant.layers):
        read = (twins.numbers.get(twins.read_for(stored)) for *_, stored in slots(module))
        known = Counter(found for found in read if found is not None)
        last = max(last, (known.most_common(1)[0][0], 0, 0)) if known else (last[0], 1 + number, layer)
        keys.append(last)
    return keys
