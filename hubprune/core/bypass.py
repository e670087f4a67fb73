"""Let a loaded base compute what it would without some of its sublayers.

The stand-ins are those of the modeling file that a published repo ships, taken from that file, so that a bypassed model
computes what the written and reloaded checkpoint computes, KV cache included.  No weight is copied or changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from copy import copy
from functools import partial
from typing import Any

from torch import nn

from hubprune.core.architectures import Architecture
from hubprune.core.artifacts import DropPlan, SublayerKind
from hubprune.core.templates import published_code


@contextmanager
def bypassed(model: Any, plan: DropPlan, architecture: Architecture) -> Iterator[None]:
    """Let a base compute what it would without the sublayers of a plan, while the block runs.

    The model is the base with its head, as transformers loads it; one that was pruned before may be a base, too.  Its
    layers change in place: where it is spread over devices, hooks of accelerate hang on each of them.

    Raises:
        ValueError: no attention of some kind, full or sliding, would be left.
    """
    if not plan.dropped:
        yield
        return
    with ExitStack() as undo:

        def replace(parent: nn.Module, changes: Mapping[str, Any]) -> None:
            for name, value in changes.items():
                undo.callback(setattr, parent, name, getattr(parent, name))
                setattr(parent, name, value)

        decoder, code = model.model, published_code(architecture)
        no_attn, no_mlp = frozenset(plan.gone("attn")), frozenset(plan.gone("mlp"))
        slots = code["cache_slots"](decoder.layers, no_attn)
        for number, layer in enumerate(list(decoder.layers)):
            if number in no_attn and number in no_mlp:
                replace(decoder.layers, {str(number): NoLayer(layer)})
            elif number in no_attn:
                replace(layer, _without("attn", layer, architecture, code))
            else:
                replace(layer.get_submodule(architecture.attn_module), {"layer_idx": slots[number]})
                if number in no_mlp:
                    replace(layer, _without("mlp", layer, architecture, code))
        trim = partial(code["trim_cache"], used=frozenset(slots.values()))
        undo.callback(decoder.register_forward_pre_hook(trim, with_kwargs=True).remove)
        yield


def _without(
    kind: SublayerKind, layer: nn.Module, architecture: Architecture, code: Mapping[str, Any]
) -> dict[str, nn.Module]:
    """Return what stands in a layer instead of a sublayer and of its norms, by name."""
    if kind == "attn":
        name, norms = architecture.attn_module, architecture.attn_norms
        stand_in: nn.Module = code["NoAttn"](layer.get_submodule(name))
    else:
        name, norms, stand_in = architecture.mlp_module, architecture.mlp_norms, code["NoMLP"]()
    return {name: stand_in, **{norm: nn.Identity() for norm in norms}}


def layers_without(model: Any, plan: DropPlan, architecture: Architecture) -> tuple[nn.Module, ...]:
    """Return the layers of a base as they are without the sublayers of a plan; the base itself stays as it is.

    Layers that lose nothing are the base's own, and weights are never copied.  They are for passes without a KV cache,
    since attentions keep the base's numbers of their slots.
    """
    made = list(model.model.layers)
    no_attn, no_mlp = set(plan.gone("attn")), set(plan.gone("mlp"))
    for number in no_attn | no_mlp:
        layer = made[number]
        if number in no_attn and number in no_mlp:
            made[number] = NoLayer(layer)
        else:
            made[number] = layer_without("attn" if number in no_attn else "mlp", layer, architecture)
    return tuple(made)


def layer_without(kind: SublayerKind, layer: nn.Module, architecture: Architecture) -> nn.Module:
    """Return a layer as it is without one of its sublayers, for passes without a KV cache; it shares all weights."""
    made = copy(layer)
    made._modules = {**layer._modules, **_without(kind, layer, architecture, published_code(architecture))}
    return made


class NoLayer(nn.Module):
    """Stands in for a layer that goes altogether: hidden states leave it as they came."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        # The loop over the layers looks at plain attributes, such as the kind of attention.
        self.__dict__.update({name: value for name, value in vars(layer).items() if not name.startswith("_")})

    def forward(self, hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the hidden states."""
        return hidden_states
