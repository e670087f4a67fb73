#!/usr/bin/env bash
# Versions: transformers 5.24.0, huggingface_hub 2.4.0.
# Behaviour: save_pretrained into a folder of an earlier save removes that save's shards if it was sharded, and leaves
#   its model.safetensors if it was one file. If the new model is written in shards, both lie there, and
#   from_pretrained takes the single file before the index: it gives the earlier model. Nothing is said on either
#   side. huggingface_hub's save_torch_model does remove the file, and its load_torch_model reads the index first.
# Seen: one file, then shards, both by save_pretrained: transformers loads the first model, huggingface_hub the
#   second. Shards, then one file: the index stays, and names shards that are gone; transformers loads the second
#   model, huggingface_hub raises FileNotFoundError. Both saved by save_torch_model: both load the second.
# Why it matters: a model is saved in shards once it passes max_shard_size (a larger dtype, more layers, another
#   limit). From that save on the folder goes on giving the last model that was small enough, with the new
#   config.json; where shapes agree, only its outputs tell. Both ways to read that folder are Hugging Face's own.
# Exit: 0 while the two read one folder differently, otherwise not.
set -euo pipefail

work=$(mktemp -d)
export TMPDIR="$work"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.13.0 transformers==5.24.0 huggingface_hub==2.4.0 numpy==2.4.6

cd "$work"
HF_HUB_OFFLINE=1 HF_HOME="$work/hf" HF_HUB_DISABLE_PROGRESS_BARS=1 venv/bin/python - <<'PY'
from pathlib import Path

import torch
from huggingface_hub import load_torch_model, save_torch_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

IDS = torch.arange(20)[None]
SHARDED = "100KB"  # the model has 723 KB


def make(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    sizes = dict(hidden_size=64, intermediate_size=128, num_attention_heads=4, num_key_value_heads=2)
    return LlamaForCausalLM(LlamaConfig(vocab_size=256, num_hidden_layers=4, **sizes)).eval()


first, second = make(1), make(2)


def which(model: LlamaForCausalLM) -> str:
    logits = model(IDS).logits
    for name, other in (("first", first), ("second", second)):
        if torch.equal(logits, other(IDS).logits):
            return name
    return "neither"


def read(folder: str) -> tuple[str, str]:
    """Return which of the two models transformers and huggingface_hub find in `folder`."""
    by_hub = make(3)
    try:
        load_torch_model(by_hub, folder)
        hub_finds = which(by_hub)
    except FileNotFoundError:
        hub_finds = "neither"
    found = which(AutoModelForCausalLM.from_pretrained(folder)), hub_finds
    names = sorted(path.name for path in Path(folder).glob("model*"))
    print(f"{folder}: {', '.join(names[:2])}, ... ({len(names)} files of weights and index)")
    print(f"  model loaded by transformers: {found[0]}, by huggingface_hub: {found[1]}")
    return found


first.save_pretrained("file_then_shards")
second.save_pretrained("file_then_shards", max_shard_size=SHARDED)
first.save_pretrained("shards_then_file", max_shard_size=SHARDED)
second.save_pretrained("shards_then_file")
Path("by_hub").mkdir()
first.config.save_pretrained("by_hub")
save_torch_model(first, "by_hub")
save_torch_model(second, "by_hub", max_shard_size=SHARDED)
expected = {
    "file_then_shards": ("first", "second"),
    "shards_then_file": ("second", "neither"),
    "by_hub": ("second", "second"),
}
if {folder: read(folder) for folder in expected} != expected:
    raise SystemExit("changed: a file of an earlier save is treated in another way now")
PY
