"""Let a pruned model use the base's weights where both hold the same ones, proved number by number.

That halves the memory of the two, and tells the layer tree which layers are the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

__all__ = ["share_weights"]

_LAYER = re.compile(r"(?<=layers\.)\d+(?=\.)")
SAMPLES = 64
"""Numbers of a tensor that are looked at before all are compared."""


def share_weights(base: Any, other: Any) -> Callable[[], None]:
    """Put the base's tensors in the place of equal ones of another model; modules stay apart.

    A tensor may be found in another layer, since those behind a dropped one are renumbered.  Nothing is shared between
    devices or dtypes.

    Returns:
        What puts the other model's own tensors back, as long as it is kept.
    """
    candidates: dict[object, dict[str, torch.Tensor]] = {}
    for name, parameter in base.named_parameters():
        candidates.setdefault(_looks(name, parameter), {})[name] = parameter.data
    replaced = list(_replace(other, candidates))

    def put_back() -> None:
        for parameter, own in replaced:
            parameter.data = own

    return put_back


def _replace(
    model: Any, candidates: Mapping[object, Mapping[str, torch.Tensor]]
) -> Iterator[tuple[nn.Parameter, torch.Tensor]]:
    """Replace tensors by equal ones, and yield each parameter with the tensor that it had.

    That of the same name comes first: norms of several layers may be equal, and a layer is known by all its tensors.
    """
    for name, parameter in model.named_parameters():
        own, found = parameter.data, candidates.get(_looks(name, parameter), {})
        for _, tensor in sorted(found.items(), key=lambda item: item[0] != name):
            if torch.equal(tensor, own):
                parameter.data = tensor
                yield parameter, own
                break


def _looks(name: str, parameter: torch.Tensor) -> object:
    """Return what equal tensors have in common, without reading all of them: name, kind, and a few numbers."""
    flat = parameter.detach().flatten()
    few = flat[:: max(1, len(flat) // SAMPLES)].tolist()
    return _LAYER.sub("*", name), parameter.shape, parameter.dtype, parameter.device, repr(few)
