"""What every sublayer of a base saves when it goes: exact figures, from its config and the headers of its files.

params, bytes   its tensors, norms included
flops           of one token, averaged over a text as long as the context: 2 for each weight of a matrix, and
                4 x heads x head size for each token that the attention looks back at, windows considered
kv              bytes of KV cache behind a context, of all sequences
latency         nanoseconds of one token that is written, by a table that was measured on the device

All are whole numbers, so that sums of them are exact.  Where an MLP gets narrower, its three projections and their
biases shrink by the share of the neurons, its norm does not.  No torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hubprune.core.architectures import FULL, SLIDING
from hubprune.core.artifacts import Goal, LatencyTable, SublayerKind, Unit
from hubprune.core.config import Structure
from hubprune.core.memory import kv_cache_bytes
from hubprune.core.weights import DTYPE_BITS, Weights

DEFAULT_CONTEXT = 2048
SCALES: Mapping[Unit, float] = {"params": 1e6, "bytes": 1e6, "flops": 1e6, "kv": 1e6, "latency": 1e6}
"""Unit -> how many of it scores are divided by: millions, of latency milliseconds."""
SCALE_NAMES: Mapping[Unit, str] = {
    "params": "million parameters", "bytes": "MB", "flops": "million operations per token", "kv": "MB of KV cache",
    "latency": "millisecond per token",
}  # fmt: skip
"""Unit -> what one of these is called."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor, as far as savings go."""

    shape: tuple[int, ...]
    bits: int
    """Of an element."""

    @property
    def parameters(self) -> int:
        """Number of elements."""
        found = 1
        for size in self.shape:
            found *= size
        return found

    @property
    def size(self) -> int:
        """Bytes."""
        return self.parameters * self.bits // 8


Tensors = Mapping[str, Stored]


def tensors_of(weights: Weights) -> dict[str, Stored]:
    """Take over the tensors of some weights, by name."""
    return {tensor.name: Stored(tensor.shape, DTYPE_BITS[tensor.dtype]) for _, tensor in weights}


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What a base takes, and what of that is each sublayer's."""

    context: int
    batch: int
    total: Mapping[Unit, int]
    of: Mapping[tuple[SublayerKind, int], Mapping[Unit, int]]
    """Kind and layer of every sublayer that is there -> what it saves."""
    neurons: Mapping[int, Mapping[Unit, int]]
    """Layer -> what all neurons of its MLP take together."""
    widths: tuple[int, ...]
    """Neurons of every MLP."""

    def saved(self, goal: Goal, kind: SublayerKind, layer: int) -> int:
        """Return what a target gains by a sublayer."""
        return _of_goal(goal, self.of[kind, layer])

    def narrower(self, goal: Goal, layer: int, width: int) -> int:
        """Return what a target gains by an MLP with `width` neurons left."""
        gone, all_of_them = self.widths[layer] - width, _of_goal(goal, self.neurons[layer])
        return all_of_them * gone // self.widths[layer]

    def before(self, goal: Goal) -> int:
        """Return what a target is counted from."""
        return _of_goal(goal, self.total)


def _of_goal(goal: Goal, values: Mapping[Unit, int]) -> int:
    return values["bytes"] + values["kv"] if goal == "memory" else values.get(goal, 0)


def parse_at(at: str | None, config: Mapping[str, Any]) -> tuple[int, int]:
    """Return tokens of context and sequences; the default is 2048, or what the base has positions for, and one."""
    if at:
        context, _, batch = at.partition("x")
        return int(context), int(batch or 1)
    return min(DEFAULT_CONTEXT, int(config.get("max_position_embeddings") or DEFAULT_CONTEXT)), 1


