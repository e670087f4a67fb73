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
from hubprune.evaluation.batch import Batch, Kept
from hubprune.evaluation.requests import Answer, refuse_not_finite

PASSED_OVER = frozenset({"layer_idx", "name_or_path", "training"})
"""Plain attributes of modules that change nothing in a pass without a KV cache."""
CPU_LOGIT_BYTES, GPU_LOGIT_BYTES = 2**24, 2**28
"""Memory that logits in float32 take at a time; on a CPU they are to stay in its cache."""
CACHE_NAMES = ("cache", "past_key_values")
"""What a layer of transformers calls its KV cache, the newer name first."""
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
    """Say why the layers of a model that is loaded cannot be run one by one; None where they can."""
    parameters = list(variant.model.parameters())
    spread = len({parameter.device for parameter in parameters}) > 1 or any(p.is_meta for p in parameters)
    return "it is spread over several devices" if spread else why_not_anywhere(variant)


def why_not_anywhere(variant: Variant) -> str | None:
    """Say why the layers of a model cannot be run one by one, wherever its weights are; None where they can."""
    decoder = variant.decoder
    if getattr(variant.model.config, "quantization_config", None) is not None:
        return "it is quantized"
    if decoder.config._attn_implementation not in MASKED:
        return f"its attention is {decoder.config._attn_implementation}"
    missing = [name for name in ("layers", "norm", "embed_tokens") if not hasattr(decoder, name)]
    return f"its decoder has no {' and no '.join(missing)}" if missing else None


class LayerTree:
    """Several variants of one model, whose equal layers are run once.

    Weights must not move while it is in use.
    """

    def __init__(self, variants: Sequence[Variant]) -> None:
        self.variants = tuple(variants)
        self.calls = 0
        """Layers that were run so far."""
        self.token_layers = 0
        """Tokens that were run through a layer so far, padding included."""

    @cached_property
    def _signs(self) -> list[list[str]]:
        """What stands for each layer of each variant: where it is the same, so is the layer."""
        pairs = [zip(windows_of(variant), variant.layers, strict=True) for variant in self.variants]
        return [[repr((window, _weights(layer), behaviour(layer))) for window, layer in each] for each in pairs]

    @cached_property
    def _trunks(self) -> list[tuple[Trunk, list[int]]]:
        keys = [(Trunk.key(variant, _weights), windows_of(variant)) for variant in self.variants]
        groups = grouped(range(len(self.variants)), keys)
        return [(Trunk(self.variants[numbers[0]]), numbers) for numbers in groups]

    def hidden_states(self, batch: Batch) -> Iterator[tuple[Variant, torch.Tensor]]:
        """Yield the selected hidden states of every variant, before its last norm: [targets, hidden_size]."""
        entered = ((Passage(trunk, batch), numbers) for trunk, numbers in self._trunks)
        limbs = [_Limb(passage.entering, passage, numbers) for passage, numbers in entered]
        for step in range(max(len(variant.layers) for variant in self.variants)):
            limbs = [limb for before in limbs for limb in self._grow(before, step)]
        for limb in limbs:
            found = limb.states.flatten(0, 1)[batch.selected]
            for number in limb.variants:
                yield self.variants[number], found

    def _grow(self, limb: _Limb, step: int) -> Iterator[_Limb]:
        """Run the next layer, or each of the next layers, of variants that agree so far."""
        signs = [self._signs[n][step] if step < len(self.variants[n].layers) else "" for n in limb.variants]
        for numbers in grouped(limb.variants, signs):
            layers, states = self.variants[numbers[0]].layers, limb.states
            if step < len(layers):
                self.calls += 1
                self.token_layers += states.shape[0] * states.shape[1]
                states = limb.passage.run(layers[step], step, states)
            yield _Limb(states, limb.passage, numbers)


@dataclass(frozen=True, eq=False)
class _Limb:
    """Variants that have the same hidden states so far."""

    states: torch.Tensor
    passage: Passage
    variants: Sequence[int]


