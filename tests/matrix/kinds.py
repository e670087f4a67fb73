"""Which bases are pruned for the matrix, and which versions of transformers read them: data only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from packaging.version import Version

VERSIONS = ("4.48.3", "4.53.3", "4.57.6", "5.0.0", "5.17.0", "5.18.0", "5.20.0", "5.23.0")
NEWEST = VERSIONS[-1]
END = 2
"""The end token of every base."""


@dataclass(frozen=True)
class Drop:
    """What of a base goes."""

    attn: tuple[int, ...] = ()
    mlp: tuple[int, ...] = ()
    widths: Mapping[int, int] = field(default_factory=dict)
    """Layer -> neurons that its MLP keeps."""


FIVE_LAYERS: Mapping[str, Drop] = {
    "none": Drop(),
    "first": Drop(attn=(0,)),
    "last": Drop(attn=(4,)),
    "first and last": Drop(attn=(0, 4)),
    "joint": Drop(attn=(0, 3), mlp=(1, 3)),  # layer 3 goes altogether
    "all but one": Drop(attn=(0, 1, 2, 4)),
    "widths": Drop(attn=(0,), mlp=(2,), widths={1: 20, 4: 36}),
}


@dataclass(frozen=True)
class Kind:
    """A base, what is dropped from it, and who reads the result."""

    label: str
    config: Mapping[str, Any]
    """config.json as published bases have it."""
    drops: Mapping[str, Drop] = field(default_factory=lambda: FIVE_LAYERS)
    layout: str = "pruned"
    floor: str = VERSIONS[0]
    """Oldest transformers that reads it."""
    everywhere: bool = True
    """Whether it runs on all versions from the floor on, or on the floor and the newest only."""

    def runs_on(self, version: str) -> bool:
        """Tell whether a version reads this kind."""
        return Version(version) >= Version(self.floor) if self.everywhere else version in (self.floor, NEWEST)


LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": END,
    "hidden_act": "silu",
    "hidden_size": 32,
    "initializer_range": 0.02,
    "intermediate_size": 48,
    "max_position_embeddings": 512,
    "model_type": "llama",
    "num_attention_heads": 4,
    "num_hidden_layers": 5,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "vocab_size": 256,
}
MISTRAL = {**LLAMA, "architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": None}

KINDS = (
    Kind("llama", LLAMA),
    Kind("mistral-full", MISTRAL),
    Kind("mistral-window", {**MISTRAL, "sliding_window": 8}),
)


def all_versions() -> tuple[str, ...]:
    """Return every version that some kind is to run on, ascending."""
    return tuple(sorted({*VERSIONS, *(kind.floor for kind in KINDS)}, key=Version))
