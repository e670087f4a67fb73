#!/usr/bin/env bash
# Versions: transformers 5.24.0, accelerate 1.15.0, torch 2.13.0, on a CPU.
# Behaviour: layers that a device_map puts on disk, as "auto" does where memory is short, are read from the checkpoint
#   for every forward. Changes to them are lost: in place, as a new Parameter, and by load_state_dict, which returns
#   "<All keys matched successfully>". Layers in memory do change. save_pretrained then writes the changed layers and
#   the unchanged ones, as one model.
# Seen: down_proj set to zero in all of 4 layers, 2 of them on disk: zeros in 2 layers, in the forward and in the saved
#   file, for each of the three ways. A new Linear in place of the old one counts, on disk too. Of the three,
#   load_state_dict alone warns, once a tensor. After accelerate's cpu_offload, with all weights in memory, edits in
#   place are lost in every layer.
# Why it matters: masks and scales are applied like this. On a machine with enough memory the same lines change all
#   layers; on a smaller one they skip some, and what is saved and published is a model that is pruned in part.
# Exit: 0 while transformers does this, otherwise not.
set -euo pipefail

work=$(mktemp -d)
export TMPDIR="$work"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.13.0 transformers==5.24.0 accelerate==1.15.0 numpy==2.4.6

cd "$work"
HF_HUB_OFFLINE=1 HF_HOME="$work/hf" HF_HUB_DISABLE_PROGRESS_BARS=1 venv/bin/python - 2>log.txt <<'PY'
from collections.abc import Callable

import torch
from accelerate import cpu_offload
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

IDS = torch.arange(32)[None]
sizes = dict(hidden_size=64, intermediate_size=128, num_attention_heads=4, num_key_value_heads=2, initializer_range=0.2)
torch.manual_seed(0)
LlamaForCausalLM(LlamaConfig(vocab_size=256, num_hidden_layers=4, **sizes)).to(torch.bfloat16).save_pretrained("base")
ON_DISK = {"model.layers.2", "model.layers.3"}
names = ["model.embed_tokens", *(f"model.layers.{i}" for i in range(4)), "model.norm", "model.rotary_emb", "lm_head"]
device_map = {name: "disk" if name in ON_DISK else "cpu" for name in names}


@torch.no_grad()
def in_place(mlp: nn.Module) -> None:
    mlp.down_proj.weight.zero_()


def new_parameter(mlp: nn.Module) -> None:
    mlp.down_proj.weight = nn.Parameter(torch.zeros(64, 128, dtype=torch.bfloat16))


def state_dict(mlp: nn.Module) -> None:
    answer = mlp.down_proj.load_state_dict({"weight": torch.zeros(64, 128, dtype=torch.bfloat16)})
    assert str(answer) == "<All keys matched successfully>"


def new_module(mlp: nn.Module) -> None:
    mlp.down_proj = nn.Linear(128, 64, bias=False, dtype=torch.bfloat16)
    nn.init.zeros_(mlp.down_proj.weight)


@torch.no_grad()
def zeroed(change: Callable[[nn.Module], None], **options) -> tuple[list[int], list[int]]:
    """Return the layers whose MLP is zero in the forward, and those whose down_proj is zero in the saved model."""
    model = AutoModelForCausalLM.from_pretrained("base", **options)
    outputs: dict[int, torch.Tensor] = {}
    for index, layer in enumerate(model.model.layers):
        change(layer.mlp)
        layer.mlp.register_forward_hook(lambda *call, index=index: outputs.__setitem__(index, call[2]))
    model(IDS)
    model.save_pretrained("saved")
    saved = AutoModelForCausalLM.from_pretrained("saved")
    in_file = [index for index, layer in enumerate(saved.model.layers) if not layer.mlp.down_proj.weight.any()]
    return [index for index, output in sorted(outputs.items()) if not output.any()], in_file


found = {}
for change in (in_place, new_parameter, state_dict, new_module):
    for where, options in (("in memory", {}), ("layers 2, 3 on disk", dict(device_map=device_map))):
        found[change, bool(options)] = zeroed(change, **options)
        forward, in_file = found[change, bool(options)]
        print(f"{change.__name__}, {where}: zero in the forward {forward}, in the saved model {in_file}")

kept_in_memory = AutoModelForCausalLM.from_pretrained("base")
cpu_offload(kept_in_memory, execution_device="cpu")
before = kept_in_memory(IDS).logits
for layer in kept_in_memory.model.layers:
    in_place(layer.mlp)
same = torch.equal(kept_in_memory(IDS).logits, before)
print(f"in_place after accelerate's cpu_offload: logits are those of before: {same}")

lost = {change for change in (in_place, new_parameter, state_dict) if found[change, True] == ([0, 1], [0, 1])}
whole = [pair for (change, offloaded), pair in found.items() if not offloaded or change is new_module]
if not same or len(lost) != 3 or any(pair != ([0, 1, 2, 3],) * 2 for pair in whole):
    raise SystemExit("changed: edits of offloaded weights are kept or refused now")
PY
