"""The type that all artifacts share.

Artifact of the machine and its software.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict

# ---- artifact ------------------------------------------------------------------------------------------------------


SublayerKind = Literal["attn", "mlp"]
Ranking = Literal["attn", "mlp", "block", "joint"]
"""What is ranked by score: attentions, MLPs, whole layers, or attentions and MLPs in one list."""
Method = Literal["attn-drop", "mlp-drop", "block-drop", "joint-drop", "mlp-width"]
Schedule = Literal["one-shot", "iterative"]
Metric = Literal["cosine", "cosine-no-residual", "relative-magnitude", "reverse-order", "random"]
WidthMetric = Literal["max_abs", "ppm", "vow", "pon", "l2"]
Aggregation = Literal["document", "token"]
Layout = Literal["stock", "nemotron-nas", "pruned"]
"""How a checkpoint says which sublayers it has: not at all, in `block_configs`, or in keys of our own."""
LayoutChoice = Literal["auto", "stock", "nemotron-nas", "pruned"]
"""A layout, or `auto` for the first of them that fits."""


Shown = TypeVar("Shown", bound="Artifact")


class Artifact(BaseModel):
    """A frozen value whose JSON form is stable: unknown keys are refused, NaN never gets in."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def _repr_html_(self) -> str | None:
        """Show the value in a notebook, as whatever `shown_by` named for its type; None leaves it to its repr."""
        views = (VIEWS[kind] for kind in type(self).__mro__ if kind in VIEWS)
        return next((view(self) for view in views), None)


VIEWS: dict[type, Callable[[Any], str]] = {}
"""Type of an artifact -> what writes it as HTML.  Tables and pictures are made on higher floors, which enter them."""


def shown_by(kind: type[Shown], view: Callable[[Shown], str]) -> None:
    """Name what a notebook shows of an artifact: a function that writes one of this type as HTML."""
    VIEWS[kind] = view


# ---- environment ---------------------------------------------------------------------------------------------------


class Environment(Artifact):
    """Where a run took place."""

    hubprune: str
    python: str
    platform: str
    machine: str
    """Processor or GPU by name."""
    threads: int
    versions: dict[str, str]
    """Library -> version."""