def grouped(numbers: Sequence[int], keys: Sequence[object]) -> list[list[int]]:
    """Put those numbers together whose keys are equal, in the order of the first of each."""
    groups: dict[object, list[int]] = {}
    for number, key in zip(numbers, keys, strict=True):
        groups.setdefault(key, []).append(number)
    return list(groups.values())


class Trunk:
    """What comes before the first layer, for all variants that begin alike."""

    def __init__(self, variant: Variant) -> None:
        self._decoder = variant.decoder
        self._recorders = [recorder_of(layer) for layer in variant.layers]
        self._windows = windows_of(variant)

    @staticmethod
    def key(variant: Variant, weights: Callable[[nn.Module], object]) -> str:
        """Return what has to be the same for two variants to begin alike; `weights` tells those of a module."""
        decoder = variant.decoder
        rest = {name: module for name, module in decoder.named_children() if name not in ("layers", "norm")}
        parts = {name: (weights(part), behaviour(part), _buffers(part)) for name, part in rest.items()}
        own = sorted((k, repr(v)) for k, v in vars(decoder).items() if _is_plain(k, v))
        return repr((parts, own, decoder.config._attn_implementation))

    def enter(self, batch: Batch, states: torch.Tensor | None = None) -> tuple[torch.Tensor, list[dict[str, Any]]]:
        """Return the hidden states that enter the first layer, and what each layer is handed besides.

        Where states are given, the tokens are not looked up, and only what the layers are handed is of use.
        """
        masks = {window: batch.mask(window) for window in {None, *self._windows}}
        if self._decoder.config._attn_implementation == "eager":  # it adds the mask to its scores
            dtype = self._decoder.dtype
            for window, mask in masks.items():
                if mask is not None:
                    masks[window] = torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
        given = {} if batch.positions is None else {"position_ids": batch.positions, "attention_mask": masks[None]}
        read = {"input_ids": batch.ids} if states is None else {"inputs_embeds": states}
        entering, calls = self._observe(**read, **given)
        if batch.positions is not None:
            # Transformers counts a window in tokens of the row; an ending is at another distance in positions.
            calls = [c | {"attention_mask": masks[w]} for c, w in zip(calls, self._windows, strict=True)]
        return entering, calls

    def embed(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the states of tokens whose rows of the embedding are given, both [tokens, hidden_size].

        The model itself looks them up, since families scale what they find.  No family here adds a position to it.
        """
        embedding = self._decoder.embed_tokens
        before = embedding.weight, embedding.num_embeddings, embedding.padding_idx
        embedding.weight = nn.Parameter(rows, requires_grad=False)
        # Its number for padding is one of the whole table.
        embedding.num_embeddings, embedding.padding_idx = len(rows), None
        try:
            found, _ = self._observe(input_ids=torch.arange(len(rows), device=rows.device)[:, None])
        finally:
            embedding.weight, embedding.num_embeddings, embedding.padding_idx = before
        return found[:, 0]

    def _observe(self, **given: Any) -> tuple[torch.Tensor, list[dict[str, Any]]]:
        layers, norm = self._decoder.layers, self._decoder.norm
        self._decoder.layers, self._decoder.norm = nn.ModuleList(self._recorders), nn.Identity()
        try:
            self._decoder(**given, use_cache=False)
        finally:
            self._decoder.layers, self._decoder.norm = layers, norm
        found = self._recorders[0].states, [recorder.calls for recorder in self._recorders]
        for recorder in self._recorders:
            recorder.forget()
        return found


class Passage:
    """A batch on its way through the layers behind a trunk: at once, or where its rows are long, piece by piece.

    Of a long row, a layer reads one piece after the other, and what it keeps of the tokens that the next piece sees are
    their keys and values.  So the largest mask is that of a piece, and keys and values are there for one layer alone.
    Where states are given, the tokens are not looked up.
    """

    def __init__(self, trunk: Trunk, batch: Batch, states: torch.Tensor | None = None) -> None:
        self._trunk, self._batch = trunk, batch
        self._calls: Sequence[Mapping[str, Any]] = ()
        if not batch.pieces:
            self.entering, self._calls = trunk.enter(batch, states)
        elif states is None:
            self.entering = torch.cat([trunk.enter(batch.part(piece))[0] for piece in batch.pieces], dim=1)
        else:
            self.entering = states
        """Hidden states before the first layer, [rows, tokens, hidden_size]."""

    def run(self, layer: nn.Module, number: int, states: torch.Tensor) -> torch.Tensor:
        """Run a layer, which is the one of this number, on the states of all tokens."""
        if not self._batch.pieces:
            return _states_of(layer(states, **self._calls[number]))
        found, kept = torch.empty_like(states), Kept()
        for piece in self._batch.pieces:
            here = states[:, piece.start : piece.stop]
            kept.go_on(piece)
            call = self._trunk.enter(self._batch.part(piece), here)[1][number]
            name = next((name for name in CACHE_NAMES if name in call), CACHE_NAMES[-1])
            found[:, piece.start : piece.stop] = _states_of(layer(here, **{**call, name: kept}))
        return found


def _states_of(output: Any) -> torch.Tensor:
    states: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return states


def windows_of(variant: Variant) -> tuple[int | None, ...]:
    """Return for each layer how far its attention sees, in positions; None for all of them."""
    config = variant.decoder.config
    window, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    if window is None or not getattr(config, "use_sliding_window", True):
        return (None,) * len(variant.layers)
    if not kinds:
        return (window,) * len(variant.layers)
    return tuple(window if kind == "sliding_attention" else None for kind in kinds[: len(variant.layers)])


def behaviour(module: nn.Module) -> list[tuple[str, str, tuple[tuple[str, str], ...]]]:
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


class Tally:
    """What one variant says of its targets, from one block of the vocabulary after the other.

    `states` are hidden states before the last norm, [n, hidden_size]; each of `targets` is the token that should come
    behind the state at one of `places`.  They are on the device that computes, the states may be elsewhere.
    """

    def __init__(self, states: torch.Tensor, places: torch.Tensor, targets: torch.Tensor) -> None:
        self._states, self._places, self._targets = states, places, targets
        device, count = targets.device, len(states)
        self._all = torch.full((count,), -torch.inf, dtype=torch.float64, device=device)
        """Logarithm of the sum over the vocabulary so far, for each state."""
        self._best = torch.full((count,), -torch.inf, device=device)
        self._token = torch.zeros(count, dtype=torch.int64, device=device)
        self._logits = torch.zeros(len(targets), device=device)

    def read(self, block: tuple[int, int], logits_of: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Take the logits of some tokens into account, those of a block of the vocabulary, in float32."""
        (first, stop), device = block, self._targets.device
        logit_bytes = CPU_LOGIT_BYTES if device.type == "cpu" else GPU_LOGIT_BYTES
        here = (self._targets >= first) & (self._targets < stop)
        step = max(1, logit_bytes // (4 * (stop - first)))
        for start in range(0, len(self._states), step):
            some = slice(start, start + step)
            logits = logits_of(self._states[some].to(device)).float()  # [n, tokens of the block]
            self._all[some] = torch.logaddexp(self._all[some], logits.logsumexp(-1).double())
            best, token = logits.max(-1)
            better = best > self._best[some]  # of equal ones, the first counts
            self._best[some] = torch.where(better, best, self._best[some])
            self._token[some] = torch.where(better, token + first, self._token[some])
            mine = (here & (self._places >= start) & (self._places < start + step)).nonzero()[:, 0]
            self._logits[mine] = logits[self._places[mine] - start, self._targets[mine] - first]

    def answers(self, owners: Sequence[int], name: str) -> dict[int, Answer]:
        """Add up what belongs to each request, in float64."""
        nats, greedy = dict[int, float](), dict[int, bool]()
        values = (self._logits.double() - self._all[self._places]).tolist()
        right = (self._token[self._places] == self._targets).tolist()
        for owner, value, best in zip(owners, values, right, strict=True):
            nats[owner] = nats.get(owner, 0.0) + value
            greedy[owner] = greedy.get(owner, True) and best
        refuse_not_finite(nats.values(), model=name)
        return {owner: Answer(value, greedy[owner]) for owner, value in nats.items()}
