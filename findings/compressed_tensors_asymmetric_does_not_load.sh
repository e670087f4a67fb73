#!/usr/bin/env bash
# Versions: compressed-tensors 0.20.1, transformers 5.24.0.
# Behaviour: a model quantized to 4 bits and saved in the format pack-quantized loads again if the scheme is symmetric
#   (W4A16), and does not if it has zero points (W4A16_ASYM, the usual scheme of AWQ): compressed-tensors packs eight
#   zero points into an int32, transformers expects them unpacked, reports MISMATCH and raises RuntimeError about
#   ignore_mismatched_sizes.
# Seen: weight_zero_point is [32, 2] in the file and [256, 2] in the model. W4A16 comes back with equal logits.
# Why it matters: both are in their newest release, and the file is what the format's own library writes. Whoever
#   quantizes learns of it from the first reader, unless the saved folder is loaded once before it is published.
# Exit: 0 while the two do not fit, otherwise not.
set -euo pipefail

work=$(mktemp -d)
export TMPDIR="$work"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.13.0 transformers==5.24.0 compressed-tensors==0.20.1

cd "$work"
HF_HUB_OFFLINE=1 HF_HOME="$work/hf" HF_HUB_DISABLE_PROGRESS_BARS=1 venv/bin/python - 2>log.txt <<'PY'
import torch
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config, preset_name_to_scheme
from safetensors import safe_open
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

GROUP = 128
ids = torch.arange(30)[None]


@torch.no_grad()
def set_scales(module: torch.nn.Module) -> None:
    """Set scales, and zero points where there are some, from the range of each group of weights."""
    groups = module.weight.reshape(module.weight.shape[0], -1, GROUP)
    if module.quantization_scheme.weights.symmetric:
        module.weight_scale.copy_(groups.abs().amax(-1) / 7)
        return
    low, high = groups.amin(-1), groups.amax(-1)
    scale = (high - low) / 15
    module.weight_scale.copy_(scale)
    module.weight_zero_point.copy_((-8 - low / scale).round().clamp(-8, 7))


def quantize(scheme: str) -> torch.Tensor:
    """Save a quantized Llama as `scheme` and return its logits."""
    torch.manual_seed(0)
    sizes = dict(hidden_size=256, intermediate_size=256, num_attention_heads=4, num_key_value_heads=4)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, num_hidden_layers=2, **sizes)).eval()
    config = QuantizationConfig(
        config_groups={"group_0": preset_name_to_scheme(scheme, ["Linear"])},
        ignore=["lm_head"],
        format="pack-quantized",
        quantization_status="frozen",
    )
    apply_quantization_config(model, config)
    for module in model.modules():
        if hasattr(module, "weight_scale"):
            set_scales(module)
    with torch.no_grad():
        logits = model(ids).logits
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(scheme)
    compressor.update_config(scheme)
    return logits


symmetric = quantize("W4A16")
with torch.no_grad():
    difference = (AutoModelForCausalLM.from_pretrained("W4A16")(ids).logits - symmetric).abs().max().item()
print(f"W4A16: loads, largest difference of the logits {difference}")
quantize("W4A16_ASYM")
name = "model.layers.0.mlp.up_proj.weight_zero_point"
with safe_open("W4A16_ASYM/model.safetensors", "pt") as file:
    print(f"W4A16_ASYM: {name} is {file.get_slice(name).get_dtype()} {file.get_slice(name).get_shape()} in the file")
try:
    AutoModelForCausalLM.from_pretrained("W4A16_ASYM")
except RuntimeError as error:
    print(f"W4A16_ASYM: RuntimeError: {error}")
    if "ignore_mismatched_sizes" not in str(error):
        raise
else:
    raise SystemExit("changed: packed zero points are loaded now")
if difference > 1e-4:
    raise SystemExit("changed: the symmetric scheme does not come back equal any more")
PY
grep --max-count 3 MISMATCH "$work/log.txt" | tr -s ' '
