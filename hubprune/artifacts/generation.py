"""Artifacts of free text: what base and pruned write after the same prompts, and how much of it is repetition."""

from __future__ import annotations

from typing import ClassVar, Literal

from hubprune.artifacts.artifact import Artifact

# ---- one text ----------------------------------------------------------------------------------------------------


class Loop(Artifact):
    """The tail of a text that is one span of tokens over and over."""

    MIN_COPIES: ClassVar[int] = 2
    MIN_TOKENS: ClassVar[int] = 16
    """Of all copies together: a refrain of a few words is no loop."""

    period: int
    """Tokens of one copy."""
    covered: int
    """Tokens of the whole tail; the copy that it begins with may lack its first tokens."""
    start: int
    """Tokens of the text before the tail."""


class Repetition(Artifact):
    """How much one text repeats itself, by its tokens; the prompt and the end-of-text token are no part of it."""

    tokens: int
    seq_rep_4: float
    """Share of 4-token sequences that occurred before, 0 to 1."""
    diversity: float
    """Product of the shares of sequences of 2, 3 and 4 tokens that did not, 0 to 1."""
    longest_repeat: int
    """Tokens of the longest span that occurs twice; both occurrences may overlap."""
    loop: Loop | None
    """None where the text does not end in one."""


# ---- two models --------------------------------------------------------------------------------------------------


class Continuation(Artifact):
    """What both models wrote after one prompt."""

    prompt: str
    base: str
    pruned: str
    base_tokens: int
    """New tokens, the end-of-text token included."""
    pruned_tokens: int


class GenerationComparison(Artifact):
    """Free text of base and pruned on the same prompts."""

    continuations: tuple[Continuation, ...]
    max_new_tokens: int
    decoding: Literal["greedy"] = "greedy"
    dtype: str
    device: str
