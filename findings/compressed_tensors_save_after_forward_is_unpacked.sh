#!/usr/bin/env bash
# Versions: compressed-tensors 0.20.0, transformers 5.24.0, torch 2.13.0.
# Behaviour: a model with packed 4-bit weights is loaded packed, and unpacked for good by its first forward pass. What
#   it needs in memory and how many parameters it counts change at that moment, and save_pretrained writes what is
#   there: packed weights before, whole matrices after. The config of the second folder says pack-quantized and 4 bits
#   all the same; only quantization_status differs.
# Seen: a Llama of 5,310,976 parameters in bfloat16, W4A16 in groups of 128: before the forward pass
#   764,444 parameters, 2.84 MB in memory and 2.85 MB saved; after it 5,351,964 parameters and 10.7 MB in both. Both
#   folders load and give equal logits. Nothing is said at the forward pass.
# Why it matters: who loads a quantized model, looks at a sample of its text, and saves or pushes it, publishes 16 bits
#   under the name of 4. What is measured between loading and running is a quarter of the memory that running
#   takes, and a count of the parameters depends on when it is made.
# Exit: 0 while this happens, otherwise not.
set -euo pipefail

work=$(mktemp -d)
export TMPDIR="$work"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.13.0 transformers==5.24.0 compressed-tensors==0.20.0

cd "$work"
HF_HUB_OFFLINE=1 HF_HOME="$work/hf" HF_HUB_DISABLE_PROGRESS_BARS=1 venv/bin/python - 2>log.txt <<'PY'
import contextlib
import io
import json
import logging
from pathlib import Path

import torch
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config, preset_name_to_scheme
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

GROUP = 128
ids = torch.arange(30)[None]
torch.manual_seed(0)
sizes = dict(hidden_size=512, intermediate_size=1024, num_attention_heads=4, num_key_value_heads=4)
model = LlamaForCausalLM(LlamaConfig(vocab_size=64, num_hidden_layers=2, **sizes)).to(torch.bfloat16).eval()
parameters = model.num_parameters()
scheme = preset_name_to_scheme("W4A16", ["Linear"])
config = QuantizationConfig(
    config_groups={"group_0": scheme}, ignore=["lm_head"], format="pack-quantized", quantization_status="frozen"
)
apply_quantization_config(model, config)
with torch.no_grad():
    for module in model.modules():
        if hasattr(module, "weight_scale"):
            module.weight_scale.copy_(module.weight.reshape(module.weight.shape[0], -1, GROUP).abs().amax(-1) / 7)
compressor = ModelCompressor.from_pretrained_model(model)
compressor.compress_model(model)
model.save_pretrained("packed")
compressor.update_config("packed")


def look(model: LlamaForCausalLM, folder: str) -> tuple[int, int, int]:
    """Save the model, and return its parameters, its bytes in memory, and its bytes on disk."""
    model.save_pretrained(folder)
    size = (Path(folder) / "model.safetensors").stat().st_size
    saved = json.loads((Path(folder) / "config.json").read_text())["quantization_config"]
    weights = saved["config_groups"]["group_0"]["weights"]
    memory = model.get_memory_footprint()
    print(f"{folder}: {model.num_parameters():,} parameters, {memory:,} bytes in memory, {size:,} saved")
    print(f"    {saved['format']}, {weights['num_bits']} bits, quantization_status {saved['quantization_status']}")
    if saved["format"] != "pack-quantized" or weights["num_bits"] != 4:
        raise SystemExit("changed: the config names what is in the file now")
    return model.num_parameters(), memory, size


print(f"the model before it was quantized: {parameters:,} parameters")
loaded = AutoModelForCausalLM.from_pretrained("packed")
before = look(loaded, "before")
said = io.StringIO()
handler = logging.StreamHandler(said)
for name in (None, "transformers", "compressed_tensors"):
    logging.getLogger(name).addHandler(handler)
with torch.no_grad(), contextlib.redirect_stdout(said):
    logits = loaded(ids).logits
after = look(loaded, "after")
print(f"said at the first forward pass: {said.getvalue()!r}")
with torch.no_grad():
    same = [torch.equal(AutoModelForCausalLM.from_pretrained(name)(ids).logits, logits) for name in ("before", "after")]
print(f"the folders' logits are equal: {same}")
ratios = [late / early for early, late in zip(before, after, strict=True)]
print("after / before:", [round(ratio, 2) for ratio in ratios])
if min(ratios) < 3 or not all(same):
    raise SystemExit("changed: the first forward pass leaves the weights packed now, or they are packed to be saved")
PY
