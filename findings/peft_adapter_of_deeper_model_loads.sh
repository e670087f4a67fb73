#!/usr/bin/env bash
# Versions: peft 0.21.2, transformers 5.24.0.
# Behaviour: PeftModel.from_pretrained puts an adapter that was trained on 6 layers onto a model of 4. It drops the
#   two last layers of the adapter and warns of nothing; the four others go to the layers that now have their numbers.
#   The other way round, 6 layers onto 8, it warns of missing keys. transformers' own load_adapter reports the dropped
#   keys.
# Seen: 4 layers: no warning, 8 of the adapter's 24 tensors unused. 8 layers: one warning of 8 missing keys.
#   load_adapter: UNEXPECTED for layers {4, 5}. With layers 1 and 2 of six taken out, the model's layers 1, 2, 3, once
#   3, 4, 5, get what was trained for 1, 2, 3.
# Why it matters: whoever drops layers and goes on using the adapters of the full model gets other text and no hint.
#   Only load_adapter on an existing PeftModel returns the unexpected keys, to those who look at what it returns.
# Exit: 0 while peft says nothing, otherwise not.
set -euo pipefail

work=$(mktemp -d)
export TMPDIR="$work"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.13.0 transformers==5.24.0 peft==0.21.2

cd "$work"
HF_HUB_OFFLINE=1 HF_HOME="$work/hf" HF_HUB_DISABLE_PROGRESS_BARS=1 venv/bin/python - <<'PY'
import contextlib
import io
import logging
import warnings

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging as transformers_logging

MODULES = ["q_proj", "v_proj"]


def model(layers: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = dict(vocab_size=64, hidden_size=64, intermediate_size=64, num_attention_heads=4)
    return LlamaForCausalLM(LlamaConfig(num_hidden_layers=layers, **sizes)).eval()


def load(base: LlamaForCausalLM) -> tuple[PeftModel, list[str], str]:
    """Put the adapter onto `base`; return the model, the warnings about the adapter's keys, and all that was logged."""
    log = io.StringIO()
    handler = logging.StreamHandler(log)
    logging.getLogger().addHandler(handler)
    transformers_logging.add_handler(handler)
    with (
        warnings.catch_warnings(record=True) as caught,
        contextlib.redirect_stderr(log),
        contextlib.redirect_stdout(log),
    ):
        warnings.simplefilter("always")
        loaded = PeftModel.from_pretrained(base, "adapter")
    logging.getLogger().removeHandler(handler)
    transformers_logging.remove_handler(handler)
    texts = [str(one.message) for one in caught if "is_gradient_checkpointing" not in str(one.message)]
    return loaded, texts, log.getvalue()


trained = get_peft_model(model(6), LoraConfig(r=4, target_modules=MODULES))
for name, parameter in trained.named_parameters():
    if "lora_" in name:
        torch.nn.init.normal_(parameter, std=0.1)
trained.save_pretrained("adapter")
stored = load_file("adapter/adapter_model.safetensors")

shallow = model(6)
del shallow.model.layers[1:3]
for index, layer in enumerate(shallow.model.layers):
    layer.self_attn.layer_idx = index
shallow.config.num_hidden_layers = 4
loaded, texts, log = load(shallow)
used = [name for name, _ in loaded.named_parameters() if "lora_" in name]
print(f"4 layers: {len(used)} of {len(stored)} tensors used; warnings {texts}; logged {log!r}")
if texts or log:
    raise SystemExit("changed: peft says something of the layers that it drops")
if len(used) != 16 or len(stored) != 24:
    raise SystemExit("changed: another number of tensors is used now")
for name, parameter in loaded.named_parameters():
    if "lora_" in name and not torch.equal(parameter, stored[name.replace(".default", "")]):
        raise SystemExit(f"changed: {name} is not what the adapter holds under this name")
print("4 layers: layer 1, layer 3 of the full model, has the adapter's layer 1")

_, texts, _ = load(model(8))
print(f"8 layers: warnings {[text[:60] for text in texts]}")
if len(texts) != 1 or "missing adapter keys" not in texts[0]:
    raise SystemExit("changed: the warning of missing keys is another one now")

report = io.StringIO()
transformers_logging.add_handler(handler := logging.StreamHandler(report))
model(4).load_adapter("adapter")
transformers_logging.remove_handler(handler)
unexpected = report.getvalue().count("UNEXPECTED ")
print(f"transformers' load_adapter: {unexpected} lines of unexpected keys")
if not unexpected:
    raise SystemExit("changed: load_adapter does not report the unexpected keys any more")
PY
