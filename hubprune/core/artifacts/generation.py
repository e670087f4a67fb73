"""Artifacts of free text: what base and pruned write after the same prompts, and how much of it is repetition."""

from __future__ import annotations

from typing import ClassVar, Literal

from hubprune.core.artifacts.artifact import Artifact
from hubprune.core.artifacts.evaluation import Estimate

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


class ModelText(Artifact):
    """What one model wrote after one prompt."""

    text: str
    tokens: int
    """New tokens, the end-of-text token included."""
    token_ids: tuple[int, ...]
    """New tokens without the end-of-text token."""


class ModelTexts(Artifact):
    """What one model wrote after all prompts."""

    texts: tuple[ModelText, ...]
    """In the order of the prompts."""
    batches: tuple[tuple[int, ...], ...]
    """Which prompts, counted from 0, were continued together."""
    max_new_tokens: int
    dtype: str
    device: str


# ---- two models --------------------------------------------------------------------------------------------------


class Continuation(Artifact):
    """What both models wrote after one prompt."""

    prompt: str
    base: str
    pruned: str
    base_tokens: int
    """New tokens, the end-of-text token included."""
    pruned_tokens: int
    base_repetition: Repetition | None = None
    """None in files that were written before it was measured."""
    pruned_repetition: Repetition | None = None


class PairedNumber(Artifact):
    """A number of both models over the same prompts."""

    base: float
    pruned: float
    change: Estimate
    """Pruned minus base, its interval taken from the differences at the same prompt."""


class PairedLoops(Artifact):
    """How many texts end in a loop."""

    texts: int
    """Of each model."""
    base: int
    pruned: int
    both: int
    """Prompts after which the texts of both models do."""
    change: Estimate
    """Of the share, -1 to 1, its interval taken from the prompts after which one text does and the other does not."""


class RepetitionComparison(Artifact):
    """How much both models repeat themselves: means over the prompts."""

    tokens: PairedNumber
    """Length of a text, without the end-of-text token."""
    seq_rep_4: PairedNumber
    diversity: PairedNumber
    longest_repeat: PairedNumber
    distinct_2: PairedNumber
    """Share of different ones among the 2-token sequences of all texts taken together, which has no interval."""
    loops: PairedLoops


class GenerationComparison(Artifact):
    """Free text of base and pruned on the same prompts."""

    continuations: tuple[Continuation, ...]
    max_new_tokens: int
    decoding: Literal["greedy"] = "greedy"
    dtype: str
    device: str
    batch_size: int | None = None
    """Prompts at once, at most; None in files that were written before it was kept."""
    repetition: RepetitionComparison | None = None
    """None in files that were written before it was measured."""
