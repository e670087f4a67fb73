"""Small bases that look like published ones: random weights, a hand-written config.json, a tokenizer of bytes."""

from __future__ import annotations

import json
import math
import os
import struct
from copy import deepcopy
from pathlib import Path

import torch
from safetensors.torch import save_file

from hubprune.core.artifacts import BaseCheckpoint, DroppedSublayer, DropPlan

SHARED_DATA = Path(os.environ.get("HUBPRUNE_SHARED_DATA") or Path(__file__).parents[3] / "shared" / "data")
"""Real models and texts, where there are any."""
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
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
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "vocab_size": 256,
}
MISTRAL = {**LLAMA, "architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 8}
PLAIN = {
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "max_position_embeddings": 512,
    "num_attention_heads": 4,
    "num_hidden_layers": 5,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "torch_dtype": "float32",
    "vocab_size": 256,
}
GEMMA = {
    "attention_bias": False,
    "head_dim": 16,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 16,
    "sliding_window": 8,
    "tie_word_embeddings": True,
}
FAMILIES = {
    "qwen2": {**PLAIN, "model_type": "qwen2", "max_window_layers": 2, "sliding_window": 8, "use_sliding_window": False},
    "qwen2, sliding": {
        **PLAIN, "model_type": "qwen2", "max_window_layers": 2, "sliding_window": 8, "use_sliding_window": True
    },
    "qwen3": {
        **PLAIN, "model_type": "qwen3", "head_dim": 16, "max_window_layers": 3, "sliding_window": 8,
        "tie_word_embeddings": True, "use_sliding_window": True,
    },
    "smollm3": {
        **PLAIN, "model_type": "smollm3", "no_rope_layer_interval": 2, "sliding_window": 8,
        "tie_word_embeddings": True, "use_sliding_window": True,
    },
    "granite": {
        **PLAIN, "attention_multiplier": 0.2, "embedding_multiplier": 12.0, "logits_scaling": 8.0,
        "model_type": "granite", "residual_multiplier": 0.22,
    },
    "phi3": {
        **PLAIN, "auto_map": {"AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"}, "model_type": "phi3",
        "original_max_position_embeddings": 512,
        "rope_scaling": {"long_factor": [1.0] * 4, "short_factor": [1.0, 1.5, 2.0, 3.0], "type": "longrope"},
        "sliding_window": 8, "tie_word_embeddings": False,
    },
    "olmo2": {**PLAIN, "model_type": "olmo2"},
    "gemma2": {
        **PLAIN, **GEMMA, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0, "model_type": "gemma2"
    },
    "gemma3_text": {
        **PLAIN, **GEMMA, "model_type": "gemma3_text", "num_hidden_layers": 6, "rope_local_base_freq": 100.0,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window_pattern": 3,
    },
}  # fmt: skip
"""Configs of other families as their publishers write them; kinds of attention come from a pattern, never a list."""


def plan(layers, *, attn=(), mlp=(), layout=None):
    """A plan that was made by hand."""
    dropped = [*(DroppedSublayer(kind="attn", layer=i) for i in attn)]
    dropped += [DroppedSublayer(kind="mlp", layer=i) for i in mlp]
    made = DropPlan(selected_by="hand", num_hidden_layers=layers, dropped=tuple(dropped))
    whole = not made.published_layers("attn") and not made.published_layers("mlp")
    return made.model_copy(update={"layout": layout or ("stock" if whole else "pruned")})


def shapes(config):
    """Name and shape of every tensor of a Llama or Mistral."""
    size, heads = config["hidden_size"], config["num_attention_heads"]
    kv, wide = config["num_key_value_heads"] * size // heads, config["intermediate_size"]
    found = {"model.embed_tokens.weight": (config["vocab_size"], size)}
    for i in range(config["num_hidden_layers"]):
        found |= {
            f"model.layers.{i}.input_layernorm.weight": (size,),
            f"model.layers.{i}.mlp.down_proj.weight": (size, wide),
            f"model.layers.{i}.mlp.gate_proj.weight": (wide, size),
            f"model.layers.{i}.mlp.up_proj.weight": (wide, size),
            f"model.layers.{i}.post_attention_layernorm.weight": (size,),
            f"model.layers.{i}.self_attn.k_proj.weight": (kv, size),
            f"model.layers.{i}.self_attn.o_proj.weight": (size, size),
            f"model.layers.{i}.self_attn.q_proj.weight": (size, size),
            f"model.layers.{i}.self_attn.v_proj.weight": (kv, size),
        }
    return found | {"model.norm.weight": (size,), "lm_head.weight": (config["vocab_size"], size)}


def random_tensors(config, *, seed=0, dtype=torch.float32):
    """Random weights of a Llama or Mistral."""
    tensors = noise(shapes(config), seed=seed, dtype=dtype)
    if config["tie_word_embeddings"]:
        del tensors["lm_head.weight"]
    return tensors


def family_tensors(config):
    """Random weights of any family, with the names and shapes that transformers gives them."""
    from transformers import AutoConfig, AutoModelForCausalLM

    # A copy: transformers writes into the rope scaling that it is given.
    kept = {k: deepcopy(v) for k, v in config.items() if k not in ("auto_map", "model_type", "torch_dtype")}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(config["model_type"], **kept))
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    return noise({name: tuple(p.shape) for name, p in model.state_dict().items() if name not in tied})


def noise(shapes, *, seed=0, dtype=torch.float32):
    """Weights with which every sublayer says something: the unscaled ones of an untrained model hardly do."""
    made = torch.Generator().manual_seed(seed)
    rows = {name: (shape, torch.randn(shape, generator=made)) for name, shape in shapes.items()}
    return {
        name: (1 + row / 10 if len(shape) == 1 else row / math.sqrt(shape[1])).to(dtype)
        for name, (shape, row) in rows.items()
    }


def write_base(folder, config, tensors=None, *, shards=1):
    """Write a base into a new folder."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    write_tensors(folder, tensors or random_tensors(config), shards=shards)
    write_tokenizer(folder)
    return BaseCheckpoint(name="tiny", commit=None, folder=str(folder), config=config, files=())


def write_tensors(folder, tensors, *, shards=1, metadata=None):
    """Write weights as one file, or as shards of consecutive tensors with an index."""
    metadata = metadata or {"format": "pt"}
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata=metadata)
        return
    names, weight_map = list(tensors), {}
    for number in range(shards):
        part = names[number * len(names) // shards : (number + 1) * len(names) // shards]
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file, metadata=metadata)
        weight_map |= dict.fromkeys(part, file)
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def written(base, drop, folder):
    """Write a pruned checkpoint into a new folder, which is returned."""
    from hubprune.pruning.checkpoint import write_checkpoint

    folder.mkdir()
    write_checkpoint(base, drop, folder, advance=lambda _: None)
    return folder


def write_tokenizer(folder):
    """Write a tokenizer whose tokens are the 256 bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocab = {char: number for number, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}\n')


def raw_file(header, data=b""):
    """Bytes of a safetensors file with any header: text, or a mapping that becomes JSON."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def parts(path):
    """Header and data of a safetensors file."""
    content = Path(path).read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + length]), content[8 + length :]
