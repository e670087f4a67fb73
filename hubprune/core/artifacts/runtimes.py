"""Artifacts of other runtimes: which of them ran a checkpoint, and how close they came to transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from hubprune.core.artifacts.base import Artifact, Layout

RuntimeName = Literal["vllm", "llama.cpp", "mlx"]
TITLES: Mapping[RuntimeName, str] = {"vllm": "vLLM", "llama.cpp": "llama-cpp-python", "mlx": "mlx-lm"}
"""What their versions are of."""
RuntimeOutcome = Literal["equal", "differs", "refused", "not run"]
"""`refused`: it does not take this checkpoint, and the detail has its own words; `not run`: the detail says why."""


class RuntimeRun(Artifact):
    """What became of a checkpoint in one runtime, beside the same in transformers."""

    runtime: RuntimeName
    outcome: RuntimeOutcome
    detail: str
    """What was seen, in a sentence."""
    versions: dict[str, str] = Field(default_factory=dict)
    """Package -> version in the runtime's environment, its own first."""
    architecture: str | None = None
    """The class, or llama.cpp's architecture, that ran."""
    device: str | None = None
    """As the runtime calls it."""
    dtype: str | None = None
    """That it computed in."""
    texts: int = 0
    """Prompts that were continued greedily."""
    equal_texts: int = 0
    """Continuations of which transformers, given the same tokens before, would have chosen every token."""
    tied_texts: int = 0
    """Of the others, those that part from it only where two tokens are closer than the tolerance."""
    new_tokens: int = 0
    """Of each text."""
    largest_difference: float | None = None
    """Between the two logarithms of the probability of a token that was chosen; None where nothing was run."""
    tolerance: float | None = None
    """The largest that is allowed."""
    cut_texts: int = 0
    """Texts that both cut into tokens."""
    equally_cut_texts: int = 0
    """Those that they cut into the same."""
    kv_blocks: int | None = None
    """Blocks of KV cache that fit into the memory it was given; None where it does not tell."""
    kv_block_tokens: int | None = None
    """Tokens of a block."""
    kv_layers: int | None = None
    """Layers that it keeps keys and values for."""
    command: str | None = None
    """What a reader types, as it was run on these files; None where that was not tried."""
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """True where it ran and computed the same."""
        return self.outcome == "equal"

    @property
    def label(self) -> str:
        """Its name with its version."""
        return " ".join([TITLES[self.runtime], *list(self.versions.values())[:1]])


class RuntimeComparison(Artifact):
    """A checkpoint in other runtimes."""

    layout: Layout
    dtype: str
    """That transformers computed in."""
    quantized: bool = False
    """Whether its weights are, so that runtimes compute in the dtype of its config.json."""
    transformers: str
    """Version that they were held against."""
    runs: tuple[RuntimeRun, ...]
