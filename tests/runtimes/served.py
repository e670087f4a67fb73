"""Which folders are run in other runtimes than transformers, and what transformers computes of them.

The bases are random, with heads of a size that vLLM's kernels for CPUs take, and weights with which every sublayer and
every token says something: of an untrained Gemma all texts are one token, and equal in any runtime.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bases import FAMILIES, LLAMA, MISTRAL, family_tensors, plan, write_base, written

from hubprune.core.architectures import architecture_of
from hubprune.core.artifacts import BaseCheckpoint, Layout

LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD_DIM = 6, 128, 4, 2, 32
WINDOW = 24
POSITIONS = 512
NEW_TOKENS = 12
SHAPE: Mapping[str, Any] = {
    "hidden_size": HIDDEN,
    "intermediate_size": 256,
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "num_key_value_heads": KV_HEADS,
}
TEXTS = (
    *("Once upon a time", "The capital of France is", "def fibonacci(n):", "In 1969, men first", "Water boils at"),
    *("She opened the door and", "The quick brown fox jumps over the lazy dog. " * 3, "1, 2, 3, 4, 5,"),
    *("Dear Sir or Madam,", "The theory of relativity says that", "import numpy as np\n", "He said: I will", "Paris"),
    "My favourite recipe needs flour, sugar and",
    "It was a dark and stormy night; the rain fell in torrents, except at occasional intervals, when it was checked",
    *("Question: what is 2+2? Answer:", "A list of planets: Mercury, Venus,", "To be or not to be, that is"),
    *("Z\u00fcrich liegt in", "The end of the story was " * 12),
)
PROMPTS = tuple(tuple(text.encode()) for text in TEXTS)
"""Token ids; some are longer than the window, and than a block of the KV cache."""


@dataclass(frozen=True)
class Drop:
    """What of a base goes."""

    attn: tuple[int, ...] = ()
    mlp: tuple[int, ...] = ()


DROPS: Mapping[str, Drop] = {
    "middle": Drop(attn=(3,)),
    "first": Drop(attn=(0,)),
    "last": Drop(attn=(5,)),
    "joint": Drop(attn=(1, 4), mlp=(2,)),
}
IN_NEMOTRON_NAS: Mapping[str, Drop] = {
    "middle": Drop(attn=(3,)),
    "last": Drop(attn=(5,)),
    "joint": Drop(attn=(1, 4), mlp=(4,)),  # layer 4 goes altogether: no layer may lack its MLP alone
}
WHOLE_LAYERS: Mapping[str, Drop] = {"layers": Drop(attn=(2, 4), mlp=(2, 4))}


def config_of(label: str) -> dict[str, Any]:
    """Return the config.json of a family's base."""
    named = {
        "llama": LLAMA,
        "mistral": {**MISTRAL, "sliding_window": None},
        "mistral, sliding": MISTRAL,
        **FAMILIES,
    }[label]
    config = {**named, **SHAPE}
    config |= {"head_dim": HEAD_DIM} if "head_dim" in config else {}
    config |= {"query_pre_attn_scalar": HEAD_DIM} if "query_pre_attn_scalar" in config else {}
    config |= {"sliding_window": WINDOW} if config.get("sliding_window") else {}
    if "long_factor" in (config.get("rope_scaling") or {}):
        factors = [1 + i / 8 for i in range(HEAD_DIM // 2)]
        config["rope_scaling"] = {"long_factor": factors, "short_factor": factors, "type": "longrope"}
    config.pop("auto_map", None)
    return config


@dataclass(frozen=True)
class Served:
    """A folder that a runtime is asked to run."""

    label: str
    """Family, as the base is called here."""
    drops: str
    drop: Drop
    layout: Layout = "pruned"
    model_impl: str = "auto"
    """What vLLM is asked to run it with: its own code where it has some, or `transformers`."""

    @property
    def name(self) -> str:
        """How tests and tables call it."""
        impl = "" if self.model_impl == "auto" else f", {self.model_impl}"
        return f"{self.label} in {self.layout}{impl}: {self.drops}"

    @property
    def attentions(self) -> int:
        """How many are left."""
        return LAYERS - len(self.drop.attn)

    @property
    def by_transformers(self) -> bool:
        """Whether vLLM has no code of its own for it, or is told to use that of transformers."""
        return self.layout == "pruned" or self.model_impl == "transformers"

    @property
    def folder_name(self) -> str:
        """Folder that holds it; the code of one folder is not another's."""
        return f"{plain(self.label)}-{self.layout}-{self.drops}"

    def kv_blocks(self, memory_bytes: int, block_tokens: int) -> int:
        """Return into how many blocks a runtime cuts the memory of its KV cache, by the attentions that are left."""
        kinds = architecture_of(config := config_of(self.label)).attention_kinds(config)
        left = [kind for layer, kind in enumerate(kinds) if layer not in self.drop.attn]
        # Layers of one kind share a block table, and groups of as many layers share the memory of a block.
        counts = [left.count(kind) for kind in set(left)]
        group = min(counts) if max(counts) >= 1.5 * min(counts) else max(counts)
        page = 2 * block_tokens * KV_HEADS * HEAD_DIM * 4
        return memory_bytes // (page * group)


def matrix() -> Iterator[Served]:
    """Yield every folder of the matrix."""
    for label in ("llama", "mistral", "mistral, sliding", *FAMILIES):
        for drops, drop in DROPS.items():
            yield Served(label, drops, drop)
    for label in ("llama", "mistral"):
        for drops, drop in IN_NEMOTRON_NAS.items():
            for impl in ("auto", "transformers"):
                yield Served(label, drops, drop, "nemotron-nas", impl)
        for drops, drop in WHOLE_LAYERS.items():
            yield Served(label, drops, drop, "stock")


def write_folder(served: Served, root: Path) -> Path:
    """Write a base, unless it is there, and the pruned folder, which is returned."""
    config, folder, base = config_of(served.label), root / served.folder_name, root / f"{plain(served.label)}-base"
    if folder.exists():
        return folder
    if not base.exists():
        write_base(base, config, weights(config))
    made = BaseCheckpoint(name="tiny", commit=None, folder=str(base), config=config, files=())
    return written(made, plan(LAYERS, attn=served.drop.attn, mlp=served.drop.mlp, layout=served.layout), folder)


def plain(label: str) -> str:
    """Return a label as a part of a folder's name."""
    return label.replace(", ", "-")


def weights(config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return random weights of a family, of which no token repeats itself without end."""
    made = family_tensors(config)
    for name, tensor in made.items():
        if name.endswith(".bias"):  # of the values of an attention, one that is large drowns what is attended to
            tensor -= 1
    head = "model.embed_tokens.weight" if config.get("tie_word_embeddings") else "lm_head.weight"
    made[head][config["eos_token_id"]] = 0  # of which a logit is never the largest
    if config.get("tie_word_embeddings"):  # so that what is said does not follow from the last token alone
        made["model.embed_tokens.weight"] *= 0.1
        made["model.norm.weight"] *= 10
    return made
