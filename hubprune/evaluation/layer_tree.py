"""Run several variants of one model at once: a layer is run a single time for all that agree up to there.

Variants go together while the same hidden states meet the same layer: the same code with the same weights in the same
place of memory.  Where one has another layer, the states part, and from there on it is run by itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from hubprune.core.neutral import recorder_of
from hubprune.evaluation.requests import Row

PASSED_OVER = frozenset({"layer_idx", "name_or_path", "training"})
"""Plain attributes of modules that change nothing in a pass without a KV cache."""
MASKED = ("sdpa", "eager")
"""Implementations of attention that take a mask of our own."""


@dataclass(frozen=True, eq=False)
class Variant:
    """A model, or what becomes of it when some of its layers are others."""

    name: str
    model: Any
    layers: tuple[nn.Module, ...]
    """What is run in the place of the model's own layers."""
    active: Callable[[], AbstractContextManager[None]] = field(default=nullcontext)
    """Makes a block in which the model itself computes what this variant does."""

    @classmethod
    def of(cls, name: str, model: Any) -> Variant:
        """Take a model as it is."""
        return cls(name, model, tuple(getattr(getattr(model, model.base_model_prefix), "layers", ())))

    @property
    def decoder(self) -> Any:
        """The model without its head."""
        return getattr(self.model, self.model.base_model_prefix)


