"""What llama.cpp computes of each family: names, and what it takes for granted.  One entry per family, like in core.

Read from llama.cpp's `src/models/*.cpp` and `src/llama-model.cpp` as llama-cpp-python 0.3.36 ships them, and checked by
runs.  `deci` is the one architecture with layers of its own kind each; families whose layers are Llama's up to
constants that can be multiplied into matrices are written for it where sublayers are missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from hubprune.core.architectures import NEMOTRON_NAS, architecture_of
from hubprune.core.errors import UnsupportedArchitectureError

UNEVEN = "deci"
"""The architecture whose layers can be without attention, and have MLPs of several widths."""
Norms = tuple[tuple[str, str], ...]
"""Name in the checkpoint's layer, and in the file's."""


@dataclass(frozen=True, kw_only=True)
class GgufFamily:
    """How a family is written."""

    architecture: str
    """Of llama.cpp, where all layers are whole."""
    uneven: bool = False
    """Whether `deci` computes the same, so that missing attentions need no room in the KV cache."""
    interleaved: bool = False
    """Whether RoPE rotates neighbouring rows of q and k in this architecture, as `deci` always does."""
    attn_norms: Norms = (("input_layernorm", "attn_norm"),)
    mlp_norms: Norms = (("post_attention_layernorm", "ffn_norm"),)
    norm_offset: float = 0.0
    """What the weights of norms are stored without."""
    qk_norm: Literal["head", "all"] | None = None
    """Whether q and k are normalized, head by head or all heads at once."""
    fused: bool = False
    """Whether q, k and v are one matrix, and gate and up another, which stays one in the file."""
    always_biased: tuple[str, ...] = ()
    """Projections with a bias that no key of config.json tells of."""
    bias_keys: Mapping[str, str] = field(default_factory=dict)
    """Module -> key of config.json that tells whether all of its projections have biases."""
    refused: tuple[str, ...] = ()
    """Keys of config.json that ask for something that the architecture has not."""
    activation: tuple[str, tuple[str, ...]] = ("hidden_act", ("silu", "swish"))
    """Key of config.json, and the values that are what the architecture computes."""
    rough_activation: bool = False
    """Whether llama.cpp looks the activation up in a table of float16 values, also where everything else is float32."""
    head: Literal["either", "tied", "own"] = "either"
    """Whether the file has a head of its own: as config.json says, never, or always."""
    square: bool = False
    """Whether the heads together have to be as wide as the hidden states."""
    slides: bool = False
    """Whether each layer's attention can slide.  Elsewhere the context is capped to the window."""
    frequency_factors: bool = False
    """Whether it reads `rope_freqs.weight`."""
    long_factors: bool = False
    """Whether it reads `rope_factors_long.weight` and its short sibling."""
    partial_rotation: bool = False
    """Whether RoPE can leave a part of each head alone."""
    local_theta: tuple[str, float] | None = None
    """Key of config.json for the RoPE base of sliding attentions where that is their own, and its default."""
    no_rope_every: int = 0
    """Each layer whose number is a multiple of it has no RoPE, whatever config.json says; 0 for none."""
    query_scalar: tuple[str, int] | None = None
    """Tensor that a query's scale is multiplied into where it is not what llama.cpp takes for granted, which is
    1/sqrt(head size) or, where the file has exactly so many layers, 1/sqrt(hidden size / heads)."""
    numbers: Mapping[str, str] = field(default_factory=dict)
    """Key of config.json -> metadata that holds the same number."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """What transformers takes where config.json is silent, as far as the families differ."""


SANDWICHED: Mapping[str, Any] = {
    "attn_norms": (("input_layernorm", "attn_norm"), ("post_attention_layernorm", "post_attention_norm")),
    "mlp_norms": (("pre_feedforward_layernorm", "ffn_norm"), ("post_feedforward_layernorm", "post_ffw_norm")),
    "norm_offset": 1.0,
    "activation": ("hidden_activation", ("gelu_pytorch_tanh",)),
    "rough_activation": True,
    "slides": True,
}
GEMMA_DEFAULTS = {
    "hidden_activation": "gelu_pytorch_tanh", "num_key_value_heads": 4, "head_dim": 256, "tie_word_embeddings": True,
    "sliding_window": 4096, "query_pre_attn_scalar": 256,
}  # fmt: skip
LLAMA_BIASES = {"self_attn": "attention_bias", "mlp": "mlp_bias"}
FAMILIES: Mapping[str, GgufFamily] = {
    "llama": GgufFamily(
        architecture="llama", uneven=True, interleaved=True, frequency_factors=True, bias_keys=LLAMA_BIASES,
        defaults={"max_position_embeddings": 2048},
    ),
    "mistral": GgufFamily(
        architecture="llama", uneven=True, interleaved=True, frequency_factors=True,
        defaults={"max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096},
    ),
    "qwen2": GgufFamily(
        architecture="qwen2", uneven=True, square=True, always_biased=("q_proj", "k_proj", "v_proj"),
        defaults={"max_position_embeddings": 32768, "num_key_value_heads": 32, "sliding_window": 4096},
    ),
    "qwen3": GgufFamily(
        architecture="qwen3", qk_norm="head", refused=("attention_bias",),
        defaults={
            "max_position_embeddings": 32768, "num_key_value_heads": 32, "head_dim": 128, "sliding_window": 4096
        },
    ),
    "gemma2": GgufFamily(
        architecture="gemma2", **SANDWICHED, head="tied", refused=("attention_bias", "use_bidirectional_attention"),
        query_scalar=("attn_q", 46),
        numbers={
            "attn_logit_softcapping": "attn_logit_softcapping", "final_logit_softcapping": "final_logit_softcapping"
        },
        defaults={
            **GEMMA_DEFAULTS, "max_position_embeddings": 8192, "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
    ),
    "gemma3_text": GgufFamily(
        architecture="gemma3", **SANDWICHED, qk_norm="head", local_theta=("rope_local_base_freq", 10000.0),
        refused=("attention_bias", "use_bidirectional_attention", "attn_logit_softcapping"),
        query_scalar=("attn_q_norm", 62), numbers={"final_logit_softcapping": "final_logit_softcapping"},
        defaults={**GEMMA_DEFAULTS, "max_position_embeddings": 131072, "rope_theta": 1e6},
    ),
    "phi3": GgufFamily(
        architecture="phi3", uneven=True, square=True, fused=True, long_factors=True, partial_rotation=True,
        defaults={"max_position_embeddings": 4096, "rms_norm_eps": 1e-5},
    ),
    "granite": GgufFamily(
        architecture="granite", uneven=True, interleaved=True, frequency_factors=True, bias_keys=LLAMA_BIASES,
        numbers={
            "attention_multiplier": "attention_scale", "embedding_multiplier": "embedding_scale",
            "residual_multiplier": "residual_scale", "logits_scaling": "logit_scale",
        },
        defaults={
            "max_position_embeddings": 2048, "attention_multiplier": 1.0, "embedding_multiplier": 1.0,
            "residual_multiplier": 1.0, "logits_scaling": 1.0,
        },
    ),
    "olmo2": GgufFamily(
        architecture="olmo2", square=True, qk_norm="all", head="own", refused=("attention_bias",),
        attn_norms=(("post_attention_layernorm", "post_attention_norm"),),
        mlp_norms=(("post_feedforward_layernorm", "post_ffw_norm"),),
        defaults={"max_position_embeddings": 2048, "rms_norm_eps": 1e-5},
    ),
    "smollm3": GgufFamily(
        architecture="smollm3", interleaved=True, no_rope_every=4, refused=("attention_bias", "mlp_bias"),
        defaults={
            "max_position_embeddings": 32768, "num_key_value_heads": 4, "rope_theta": 2e6, "tie_word_embeddings": True
        },
    ),
}  # fmt: skip
"""By `model_type`."""


def family_of(config: Mapping[str, Any], *, name: str) -> GgufFamily:
    """Return how a checkpoint's family is written, from its config.json.

    Raises:
        UnsupportedArchitectureError: it is not; the message names those that are.
    """
    hint = f"GGUF export writes {', '.join(FAMILIES)}, pruned or not, and {NEMOTRON_NAS} as hubprune writes it."
    if "text_config" in config:
        hint = f"A model with a `text_config` has other inputs too: its text part needs a repo of its own. {hint}"
    try:
        model_type = architecture_of(config, name=name).model_type
    except UnsupportedArchitectureError as error:
        raise UnsupportedArchitectureError(error.message, hint=hint) from error
    if model_type not in FAMILIES:
        raise UnsupportedArchitectureError(f"{name} is of the family {model_type}.", hint=hint)
    return FAMILIES[model_type]
