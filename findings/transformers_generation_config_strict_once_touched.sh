#!/usr/bin/env bash
# Versions: transformers 5.24.0.
# Behaviour: a generation_config.json with do_sample false and a temperature loads, and is saved again as long as it
#   is unchanged. After any other key is set (pad_token_id, say), save_pretrained raises ValueError about the
#   temperature, when it has written config.json and nothing else.
# Seen: unchanged: config.json, generation_config.json, model.safetensors. pad_token_id set: ValueError, only
#   config.json there.
# Why it matters: setting the pad token is what every fine-tuning script does; the run then fails at its very end, at
#   the save, over a key that it never touched, and the folder that is left looks like a model.
# Exit: 0 while transformers does this, otherwise not.
set -euo pipefail

work=$(mktemp -d)
export TMPDIR="$work"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.13.0 transformers==5.24.0

cd "$work"
HF_HUB_OFFLINE=1 HF_HOME="$work/hf" HF_HUB_DISABLE_PROGRESS_BARS=1 venv/bin/python - <<'PY'
import json
import os
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

sizes = dict(hidden_size=64, intermediate_size=128, num_attention_heads=4, num_key_value_heads=2)
torch.manual_seed(0)
LlamaForCausalLM(LlamaConfig(vocab_size=64, num_hidden_layers=2, **sizes)).save_pretrained("base")
plain = {"do_sample": False, "temperature": 0.6, "bos_token_id": 1, "eos_token_id": 2}
Path("base/generation_config.json").write_text(json.dumps(plain))


def save(folder: str, **touched: int) -> tuple[str, list[str]]:
    model = AutoModelForCausalLM.from_pretrained("base")
    for key, value in touched.items():
        setattr(model.generation_config, key, value)
    try:
        model.save_pretrained(folder)
        outcome = "saved"
    except ValueError as error:
        outcome = "ValueError, about " + ("temperature" if "`temperature`" in str(error) else str(error))
    files = sorted(os.listdir(folder))
    print(f"set {touched or 'nothing'}: {outcome}; in the folder: {files}")
    return outcome, files


all_files = ["config.json", "generation_config.json", "model.safetensors"]
if save("unchanged") != ("saved", all_files):
    raise SystemExit("changed: an unchanged generation config is no longer saved")
if save("touched", pad_token_id=2) != ("ValueError, about temperature", ["config.json"]):
    raise SystemExit("changed: a touched generation config is treated in another way now")
PY
