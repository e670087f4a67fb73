"""What a sublayer is ranked by: numbers per token, from what one layer made of a batch.

A layer turns the residual stream X into Y by its attention, and Y into Z by its MLP.  The metrics are those of He et
al. 2024, "What Matters in Transformers? Not All Attention is Needed":

cosine               1 - cos(X, Y): input and output of the sublayer with its norm and the residual (section 3)
cosine-no-residual   1 - cos(U, f(U)): what the attention or MLP itself is handed, behind the norm, and what it returns,
                     "solely the inputs and outputs of the Attention or MLP layers" (appendix B, Table 6)
relative-magnitude   |F| / |X + F|: what is added to the residual stream, over the sum (Table 7; Samragh et al. 2023,
                     "Weight subcloning", through ShortGPT)

F is what really enters the sum: behind the norm that some families have after a sublayer, and times their residual
multiplier.  It is taken where it is made, since Y - X in bfloat16 is mostly rounding error.  The paper defines neither
of the last two for a whole layer: F is then the sum of what attention and MLP add, and 1 - cos(X, F) is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from hubprune.core.architectures import Architecture
from hubprune.core.artifacts import Metric


@dataclass(slots=True)
class Part:
    """One sublayer at work on a batch; states of shape [documents, tokens, hidden_size]."""

    given: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    """What its attention or MLP is handed."""
    returned: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    """What its attention or MLP returns."""
    added: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    """What comes to the residual stream, float32 once the layer is through."""


@dataclass(slots=True)
class Passage:
    """A batch on its way through one layer; the parts are empty for a metric that does not look inside."""

    entering: torch.Tensor
    between: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    leaving: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    attn: Part = field(default_factory=Part)
    mlp: Part = field(default_factory=Part)


def pass_through(
    layer: nn.Module,
    entering: torch.Tensor,
    arguments: dict[str, Any],
    *,
    architecture: Architecture,
    metric: Metric,
) -> Passage:
    """Run one layer on one batch and note what a metric needs.

    Args:
        layer: with its weights.
        entering: hidden states, [documents, tokens, hidden_size].
        arguments: what the model hands to the layer besides.
        architecture: the base's family.
        metric: what the passage is for.
    """
    passage = Passage(entering)
    with ExitStack() as hooks:
        hooks.enter_context(_noting_between(layer, passage, architecture))
        if metric != "cosine":
            hooks.enter_context(_noting_parts(layer, passage, architecture))
        output = layer(entering, **arguments)
    passage.leaving = output if isinstance(output, torch.Tensor) else output[0]
    if metric != "cosine":
        factor = getattr(layer, architecture.residual_multiplier) if architecture.residual_multiplier else 1.0
        for part in (passage.attn, passage.mlp):
            part.added = factor * part.added.float().expand_as(entering)
            part.returned = part.returned.expand_as(entering)
    return passage


@contextmanager
def _noting_between(layer: nn.Module, passage: Passage, architecture: Architecture) -> Iterator[None]:
    def note(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        passage.between = inputs[0]

    hook = layer.get_submodule(architecture.mlp_entry).register_forward_pre_hook(note)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def _noting_parts(layer: nn.Module, passage: Passage, architecture: Architecture) -> Iterator[None]:
    rows = (
        (passage.attn, architecture.attn_module, architecture.attn_parts()),
        (passage.mlp, architecture.mlp_module, architecture.mlp_parts()),
    )
    hooks = [
        layer.get_submodule(name).register_forward_hook(_noting(part, whole=name == module), with_kwargs=True)
        for part, module, names in rows
        for name in names
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _noting(part: Part, *, whole: bool) -> Callable[..., None]:
    """Return a hook for an attention or MLP, which is `whole`, or for a norm of its sublayer.

    Of these modules, the last to run returns what is added.
    """

    def note(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        part.added = output if isinstance(output, torch.Tensor) else output[0]
        if whole:
            part.given = inputs[0] if inputs else named["hidden_states"]
            part.returned = part.added

    return note


# ---- the metrics -------------------------------------------------------------------------------------------------


def _cosine(passage: Passage) -> list[torch.Tensor]:
    x, y, z = (_unit(states) for states in (passage.entering, passage.between, passage.leaving))
    return [_half_squared(x, y), _half_squared(y, z), _half_squared(x, z)]


def _cosine_no_residual(passage: Passage) -> list[torch.Tensor]:
    attn, mlp = passage.attn, passage.mlp
    pairs = (
        (attn.given, attn.returned), (mlp.given, mlp.returned), (passage.entering, attn.added + mlp.added),
    )  # fmt: skip
    return [_one_minus_cosine(one.float(), other.float()) for one, other in pairs]


def _relative_magnitude(passage: Passage) -> list[torch.Tensor]:
    attn, mlp = passage.attn.added, passage.mlp.added
    pairs = ((attn, passage.between), (mlp, passage.leaving), (attn + mlp, passage.leaving))
    return [_share(_length(added), _length(total.float())) for added, total in pairs]


MEASURES: Mapping[Metric, Callable[[Passage], list[torch.Tensor]]] = {
    "cosine": _cosine, "cosine-no-residual": _cosine_no_residual, "relative-magnitude": _relative_magnitude,
}  # fmt: skip


def measure(passage: Passage, metric: Metric) -> torch.Tensor:
    """Return a metric per token, float32, [documents, tokens, 3], in the order attention, MLP, block."""
    return torch.stack(MEASURES[metric](passage), dim=-1)


def _unit(states: torch.Tensor) -> torch.Tensor:
    return nn.functional.normalize(states.float(), dim=-1)


def _half_squared(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return (one - other).square_().sum(dim=-1) / 2


def _one_minus_cosine(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return 1 - cos; 1 where a vector is zero, as in `torch.nn.functional.cosine_similarity`."""
    nothing = (_length(one) == 0) | (_length(other) == 0)
    return torch.where(nothing, 1.0, _half_squared(_unit(one), _unit(other)))


def _length(states: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(states, dim=-1)


def _share(part: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """Return part / whole; 0 where nothing is added, to whatever."""
    return torch.where(part == 0, 0.0, part / whole)
