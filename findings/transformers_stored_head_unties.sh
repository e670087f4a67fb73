#!/usr/bin/env bash
# Versions: transformers 5.24.0 against 4.57.6.
# Behaviour: config.json says tie_word_embeddings and the file holds an lm_head.weight that differs from the
#   embeddings (as merges of adapters leave it). 4.57 ties, so that the stored head is never used. 5.24 warns and uses
#   the stored head; when it saves, it writes both matrices and still tie_word_embeddings: true.
# Seen: one folder: 78,144 parameters in 4.57.6, 82,240 in 5.24.0, and other logits. What 5.24.0 saves is again read
#   in two ways.
# Why it matters: parameter counts, sizes and benchmark results of such a model depend on the reader's version, and
#   nobody who loads it in 4.57 is told that a matrix of the file was left out.
# Exit: 0 while the two versions differ like this, otherwise not.
set -euo pipefail

work=$(mktemp -d)
export TMPDIR="$work"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.13.0 transformers==5.24.0 requests==2.32.5
"$work/venv/bin/pip" install --quiet --no-compile --no-deps --target "$work/older" \
    transformers==4.57.6 tokenizers==0.22.2 huggingface_hub==0.36.2

cat >"$work/make.py" <<'PY'
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

sizes = dict(hidden_size=64, intermediate_size=128, num_attention_heads=4, num_key_value_heads=2)
torch.manual_seed(0)
config = LlamaConfig(vocab_size=64, num_hidden_layers=2, tie_word_embeddings=True, **sizes)
LlamaForCausalLM(config).save_pretrained("base")
weights = load_file("base/model.safetensors")
weights["lm_head.weight"] = 1.5 * weights["model.embed_tokens.weight"]
save_file(weights, "base/model.safetensors", metadata={"format": "pt"})
PY

cat >"$work/load.py" <<'PY'
import json
import sys
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM


def read(folder: str) -> tuple[int, float]:
    """Return the parameters and the ratio of the logits to those of a tied head, which is 1.5 with the stored head."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.arange(20)[None]
    hidden = model.model(ids).last_hidden_state
    ratio = (model(ids).logits / (hidden @ model.model.embed_tokens.weight.T)).mean().item()
    print(f"  {folder}: {model.num_parameters():,} parameters, logits {ratio:.2f} times those of a tied head")
    return model.num_parameters(), round(ratio, 3)


source, saved = sys.argv[1], sys.argv[2]
found = read(source)
if saved != "-":
    AutoModelForCausalLM.from_pretrained(source).save_pretrained(saved)
    with safe_open(Path(saved) / "model.safetensors", "pt") as file:
        both = {"lm_head.weight", "model.embed_tokens.weight"} <= set(file.keys())
    flag = json.loads((Path(saved) / "config.json").read_text())["tie_word_embeddings"]
    print(f"  saved again: both matrices: {both}, tie_word_embeddings: {flag}")
    if not both or flag is not True:
        raise SystemExit("changed: an untied head is saved in another way now")
if found != {"tied": (78_144, 1.0), "stored": (82_240, 1.5)}[sys.argv[3]]:
    raise SystemExit("changed: a stored head that differs is read in another way now")
PY

cd "$work"
export HF_HUB_OFFLINE=1 HF_HOME="$work/hf" HF_HUB_DISABLE_PROGRESS_BARS=1
venv/bin/python make.py
echo "transformers 5.24.0:"
venv/bin/python load.py base saved stored
echo "transformers 4.57.6:"
PYTHONPATH=older venv/bin/python load.py base - tied
PYTHONPATH=older venv/bin/python load.py saved - tied