def costs_of(
    tensors: Tensors, config: Mapping[str, Any], structure: Structure, *, at: str | None = None,
    latency: LatencyTable | None = None,
) -> Costs:  # fmt: skip
    """Compute what a base and its sublayers take; its tensors are as its model calls them."""
    context, batch = parse_at(at, config)
    family, layers = structure.architecture, structure.num_hidden_layers
    kinds = family.attention_kinds(config)
    heads = int(config["num_attention_heads"])
    attention_width = heads * int(config.get("head_dim") or config["hidden_size"] // heads)
    window = config.get("sliding_window") or context + 1
    behind = {FULL: _looked_at(context, context), SLIDING: _looked_at(context, window)}
    named: dict[tuple[SublayerKind, int], list[str]] = {}
    for name in tensors:
        if place := _place(name, structure):
            named.setdefault(place, []).append(name)
    of: dict[tuple[SublayerKind, int], Mapping[Unit, int]] = {}
    neurons: dict[int, Mapping[Unit, int]] = {}
    parts: tuple[SublayerKind, ...] = ("attn", "mlp")
    for kind in parts:
        for layer in range(layers):
            if (kind, layer) in structure.absences:
                continue
            found = _weights_of(tensors, [name for name in named.get((kind, layer), ()) if family.is_parameter(name)])
            found["bytes"] = sum(tensors[name].size for name in named.get((kind, layer), ()))
            if kind == "attn":
                found["flops"] += 4 * attention_width * behind[kinds[layer]] // max(1, context)
                everything_else = [other for other in range(layers) if other != layer]
                found["kv"] = kv_cache_bytes(config, gone=everything_else, tokens=context, sequences=batch)
            else:
                prefix = f"{family.layers_prefix}{layer}."
                wide = [family.fused_gate_up] if family.fused_gate_up else [family.mlp_gate, family.mlp_up]
                wide += [str(name).removesuffix("weight") + "bias" for name in wide] + [family.mlp_output]
                neurons[layer] = _weights_of(tensors, [n for name in wide if (n := f"{prefix}{name}") in tensors])
            if latency:
                seconds = latency.attn.get(kinds[layer], 0.0) if kind == "attn" else latency.mlp
                found["latency"] = round(1e9 * seconds)
            of[kind, layer] = found
    whole = _weights_of(tensors, [name for name in tensors if _counts(name, tensors, config, structure)])
    whole["bytes"] = sum(tensor.size for tensor in tensors.values())
    head = tensors.get(family.head) or tensors[family.embedding]
    inside = sum(values["flops"] for values in of.values())
    whole["flops"], whole["kv"] = inside + 2 * head.parameters, sum(values["kv"] for values in of.values())
    if latency:
        whole["latency"] = round(1e9 * latency.total)
    return Costs(context=context, batch=batch, total=whole, of=of, neurons=neurons, widths=structure.mlp_widths)


def _looked_at(context: int, window: int) -> int:
    """Return how many tokens all tokens of a text look at together, themselves included."""
    inside = min(context, window)
    return inside * (inside + 1) // 2 + (context - inside) * window


def _place(name: str, structure: Structure) -> tuple[SublayerKind, int] | None:
    """Return the sublayer that a tensor belongs to."""
    family = structure.architecture
    if not name.startswith(family.layers_prefix):
        return None
    number, _, rest = name.removeprefix(family.layers_prefix).partition(".")
    for kind, modules in family.parts.items():
        if number.isdecimal() and any(rest.startswith(f"{module}.") for module in modules):
            return kind, int(number)
    return None


def _counts(name: str, tensors: Tensors, config: Mapping[str, Any], structure: Structure) -> bool:
    """Tell whether a tensor is a parameter that is counted: a tied head that the files hold as well is none."""
    family = structure.architecture
    tied = bool(config.get("tie_word_embeddings")) and family.embedding in tensors
    return family.is_parameter(name) and not (tied and name == family.head)


def _weights_of(tensors: Tensors, names: list[str]) -> dict[Unit, int]:
    found = [tensors[name] for name in names]
    return {
        "params": sum(tensor.parameters for tensor in found),
        "bytes": sum(tensor.size for tensor in found),
        "flops": sum(2 * tensor.parameters for tensor in found if len(tensor.shape) > 1),
        "kv": 0,
    }
