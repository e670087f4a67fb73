#!/usr/bin/env bash
# Versions: transformers 5.24.0 against 5.23.0.
# Behaviour: 5.24 hands the KV cache from module to module as `cache`, 5.23 and before as `past_key_values`. The old
#   name is translated at the door of the model that is called, and only there: pre-hooks inside see the new name
#   alone, whichever the caller used. The output's key is `cache`, too.
# Seen: keyword arguments that hold a cache, as pre-hooks see them during generate(): {'past_key_values'} in 5.23.0,
#   {'cache'} in 5.24.0, in the causal LM, the model, its decoder layers and their attentions.
# Why it matters: a hook or a replacement module that trims, counts or offloads the cache by looking for one name
#   finds nothing under the other: no error, the cache is just left as it is.
# Exit: 0 while the two versions differ like this, otherwise not.
set -euo pipefail

work=$(mktemp -d)
export TMPDIR="$work"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.13.0 transformers==5.24.0
"$work/venv/bin/pip" install --quiet --no-compile --no-deps --target "$work/older" transformers==5.23.0

cat >"$work/hooks.py" <<'PY'
import sys

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.cache_utils import Cache

sizes = dict(hidden_size=64, intermediate_size=128, num_attention_heads=4, num_key_value_heads=2)
torch.manual_seed(0)
model = LlamaForCausalLM(LlamaConfig(vocab_size=64, num_hidden_layers=2, **sizes)).eval()
layer = model.model.layers[0]
seen: dict[str, set[str]] = {}


def watch(module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
    names = seen.setdefault(type(module).__name__, set())
    names.update(name for name, value in kwargs.items() if isinstance(value, Cache))


for module in (model, model.model, layer, layer.self_attn):
    module.register_forward_pre_hook(watch, with_kwargs=True)

ids = torch.arange(5)[None]
model.generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=0)
print("  in generate():", seen)
name = sys.argv[1]
if any(names != {name} for names in seen.values()) or len(seen) != 4:
    raise SystemExit("changed: the cache travels under another name now")

filled = model(ids, use_cache=True)
seen.clear()
output = model(ids, past_key_values=filled.past_key_values)
print("  the caller writes past_key_values:", seen, "output:", list(output))
if seen["LlamaForCausalLM"] != {"past_key_values"} or seen["LlamaDecoderLayer"] != {name} or name not in output:
    raise SystemExit("changed: past_key_values of a caller is handed on in another way now")
PY

cd "$work"
export HF_HUB_OFFLINE=1 PYTHONWARNINGS=ignore TRANSFORMERS_VERBOSITY=error
echo "transformers 5.23.0:"
PYTHONPATH=older venv/bin/python hooks.py past_key_values
echo "transformers 5.24.0:"
venv/bin/python hooks.py cache
