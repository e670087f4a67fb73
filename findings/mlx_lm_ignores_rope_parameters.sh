#!/usr/bin/env bash
# Versions: mlx-lm 0.32.2, mlx 0.32.4, transformers 5.24.0 (on Linux: mlx's CPU backend).
# Behaviour: transformers 5 saves the base of RoPE as rope_parameters.rope_theta and no longer as rope_theta. mlx-lm,
#   which asks for transformers >= 5.7, reads the new key for Qwen 2 and Qwen 3; for Llama, Mistral, OLMo 2 and
#   SmolLM3 it reads only the old one, and takes a default of its own without a word where that is missing.
# Seen: largest difference of the logits after a plain save_pretrained with base 1,000,000 (random weights, standard
#   deviation 1): 3.2 (Llama, Mistral, SmolLM3), 4.2 (OLMo 2), 7e-06 (Qwen 2, Qwen 3). With "rope_theta" added to
#   config.json: 7e-06 for all.
# Why it matters: whoever saves a Llama 3 (base 500,000) with transformers 5 gets a folder that mlx-lm runs with the
#   wrong base; converting and quantizing it carries the error on. A config.json for both has to hold both keys.
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

BASE = 1_000_000.0
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
OLD_KEY_ONLY = ("llama", "mistral", "olmo2", "smollm3")
BOTH_KEYS = ("qwen2", "qwen3")
ids = [7 * i % 64 for i in range(200)]


def difference(folder: Path, reference: np.ndarray) -> float:
    model, _ = load_model(folder)
    logits = np.array(model(mx.array([ids])).astype(mx.float32))
    return float(np.abs(logits - reference).max())


def compare(family: str) -> tuple[float, float]:
    """Save a model as transformers 5 does; return how far mlx-lm is off, before and after the old key is added."""
    torch.manual_seed(0)
    rope = {"rope_type": "default", "rope_theta": BASE}
    head_dim = {"head_dim": 64} if family in ("mistral", "qwen3") else {}
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(family, rope_parameters=rope, **SIZES, **head_dim)
    ).eval()
    folder = Path(family)
    model.save_pretrained(folder)
    with torch.no_grad():
        reference = model(torch.tensor([ids])).logits.numpy()
    as_saved = difference(folder, reference)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rope_theta": BASE}))
    return as_saved, difference(folder, reference)


for family in OLD_KEY_ONLY + BOTH_KEYS:
    as_saved, with_old_key = compare(family)
    print(
        f"{family}: largest difference of the logits {as_saved:.6f}; with rope_theta in config.json {with_old_key:.6f}"
    )
    if with_old_key > 1e-3 or (as_saved > 1) != (family in OLD_KEY_ONLY):
        raise SystemExit(f"changed: mlx-lm reads {family}'s RoPE in another way now")
PY
