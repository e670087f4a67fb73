#!/usr/bin/env bash
# Versions: airllm 4.0.0, transformers 5.24.0, on a CPU.
# Behaviour: airllm, which runs models larger than memory layer by layer, first splits a checkpoint into one file a
#   layer. It keeps them in layer_shards_saving_path/splitted_model, or in splitted_model inside the checkpoint's
#   folder, and takes what is there if it has a file for each layer: whose layers they are is not asked. The README
#   offers layer_shards_saving_path as "another path to save the splitted model".
# Seen: two models with one layer_shards_saving_path: the second gives the logits of the first, bit by bit. A folder
#   whose model is saved again with layer 1 of 4 taken out gives the first three layers of the old model.
# Why it matters: the path that one sets because a disk is full is the same for every model, and a base and its edited
#   version have layers of equal names and shapes: the comparison of the two then shows no difference at all. One line
#   on stdout says "saved layers already found"; config.json and tokenizer are those of the model that was asked for.
# Exit: 0 while airllm does this, otherwise not.
set -euo pipefail

work=$(mktemp -d)
export TMPDIR="$work"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.13.0 transformers==5.24.0 accelerate==1.15.0 numpy==2.4.6 \
    airllm==4.0.0

cd "$work"
HF_HUB_OFFLINE=1 HF_HOME="$work/hf" HF_HUB_DISABLE_PROGRESS_BARS=1 venv/bin/python - 2>log.txt <<'PY'
import contextlib
import copy
import io

import torch
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

with contextlib.redirect_stdout(io.StringIO()):
    from airllm import AutoModel

IDS = torch.arange(32)[None]
words = Tokenizer(models.WordLevel({str(i): i for i in range(256)}, unk_token="0"))


def save(model: LlamaForCausalLM, folder: str) -> LlamaForCausalLM:
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)
    return model


def make(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    sizes = dict(hidden_size=64, intermediate_size=128, num_attention_heads=4, num_key_value_heads=2)
    return LlamaForCausalLM(LlamaConfig(vocab_size=256, num_hidden_layers=4, initializer_range=0.2, **sizes)).eval()


def without(model: LlamaForCausalLM, layer: int) -> LlamaForCausalLM:
    model = copy.deepcopy(model)
    del model.model.layers[layer]
    model.config.num_hidden_layers -= 1
    for index, kept in enumerate(model.model.layers):
        kept.self_attn.layer_idx = index
    return model


@torch.no_grad()
def differences(folder: str, *others: LlamaForCausalLM, **options) -> list[float]:
    """Return how far the logits of airllm's model of `folder` are from those of `others`."""
    with contextlib.redirect_stdout(io.StringIO()):
        logits = AutoModel.from_pretrained(folder, device="cpu", **options)(IDS, use_cache=False).logits
    return [(logits - other(IDS, use_cache=False).logits).abs().max().item() for other in others]


first, second = save(make(1), "first"), save(make(2), "second")
alone = differences("first", first, layer_shards_saving_path="split")
shared = differences("second", second, first, layer_shards_saving_path="split")
print(f"the first model: {alone[0]:.3g} from the first model in transformers")
print(f"the second with the same saving path: {shared[0]:.3g} from the second, {shared[1]:.3g} from the first")

before = differences("first", first)
pruned = save(without(first, 1), "first")
after = differences("first", pruned, without(first, 3))
print(f"the first model in its own folder: {before[0]:.3g} from the first model")
print(f"saved again without layer 1: {after[0]:.3g} from that, {after[1]:.3g} from the old model without layer 3")
if max(alone[0], shared[1], before[0], after[1]) > 1e-4 or min(shared[0], after[0]) < 1.0:
    raise SystemExit("changed: airllm asks now whose layers it finds")
PY
