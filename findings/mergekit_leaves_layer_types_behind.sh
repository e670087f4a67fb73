#!/usr/bin/env bash
# Versions: mergekit 0.1.5, transformers 5.24.0.
# Behaviour: a passthrough merge of slices that leaves layers out sets num_hidden_layers in the new config and not
#   layer_types, a list with one entry a layer. transformers 5 checks that the two agree: the merge of a Qwen 3 ends
#   with StrictDataclassClassValidationError after all weights are written. Llama has no layer_types and passes.
# Seen: layers 0, 2 and 3 of 4: Llama: exit 0, config.json and weights. Qwen 3: exit 1, "`num_hidden_layers` (3) must be
#   equal to the number of `layer_types` (4)", and a folder with model.safetensors and no config.json.
# Why it matters: dropping blocks by slices is the recipe that most people know. With the families that name the kind
#   of each layer it fails at the very end, after hours for a large model.
# Exit: 0 while mergekit does this, otherwise not.
set -euo pipefail

work=$(mktemp -d)
export TMPDIR="$work"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.13.0 mergekit==0.1.5 transformers==5.24.0

cd "$work"
export HF_HUB_OFFLINE=1 HF_HOME="$work/hf" HF_HUB_DISABLE_PROGRESS_BARS=1
venv/bin/python - <<'PY'
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

sizes = dict(hidden_size=64, intermediate_size=128, num_attention_heads=4, num_key_value_heads=2, head_dim=16)
for family in ("llama", "qwen3"):
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, vocab_size=64, num_hidden_layers=4, **sizes)
    AutoModelForCausalLM.from_config(config).save_pretrained(family)
    slices = "".join(
        f"- sources:\n  - model: {family}\n    layer_range: [{first}, {end}]\n" for first, end in ((0, 1), (2, 4))
    )
    Path(f"{family}.yaml").write_text(f"slices:\n{slices}merge_method: passthrough\ndtype: float32\n")
PY

changed=0
for family in llama qwen3; do
    code=0
    venv/bin/mergekit-yaml --no-copy-tokenizer --no-write-model-card "$family.yaml" "$family-merged" \
        >"$family.log" 2>&1 || code=$?
    echo "$family: exit $code, files: $(ls "$family-merged" | tr '\n' ' ')"
    grep --max-count 1 'must be equal' "$family.log" || true
    [ "$family $code" = "llama 0" ] || [ "$family $code" = "qwen3 1" ] || changed=1
done
grep --quiet 'must be equal to the number of `layer_types`' qwen3.log || changed=1
[ ! -e qwen3-merged/config.json ] && [ -e qwen3-merged/model.safetensors ] || changed=1
if [ "$changed" = 1 ]; then
    echo "changed: a merge that leaves layers out ends in another way now" >&2
    exit 1
fi
