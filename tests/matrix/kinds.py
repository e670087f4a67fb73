"""Which bases are pruned for the matrix, and which versions of transformers read them: data only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from packaging.version import Version
from tokenizers_of import Words

VERSIONS = ("4.48.3", "4.53.3", "4.57.6", "5.0.0", "5.17.0", "5.18.0", "5.20.0", "5.23.0", "5.24.0")
NEWEST = VERSIONS[-1]
OLDER = "4.45.2"
"""One that the modeling files do not run on, which is all that is checked with it."""
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
    words: Words | None = None
    """The tokenizer that the base is there for; None for one of bytes."""

    def runs_on(self, version: str) -> bool:
        """Tell whether a version reads this kind."""
        if self.everywhere or version == OLDER:
            return version == OLDER or Version(version) >= Version(self.floor)
        return version == self.floor or Version(version) >= Version(NEWEST)


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

PLAIN = {key: value for key, value in LLAMA.items() if key not in ("architectures", "hidden_act")} | {"pad_token_id": 0}
SLIDING = {"sliding_window": 8, "use_sliding_window": True}
GEMMA = {
    **PLAIN,
    "attention_bias": False,
    "head_dim": 16,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 16,
    "rope_theta": 10000.0,
    "sliding_window": 8,
    "tie_word_embeddings": True,
}
QWEN2 = {**PLAIN, "model_type": "qwen2", "max_window_layers": 3, "sliding_window": 8, "use_sliding_window": False}
# As published: with a window that is not in use, 4.51 slides all the same, and the copy that the newest saves does not.
QWEN3 = {**QWEN2, "model_type": "qwen3", "head_dim": 16, "sliding_window": None, "tie_word_embeddings": True}
SMOLLM3 = {**PLAIN, **SLIDING, "model_type": "smollm3", "no_rope_layer_interval": 2, "tie_word_embeddings": True}
GRANITE = {
    **PLAIN, "attention_multiplier": 0.2, "embedding_multiplier": 12.0, "logits_scaling": 8.0, "model_type": "granite",
    "residual_multiplier": 0.22,
}  # fmt: skip
PHI3 = {**PLAIN, "model_type": "phi3", "original_max_position_embeddings": 512, "sliding_window": 8}
OLMO2 = {**PLAIN, "model_type": "olmo2"}
GEMMA2 = {**GEMMA, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0, "model_type": "gemma2"}
GEMMA3 = {
    **GEMMA, "model_type": "gemma3_text", "num_hidden_layers": 6, "rope_local_base_freq": 100.0,
    "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window_pattern": 3,
}  # fmt: skip


def few(every_kind: tuple[int, ...], *, last: int = 4) -> dict[str, Drop]:
    """Return the drop sets of a family that is no first citizen.

    Args:
        every_kind: attentions to drop so that one of each kind, full and sliding, is left.
        last: number of the last layer.
    """
    return {
        "none": Drop(),
        "first": Drop(attn=(0,)),
        "first and last": Drop(attn=(0, last)),
        "joint": FIVE_LAYERS["joint"],
        "all but one": Drop(attn=every_kind),
    }


ONE_KIND = few((0, 1, 2, 4))
NEMOTRON_NAS = {
    "none": Drop(),
    "first": Drop(attn=(1,)),  # the layout needs the attention of layer 0
    "last": Drop(attn=(4,)),
    "joint": Drop(attn=(2, 3), mlp=(1, 3)),
    "all but one": Drop(attn=(1, 2, 3, 4)),
    "widths": Drop(attn=(1,), mlp=(2,), widths={3: 256}),
}

LLAMA3_ROPE: Mapping[str, Any] = {
    "rope_theta": 500000.0,
    "rope_scaling": {
        "factor": 8.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 64,
        "rope_type": "llama3",
    },
}
"""As Llama 3.1 and later have it."""

BOS = {"add_bos_token": True, "add_eos_token": False}
NO_BOS = {"add_bos_token": False, "add_eos_token": False}
EXTRA = {"additional_special_tokens": ["<|user|>", "<|assistant|>"]}
SPACELESS = {"add_prefix_space": False}


def tokenized() -> Iterator[tuple[str, Mapping[str, Any], str, str, Words]]:
    """Yield family, config.json, floor, layout and tokenizer: as in real repos, and as transformers 5 saves them."""
    named = (
        ("llama", LLAMA, "4.48.3", Words("llama3", "PreTrainedTokenizerFast", EXTRA)),
        ("llama", LLAMA, "4.48.3", Words("metaspace", "LlamaTokenizer", {**BOS, "legacy": False})),
        ("llama", LLAMA, "4.48.3", Words("prepended", None)),
        ("llama", LLAMA, "4.48.3", Words("digits", "GPT2Tokenizer", SPACELESS)),
        ("llama", LLAMA, "4.48.3", Words("llama3", "LlamaTokenizerFast", {**BOS, "legacy": True})),
        ("mistral", MISTRAL, "4.48.3", Words("metaspace", "LlamaTokenizer", {**BOS, **EXTRA, "legacy": False})),
        ("mistral", MISTRAL, "4.48.3", Words("prepended", "LlamaTokenizer", {**BOS, "legacy": True})),
        ("mistral", MISTRAL, "4.48.3", Words("prepended", "LlamaTokenizerFast", BOS)),
        ("mistral", MISTRAL, "4.48.3", Words("gpt4", "LlamaTokenizer", NO_BOS)),
        ("mistral", MISTRAL, "4.48.3", Words("metaspace", None)),
        ("qwen2", QWEN2, "4.48.3", Words("qwen", "Qwen2Tokenizer", {**SPACELESS, **EXTRA})),
        ("qwen2", QWEN2, "4.48.3", Words("qwen", "LlamaTokenizerFast", NO_BOS)),
        ("qwen3", QWEN3, "4.51.3", Words("qwen", "Qwen2Tokenizer", {**SPACELESS, **NO_BOS})),
        ("smollm3", SMOLLM3, "4.53.3", Words("gpt4", "PreTrainedTokenizerFast", EXTRA)),
        ("phi3", PHI3, "4.48.3", Words("unopened", "LlamaTokenizerFast", {**NO_BOS, "legacy": False})),
        ("phi3", PHI3, "4.48.3", Words("prepended", "LlamaTokenizer", BOS)),
        ("phi3", PHI3, "4.48.3", Words("gpt4", "GPT2Tokenizer", SPACELESS)),
        ("granite", GRANITE, "4.48.3", Words("digits", "GPT2Tokenizer", {**SPACELESS, **NO_BOS})),
        ("olmo2", OLMO2, "4.48.3", Words("gpt4", "GPT2Tokenizer", SPACELESS)),
        ("gemma2", GEMMA2, "4.53.3", Words("gemma", "GemmaTokenizer", {**BOS, **EXTRA})),
        ("gemma3_text", GEMMA3, "4.53.3", Words("gemma", "GemmaTokenizerFast", BOS)),
    )
    for family, config, floor, words in named:
        yield family, config, floor, "pruned", words
        yield family, config, floor, "pruned", replace(words, saved_by_newest=True)
    for family, config, _, words in (named[0], named[4]):
        yield f"{family} without a layer", config, "4.48.3", "stock", replace(words, saved_by_newest=True)


KINDS = (
    Kind("llama", LLAMA),
    Kind("llama-nemotron-nas", {**LLAMA, **LLAMA3_ROPE, "intermediate_size": 512}, NEMOTRON_NAS, layout="nemotron-nas"),
    Kind("llama3-rope", {**LLAMA, **LLAMA3_ROPE}, ONE_KIND),
    Kind("mistral-full", MISTRAL),
    Kind("mistral-window", {**MISTRAL, "sliding_window": 8}),
    Kind("qwen2", QWEN2, ONE_KIND, everywhere=False),
    Kind("qwen2-window", {**QWEN2, **SLIDING}, few((0, 1, 3)), floor="4.53.3", everywhere=False),
    Kind("qwen3", QWEN3, ONE_KIND, floor="4.51.3", everywhere=False),
    Kind("qwen3-window", {**QWEN3, **SLIDING}, few((0, 1, 3)), floor="4.53.3", everywhere=False),
    Kind("smollm3", SMOLLM3, few((0, 1, 2)), floor="4.53.3", everywhere=False),
    Kind("granite", GRANITE, ONE_KIND, everywhere=False),
    Kind("phi3", PHI3, ONE_KIND, everywhere=False),
    Kind("olmo2", OLMO2, ONE_KIND, everywhere=False),
    Kind("gemma2", GEMMA2, few((0, 2, 3)), floor="4.53.3", everywhere=False),
    Kind("gemma3_text", GEMMA3, few((0, 1, 3, 5), last=5), floor="4.53.3", everywhere=False),
    *(
        Kind(
            f"{family}, {words.named or 'unnamed'} ({words.pipeline}){', saved by 5' * words.saved_by_newest}",
            {**config, "vocab_size": 800},
            {"joint": FIVE_LAYERS["joint"]} if layout == "pruned" else {"first": Drop(attn=(2,), mlp=(2,))},
            layout=layout,
            floor=floor,
            words=words,
        )
        for family, config, floor, layout, words in tokenized()
    ),
)


def all_versions() -> tuple[str, ...]:
    """Return every version that some kind is to run on, ascending."""
    return tuple(sorted({OLDER, *VERSIONS, *(kind.floor for kind in KINDS)}, key=Version))
