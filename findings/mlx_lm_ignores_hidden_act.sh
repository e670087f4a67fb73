#!/usr/bin/env bash
# Versions: mlx-lm 0.32.2, mlx 0.32.4, transformers 5.24.0 (on Linux: mlx's CPU backend).
# Behaviour: config.json names the activation of the MLP as hidden_act. mlx-lm never reads it for Llama, Mistral, Qwen
#   2 and Qwen 3: it runs them with SiLU, whatever the file says, without a word.
# Seen: largest difference of the logits over 60 tokens, random weights: 7e-06 at most with silu; 1.4 to 1.6 with
#   relu, 0.7 to 0.9 with gelu.
# Why it matters: Llamas retrained with ReLU to have sparse activations are stored as plain LlamaForCausalLM, and this
#   key is all that tells them apart. Their weights fit, so the wrong model runs, and is converted and quantized as it
#   is.
# Exit: 0 while mlx-lm does this, otherwise not.
set -euo pipefail

work=$(mktemp -d)
export TMPDIR="$work"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.13.0 transformers==5.24.0
"$work/venv/bin/pip" install --quiet --no-compile 'mlx[cpu]==0.32.4' mlx-lm==0.32.2

cd "$work"
HF_HUB_OFFLINE=1 HF_HOME="$work/hf" HF_HUB_DISABLE_PROGRESS_BARS=1 venv/bin/python - <<'PY'
import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import torch
from mlx_lm.utils import load_model
from transformers import AutoConfig, AutoModelForCausalLM

SIZES = dict(
    vocab_size=64,
    hidden_size=256,
    intermediate_size=256,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    initializer_range=0.06,
    tie_word_embeddings=False,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)
HEADS = {"llama": {}, "mistral": dict(head_dim=64), "qwen2": {}, "qwen3": dict(head_dim=64)}
ids = [7 * i % 64 for i in range(60)]


def difference(family: str, activation: str) -> float:
    """Return how far mlx-lm's logits are from those of transformers."""
    torch.manual_seed(0)
    sizes = {**SIZES, **HEADS[family], "hidden_act": activation}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, sliding_window=None, **sizes)).eval()
    folder = Path(f"{family}-{activation}")
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    assert config["hidden_act"] == activation
    # mlx-lm 0.32.2 finds the base of RoPE only under its old name.
    config["rope_theta"] = config["rope_parameters"]["rope_theta"]
    (folder / "config.json").write_text(json.dumps(config))
    with torch.no_grad():
        reference = model(torch.tensor([ids])).logits.numpy()
    other, _ = load_model(folder)
    return float(np.abs(np.array(other(mx.array([ids])).astype(mx.float32)) - reference).max())


for family in HEADS:
    far = {activation: difference(family, activation) for activation in ("silu", "relu", "gelu")}
    print(f"{family}: largest difference of the logits", {name: round(value, 6) for name, value in far.items()})
    if far["silu"] > 1e-3 or far["relu"] < 0.1 or far["gelu"] < 0.1:
        raise SystemExit(f"changed: mlx-lm reads {family}'s hidden_act in another way now")
PY
