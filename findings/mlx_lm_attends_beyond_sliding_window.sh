#!/usr/bin/env bash
# Versions: mlx-lm 0.32.2, mlx 0.32.4, transformers 5.24.0 (on Linux: mlx's CPU backend).
# Behaviour: config.json limits attention to a window of the last positions. mlx-lm runs Mistral, Qwen 2, Qwen 3 and
#   Phi-3 with full attention all the same, without a word. Mistral is run by its Llama code, which knows windows, but
#   looks for them in layer_types, a key that a Mistral's config.json does not have.
# Seen: window 24, 200 tokens, random weights: the logits of the first 24 positions agree to 1e-5; after them they
#   differ by up to 4.8 (Mistral), 1.8 (Qwen 2), 1.9 (Qwen 3), 4.5 (Phi-3). Without a window all agree to 1e-5. Adding
#   layer_types to a Mistral does not help: every layer has a window, and the code asks for one without (ValueError).
# Why it matters: short prompts show nothing. Past the window (4096 in the first Mistral) the model sees what it was
#   not trained to see, its cache keeps all of the text, and a perplexity measured in mlx-lm is another model's.
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

WINDOW = 24
SIZES = dict(
    vocab_size=64,
    hidden_size=256,
    intermediate_size=256,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    initializer_range=0.06,
    tie_word_embeddings=False,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)
UPPER_HALF = dict(use_sliding_window=True, max_window_layers=2)
FAMILIES = {
    "mistral": dict(head_dim=64),
    "qwen2": UPPER_HALF,
    "qwen3": dict(head_dim=64, **UPPER_HALF),
    "phi3": {},
}
ids = [7 * i % 64 for i in range(200)]


def differences(family: str, window: int | None, **extra_keys: object) -> tuple[float, float]:
    """Return how far mlx-lm's logits are from those of transformers, inside of the first window and after it."""
    torch.manual_seed(0)
    keys = FAMILIES[family] if window else {**FAMILIES[family], "use_sliding_window": False}
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(family, sliding_window=window, **SIZES, **keys)
    ).eval()
    folder = Path(f"{family}-{window}-{len(extra_keys)}")
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    # mlx-lm 0.32.2 finds the base of RoPE only under its old name.
    config.update(rope_theta=config["rope_parameters"]["rope_theta"], **extra_keys)
    (folder / "config.json").write_text(json.dumps(config))
    with torch.no_grad():
        reference = model(torch.tensor([ids])).logits.numpy()
    other, _ = load_model(folder)
    far = np.abs(np.array(other(mx.array([ids])).astype(mx.float32)) - reference)[0]
    return float(far[:WINDOW].max()), float(far[WINDOW:].max())


for family in FAMILIES:
    early, late = differences(family, WINDOW)
    plain = max(differences(family, None))
    print(
        f"{family}: window of {WINDOW}: largest difference of the logits {early:.6f} up to it, {late:.6f} after it; "
        f"without a window {plain:.6f}"
    )
    if early > 1e-3 or plain > 1e-3 or late < 0.1:
        raise SystemExit(f"changed: mlx-lm reads {family}'s window in another way now")
try:
    differences("mistral", WINDOW, layer_types=["sliding_attention"] * SIZES["num_hidden_layers"])
except ValueError as error:
    print(f"mistral, every layer listed as sliding_attention: ValueError: {error}")
else:
    raise SystemExit("changed: layer_types can give a Mistral its window now")
PY
