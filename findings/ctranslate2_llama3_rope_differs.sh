#!/usr/bin/env bash
# Versions: ctranslate2 4.8.5, transformers 5.24.0, on a CPU in float32.
# Behaviour: ctranslate2 converts and runs Llamas with "llama3" scaling of RoPE, and computes other frequencies than
#   transformers. (1) The converter hands on the factors and not original_max_position_embeddings: models that differ
#   in it alone give equal logits. (2) With the 8192 of Llama 3.1 to 3.3, too, the logits are off. Plain and linear
#   RoPE are right.
# Seen: largest difference of the logits over 200 tokens (random weights, standard deviation 0.95): plain and linear
#   5e-06; llama3 with 8192: 0.12, with 4096: 0.21.
# Why it matters: nothing is refused and nothing said. A comparison of a converted model with its origin measures the
#   runtime's RoPE and not what was done to the model.
# Exit: 0 while ctranslate2 does this, otherwise not.
set -euo pipefail

work=$(mktemp -d)
export TMPDIR="$work"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.13.0 transformers==5.24.0 ctranslate2==4.8.5

cd "$work"
HF_HUB_OFFLINE=1 HF_HOME="$work/hf" HF_HUB_DISABLE_PROGRESS_BARS=1 venv/bin/python - 2>progress.txt <<'PY'
import ctranslate2
import numpy as np
import torch
from ctranslate2.converters import TransformersConverter
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

LLAMA3 = dict(rope_type="llama3", rope_theta=500_000.0, factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0)
SCALINGS = {
    "plain": dict(rope_type="default", rope_theta=500_000.0),
    "linear": dict(rope_type="linear", rope_theta=500_000.0, factor=8.0),
    "llama3-8192": {**LLAMA3, "original_max_position_embeddings": 8192},
    "llama3-4096": {**LLAMA3, "original_max_position_embeddings": 4096},
}
ids = [7 * i % 64 for i in range(200)]
vocabulary = {f"t{i}": i for i in range(64)}
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="t0")),
    unk_token="t0",
    bos_token="t1",
    eos_token="t2",
)
converted, difference = {}, {}
for name, rope_parameters in SCALINGS.items():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=256,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=131_072,
        initializer_range=0.06,
        rope_parameters=rope_parameters,
    )
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(name)
    tokenizer.save_pretrained(name)
    TransformersConverter(name).convert(f"{name}-ct2")
    generator = ctranslate2.Generator(f"{name}-ct2", device="cpu", compute_type="float32")
    converted[name] = np.array(generator.forward_batch([ids]))
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits.numpy()
    difference[name] = float(np.abs(converted[name] - logits).max())
    print(
        f"{name}: largest difference of the logits {difference[name]:.6f}, their standard deviation {logits.std():.2f}"
    )

same = bool((converted["llama3-8192"] == converted["llama3-4096"]).all())
print(f"ctranslate2's logits with 8192 and 4096 are equal: {same}")
right = max(difference["plain"], difference["linear"]) < 1e-3
if not right or not same or min(difference["llama3-8192"], difference["llama3-4096"]) < 0.05:
    raise SystemExit("changed: ctranslate2 computes the scaled RoPE in another way now")
PY
