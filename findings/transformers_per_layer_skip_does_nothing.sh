#!/usr/bin/env bash
# Versions: transformers 5.24.0 (5.23.0 has the key as well).
# Behaviour: config.json may hold per_layer_config with a list `skip` for a layer, documented as the sublayers that
#   the layer leaves out. The config class checks it, normalizes it, and saves it; Llama's model code does not read
#   it. The model has every sublayer, and nothing is said.
# Seen: skip ["attention"] in layer 1 of 4: parameters and logits are those of the plain model, no key is reported as
#   unused.
# Why it matters: the key reads like a stock format for models without some sublayers. Files written for it load as
#   the full model: where the tensors are still there, the pruned model is the base; where they are gone, they are
#   drawn at random.
# Exit: 0 while the key does nothing, otherwise not.
set -euo pipefail

work=$(mktemp -d)
export TMPDIR="$work"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.13.0 transformers==5.24.0

cd "$work"
HF_HUB_OFFLINE=1 HF_HOME="$work/hf" HF_HUB_DISABLE_PROGRESS_BARS=1 venv/bin/python - <<'PY'
import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

sizes = dict(hidden_size=64, intermediate_size=128, num_attention_heads=4, num_key_value_heads=2, initializer_range=0.2)
torch.manual_seed(0)
LlamaForCausalLM(LlamaConfig(vocab_size=64, num_hidden_layers=4, **sizes)).save_pretrained("model")
config_file = Path("model/config.json")
plain = json.loads(config_file.read_text())
ids = torch.arange(32)[None]


def load(per_layer_config: dict) -> tuple[LlamaForCausalLM, dict]:
    config_file.write_text(json.dumps({**plain, "per_layer_config": per_layer_config}))
    return AutoModelForCausalLM.from_pretrained("model", output_loading_info=True)


config_file.write_text(json.dumps(plain))
full = AutoModelForCausalLM.from_pretrained("model")
pruned, report = load({"1": {"skip": ["attention"]}})
difference = (pruned(ids).logits - full(ids).logits).abs().max().item()
pruned.save_pretrained("again")
kept = json.loads(Path("again/config.json").read_text()).get("per_layer_config")
print(f"skip attention in layer 1: {pruned.num_parameters():,} of {full.num_parameters():,} parameters")
print(f"largest difference of the logits: {difference}, loading report: {report}")
print(f"per_layer_config that is saved again: {kept}")
full.model.layers[1].self_attn.o_proj.weight.data.zero_()
without = (pruned(ids).logits - full(ids).logits).abs().max().item()
print(f"for comparison, without that attention the logits would differ by {without:.2f}")
if difference != 0.0 or any(report.values()) or "skip" not in str(kept) or without < 0.1:
    raise SystemExit("changed: `skip` has an effect, or is refused or dropped, now")
PY
