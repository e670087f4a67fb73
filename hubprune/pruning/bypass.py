"""Take sublayers out of a layer that is only scored: what stands there adds exactly zero to the residual stream."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hubprune.core.architectures import Architecture
from hubprune.core.artifacts import SublayerKind


class NoAttention(nn.Module):
    """Stands where an attention was."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        # Some layers look at plain attributes of their attention, such as `is_sliding`.
        self.__dict__.update({name: value for name, value in vars(attention).items() if not name.startswith("_")})

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, None]:
        """Return a zero, and no attention weights."""
        return hidden_states.new_zeros(()), None


class NoMLP(nn.Module):
    """Stands where an MLP was."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return a zero."""
        return hidden_states.new_zeros(())


def take_out(layer: nn.Module, kind: SublayerKind, architecture: Architecture) -> None:
    """Put a stand-in where a sublayer is, and nothing where its norms are."""
    if kind == "attn":
        name, norms = architecture.attn_module, architecture.attn_norms
        stand_in: nn.Module = NoAttention(layer.get_submodule(name))
    else:
        name, norms, stand_in = architecture.mlp_module, architecture.mlp_norms, NoMLP()
    setattr(layer, name, stand_in)
    for norm in norms:
        setattr(layer, norm, nn.Identity())
