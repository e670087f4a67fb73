"""Artifacts of an export: what a file for another runtime holds, and how close that runtime came to transformers."""

from __future__ import annotations

from typing import Literal, get_args

from hubprune.core.artifacts.base import Artifact

PlainType = Literal["f32", "f16", "bf16", "q8_0"]
"""Types that are written here."""
Outtype = Literal[
    "f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q5_k_s", "q4_k_m", "q4_k_s", "q3_k_l", "q3_k_m", "q3_k_s", "q2_k",
    "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl", "iq4_xs",
]  # fmt: skip
"""All types; those that are not plain are made by llama.cpp's own quantizer."""
PLAIN_TYPES: tuple[PlainType, ...] = get_args(PlainType)
OUTTYPES: tuple[Outtype, ...] = get_args(Outtype)


class ParityFigures(Artifact):
    """How close llama.cpp comes to transformers, token by token on the same texts."""

    positions: int
    """Positions at which both named a next token, given the same tokens before it."""
    agreed: int
    """Positions at which both named the same one."""
    undecided: int
    """Of the others, those where transformers' two logits are closer than the tolerance."""
    max_logit_difference: float
    """Largest difference of a logit."""
    relative_difference: float
    """Root mean square difference of the logits, as a share of their spread (standard deviation) at a position."""
    kl_divergence: float | None = None
    """Mean over the positions of the Kullback-Leibler divergence from transformers' next-token probabilities to
    llama.cpp's, in nats."""
    greedy_texts: int
    """Texts that both continued."""
    equal_greedy_texts: int
    """Continuations of the same tokens, up to a tie."""
    tokenized_texts: int
    """Texts that both cut into tokens."""
    equal_tokenized_texts: int
    """Texts cut into the same tokens."""


class Parity(Artifact):
    """The comparison of an export with the checkpoint in transformers, and of the unpruned base with its own."""

    model: ParityFigures
    control: ParityFigures | None
    """The same figures of the unpruned base, written by the same writer."""
    without_control: str | None
    """Why there is no control; None where there is one."""
    rule: str
    """What was demanded."""
    failures: tuple[str, ...]
    """What was not met; empty where the export passed."""
    transformers: str
    llama_cpp_python: str


class GgufExport(Artifact):
    """A GGUF file that was written."""

    file: str
    """Its path."""
    size: int
    """Bytes."""
    sha256: str
    architecture: str
    """The architecture of llama.cpp that runs it."""
    outtype: Outtype
    """Type of the matrices; norms and biases are always f32."""
    layers: int
    """Layers in the file; those that had lost both sublayers are gone."""
    layers_without_attention: tuple[int, ...]
    """In the layer numbers of the file."""
    layers_without_mlp: tuple[int, ...]
    """In the layer numbers of the file."""
    context_length: int
    """Tokens."""
    tokenizer: str
    """Model and pre-tokenizer, as llama.cpp calls them."""
    notes: tuple[str, ...]
    """What a reader of the file should know."""
    parity: Parity | None
    """The comparison with transformers; None where there was none."""
    not_verified: str | None
    """Why nothing was compared; None where it was."""
