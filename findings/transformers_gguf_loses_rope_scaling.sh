#!/usr/bin/env bash
# Versions: transformers 5.24.0, gguf 0.19.0.
# Behaviour: from_pretrained(..., gguf_file=...) reads rope.freq_base of a Llama file and no scaling: neither the
#   tensor rope_freqs.weight, in which Llama 3.1 and later files keep the whole of their "llama3" scaling, nor the
#   keys rope.scaling.* of linear scaling. The config gets rope_type "default"; the tensor is in no report of unused
#   weights.
# Seen: a file with rope_freqs.weight, one with rope.scaling.factor 8, and one with neither give equal logits, those
#   of plain RoPE. They are off by 15.8 (linear) and 13.8 (llama3) from the models that were written (random weights,
#   standard deviation 2.4).
# Why it matters: a GGUF loaded in transformers as the reference for an export, to measure it or to turn it back into
#   safetensors is another model than the one that llama.cpp runs, and the safetensors saved from it carry the loss
#   on.
# Exit: 0 while transformers does this, otherwise not.
set -euo pipefail

work=$(mktemp -d)
export TMPDIR="$work"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.13.0 transformers==5.24.0 gguf==0.19.0 accelerate==1.15.0

cd "$work"
HF_HUB_OFFLINE=1 HF_HOME="$work/hf" HF_HUB_DISABLE_PROGRESS_BARS=1 venv/bin/python - 2>progress.txt <<'PY'
import gguf
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

LAYERS, HEADS, KV_HEADS, HEAD_DIM, VOCABULARY = 2, 4, 2, 16, 64
THETA = 500_000.0
DEFAULT = {"rope_type": "default", "rope_theta": THETA}
LINEAR = {"rope_type": "linear", "rope_theta": THETA, "factor": 8.0}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": THETA,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def build(rope_parameters: dict) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HEADS * HEAD_DIM,
        intermediate_size=128,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=4096,
        initializer_range=0.3,
        rope_parameters=rope_parameters,
    )
    return LlamaForCausalLM(config).eval()


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Return the rows of a query or key projection in the order of llama.cpp's Llama."""
    rows = weight.reshape(heads, 2, HEAD_DIM // 2, -1)
    return rows.transpose(1, 2).reshape(weight.shape)


def tensors(model: LlamaForCausalLM) -> dict[str, torch.Tensor]:
    weights = model.state_dict()
    named = {
        "token_embd.weight": weights["model.embed_tokens.weight"],
        "output_norm.weight": weights["model.norm.weight"],
        "output.weight": weights["lm_head.weight"],
    }
    for layer in range(LAYERS):
        for theirs, ours in NAMES.items():
            weight = weights[f"model.layers.{layer}.{theirs}.weight"]
            if ours in ("attn_q", "attn_k"):
                weight = interleaved(weight, HEADS if ours == "attn_q" else KV_HEADS)
            named[f"blk.{layer}.{ours}.weight"] = weight
    return named


def write(model: LlamaForCausalLM, file: str, factors: torch.Tensor | None = None, linear: float | None = None) -> None:
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(4096)
    writer.add_embedding_length(HEADS * HEAD_DIM)
    writer.add_feed_forward_length(128)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(model.config.rms_norm_eps)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_rope_freq_base(THETA)
    writer.add_vocab_size(VOCABULARY)
    if linear is not None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(linear)
    if factors is not None:
        writer.add_tensor("rope_freqs.weight", factors.numpy())
    for name, weight in tensors(model).items():
        writer.add_tensor(name, weight.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


plain, linear, llama3 = build(DEFAULT), build(LINEAR), build(LLAMA3)
frequencies = {name: model.model.rotary_emb.inv_freq for name, model in (("plain", plain), ("llama3", llama3))}
write(plain, "plain.gguf")
write(linear, "linear.gguf", linear=8.0)
write(llama3, "llama3.gguf", factors=frequencies["plain"] / frequencies["llama3"])

ids = (7 * torch.arange(512) % VOCABULARY)[None]
off = {}
with torch.no_grad():
    for name, written in (("plain", plain), ("linear", linear), ("llama3", llama3)):
        read, report = AutoModelForCausalLM.from_pretrained(
            ".", gguf_file=f"{name}.gguf", dtype=torch.float32, output_loading_info=True
        )
        logits = read(ids).logits
        off[name] = (logits - written(ids).logits).abs().max().item()
        from_plain = (logits - plain(ids).logits).abs().max().item()
        unused = report["unexpected_keys"]
        print(f"{name}: {read.config.rope_parameters}, weights reported as unused: {len(unused)}")
        print(f"  largest difference of the logits from the model written {off[name]:.6f}, plain RoPE {from_plain:.6f}")
        if from_plain > 1e-4 or unused or read.config.rope_parameters["rope_type"] != "default":
            raise SystemExit("changed: the scaling of RoPE is read from the file now")
if min(off["linear"], off["llama3"]) < 1:
    raise SystemExit("changed: the models written are no longer told apart")
PY