def why_not(variant: Variant) -> str | None:
    """Say why the layers of a model cannot be run one by one; None where they can."""
    config, decoder = variant.model.config, variant.decoder
    if getattr(config, "quantization_config", None) is not None:
        return "it is quantized"
    if len({p.device for p in variant.model.parameters()}) > 1 or any(p.is_meta for p in variant.model.parameters()):
        return "it is spread over several devices"
    if decoder.config._attn_implementation not in MASKED:
        return f"its attention is {decoder.config._attn_implementation}"
    missing = [name for name in ("layers", "norm", "embed_tokens") if not hasattr(decoder, name)]
    return f"its decoder has no {' and no '.join(missing)}" if missing else None


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows as tensors."""

    ids: torch.Tensor
    """Token ids, [rows, tokens], padded on the right with zeros."""
    positions: torch.Tensor | None
    """Position ids of the same shape; None where all rows are plain."""
    branches: torch.Tensor | None
    """Numbers of the endings, -1 for padding; None where all rows are plain."""
    selected: torch.Tensor
    """Where the hidden states are that predict something, in the flattened batch, [targets]."""
    targets: torch.Tensor
    """Token ids that they should predict, [targets]."""
    owners: tuple[int, ...]
    """The request that each target is of."""

    def mask(self, window: int | None) -> torch.Tensor | None:
        """Return which token sees which, bool of shape [rows, 1, tokens, tokens]; None where causal says it all.

        A token sees those before it in its own ending and in the shared beginning, and with a sliding window only
        those at less than `window` positions' distance.  Padding sees itself, since a softmax over nothing is NaN.
        """
        if self.branches is None or self.positions is None:
            return None
        branches, positions = self.branches, self.positions
        tokens = branches.shape[1]
        seen = (branches[:, None, :] == 0) | (branches[:, None, :] == branches[:, :, None])
        seen &= torch.ones(tokens, tokens, dtype=torch.bool, device=seen.device).tril()
        if window is not None:
            seen &= positions[:, :, None] - positions[:, None, :] < window
        seen |= torch.eye(tokens, dtype=torch.bool, device=seen.device)
        return seen[:, None]


def collate(rows: Sequence[Row], device: torch.device) -> Batch:
    """Make tensors of rows."""
    width = max(map(len, rows))
    plain = all(row.is_plain for row in rows)
    members = [(number * width, member) for number, row in enumerate(rows) for member in row.members]

    def padded(values: Sequence[Sequence[int]], filler: int) -> torch.Tensor:
        return torch.tensor([[*row, *[filler] * (width - len(row))] for row in values]).to(device)

    return Batch(
        ids=padded([row.tokens for row in rows], 0),
        positions=None if plain else padded([row.positions for row in rows], 0),
        branches=None if plain else padded([row.branches for row in rows], -1),
        selected=torch.tensor([start + place for start, m in members for place in m.places]).to(device),
        targets=torch.tensor([target for _, m in members for target in m.targets]).to(device),
        owners=tuple(m.request for _, m in members for _ in m.targets),
    )


class LayerTree:
    """Several variants of one model, whose equal layers are run once.

    Weights must not move while it is in use.
    """

    def __init__(self, variants: Sequence[Variant]) -> None:
        self.variants = tuple(variants)
        self.calls = 0
        """Layers that were run so far."""

    @cached_property
    def _signs(self) -> list[list[str]]:
        """What stands for each layer of each variant: where it is the same, so is the layer."""
        pairs = [zip(windows_of(variant), variant.layers, strict=True) for variant in self.variants]
        return [[repr((window, _weights(layer), _behaviour(layer))) for window, layer in each] for each in pairs]

    @cached_property
    def _trunks(self) -> list[tuple[_Trunk, list[int]]]:
        groups = _grouped(range(len(self.variants)), [_Trunk.key(variant) for variant in self.variants])
        return [(_Trunk(self.variants[numbers[0]]), numbers) for numbers in groups]

    def hidden_states(self, batch: Batch) -> Iterator[tuple[Variant, torch.Tensor]]:
        """Yield the selected hidden states of every variant, before its last norm: [targets, hidden_size]."""
        limbs = [_Limb(*trunk.enter(batch), numbers) for trunk, numbers in self._trunks]
        for step in range(max(len(variant.layers) for variant in self.variants)):
            limbs = [limb for before in limbs for limb in self._grow(before, step)]
        for limb in limbs:
            found = limb.states.flatten(0, 1)[batch.selected]
            for number in limb.variants:
                yield self.variants[number], found

    def _grow(self, limb: _Limb, step: int) -> Iterator[_Limb]:
        """Run the next layer, or each of the next layers, of variants that agree so far."""
        signs = [self._signs[n][step] if step < len(self.variants[n].layers) else "" for n in limb.variants]
        for numbers in _grouped(limb.variants, signs):
            layers, states = self.variants[numbers[0]].layers, limb.states
            if step < len(layers):
                self.calls += 1
                output = layers[step](states, **limb.calls[step])
                states = output[0] if isinstance(output, tuple) else output
            yield _Limb(states, limb.calls, numbers)


@dataclass(frozen=True, eq=False)
class _Limb:
    """Variants that have the same hidden states so far."""

    states: torch.Tensor
    calls: Sequence[Mapping[str, Any]]
    variants: Sequence[int]


def _grouped(numbers: Sequence[int], keys: Sequence[object]) -> list[list[int]]:
    groups: dict[object, list[int]] = {}
    for number, key in zip(numbers, keys, strict=True):
        groups.setdefault(key, []).append(number)
    return list(groups.values())


class _Trunk:
    """What comes before the first layer, for all variants that begin alike."""

    def __init__(self, variant: Variant) -> None:
        self._decoder = variant.decoder
        self._recorders = [recorder_of(layer) for layer in variant.layers]
        self._windows = windows_of(variant)

    @staticmethod
    def key(variant: Variant) -> object:
        """Return what has to be the same for two variants to begin alike and hand the same things to their layers."""
        decoder = variant.decoder
        rest = {name: module for name, module in decoder.named_children() if name not in ("layers", "norm")}
        parts = {name: (_weights(part), _behaviour(part), _buffers(part)) for name, part in rest.items()}
        own = sorted((k, repr(v)) for k, v in vars(decoder).items() if _is_plain(k, v))
        return repr((parts, own, windows_of(variant), decoder.config._attn_implementation))

    def enter(self, batch: Batch) -> tuple[torch.Tensor, list[dict[str, Any]]]:
        """Return the hidden states that enter the first layer, and what each layer is handed besides."""
        masks = {window: batch.mask(window) for window in {None, *self._windows}}
        if self._decoder.config._attn_implementation == "eager":  # it adds the mask to its scores
            dtype = self._decoder.dtype
            for window, mask in masks.items():
                if mask is not None:
                    masks[window] = torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
        given = {} if batch.positions is None else {"position_ids": batch.positions, "attention_mask": masks[None]}
        layers, norm = self._decoder.layers, self._decoder.norm
        self._decoder.layers, self._decoder.norm = nn.ModuleList(self._recorders), nn.Identity()
        try:
            self._decoder(input_ids=batch.ids, use_cache=False, **given)
        finally:
            self._decoder.layers, self._decoder.norm = layers, norm
        states, calls = self._recorders[0].states, [recorder.calls for recorder in self._recorders]
        for recorder in self._recorders:
            recorder.forget()
        if batch.positions is not None:
            # Transformers counts a window in tokens of the row; an ending is at another distance in positions.
            calls = [c | {"attention_mask": masks[w]} for c, w in zip(calls, self._windows, strict=True)]
        return states, calls


def windows_of(variant: Variant) -> tuple[int | None, ...]:
    """Return for each layer how far its attention sees, in positions; None for all of them."""
    config = variant.decoder.config
    window, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    if window is None or not getattr(config, "use_sliding_window", True):
        return (None,) * len(variant.layers)
    if not kinds:
        return (window,) * len(variant.layers)
    return tuple(window if kind == "sliding_attention" else None for kind in kinds[: len(variant.layers)])


def _behaviour(module: nn.Module) -> list[tuple[str, str, tuple[tuple[str, str], ...]]]:
    """List the classes below a module with their plain attributes: with the same weights they do the same."""
    return [
        (name, type(part).__qualname__, tuple(sorted((k, repr(v)) for k, v in vars(part).items() if _is_plain(k, v))))
        for name, part in module.named_modules()
    ]


def _is_plain(name: str, value: object) -> bool:
    return not name.startswith("_") and name not in PASSED_OVER and isinstance(value, bool | int | float | str | None)


def _weights(module: nn.Module) -> list[tuple[str, int]]:
    """List parameters with their place in memory, which they can share with those of another model."""
    return [(name, parameter.data_ptr()) for name, parameter in module.named_parameters()]


def _buffers(module: nn.Module) -> str:
    """Hash what a module computed when it was built, such as rotary frequencies."""
    digest = hashlib.sha256()
    for name, buffer in module.named_buffers():
        digest.update(name.encode() + buffer.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def head_alone(variant: Variant) -> Iterator[Callable[[torch.Tensor], torch.Tensor]]:
    """Yield what makes logits, [n, vocabulary], of hidden states before the last norm, [n, hidden_size].

    The model's own code is run behind its decoder, since some families scale or cap their logits.
    """
    decoder, handed = variant.decoder, _Handed()

    def logits(states: torch.Tensor) -> torch.Tensor:
        handed.states = decoder.norm(states)[None]
        found: torch.Tensor = variant.model(inputs_embeds=handed.states, use_cache=False).logits[0]
        return found

    setattr(variant.model, variant.model.base_model_prefix, handed)
    try:
        yield logits
    finally:
        setattr(variant.model, variant.model.base_model_prefix, decoder)


class _Handed(nn.Module):
    """Stands where a decoder was and returns what it is given, as a decoder does."""

    states = torch.empty(0)

    def forward(self, *_: Any, **__: Any) -> Any:
        return BaseModelOutputWithPast(last_hidden_state=self.states)
