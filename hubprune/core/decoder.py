"""Find out what a decoder hands to its layers, by standing where they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


class Recorder(nn.Module):
    """Stands where a layer was and notes what the model hands it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        # Some models look at plain attributes of a layer, such as `attention_type`, to choose what they hand it.
        self.__dict__.update({name: value for name, value in vars(layer).items() if not name.startswith("_")})
        self.states = torch.empty(0)
        self.calls: dict[str, Any] = {}

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Note the hidden states and everything beside them, and hand the states on."""
        self.states, self.calls = hidden_states, kwargs
        return hidden_states

    def forget(self) -> None:
        """Let go of what was noted."""
        self.states, self.calls = torch.empty(0), {}


@contextmanager
def recording(decoder: Any, recorders: Sequence[Recorder]) -> Iterator[None]:
    """Put recorders where the layers of a decoder are, and nothing where its last norm is, while the block runs."""
    layers, norm = decoder.layers, decoder.norm
    decoder.layers, decoder.norm = nn.ModuleList(recorders), nn.Identity()
    try:
        yield
    finally:
        decoder.layers, decoder.norm = layers, norm
