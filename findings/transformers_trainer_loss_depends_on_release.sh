#!/usr/bin/env bash
# Versions: transformers 4.57.6 and 5.24.0 (5.10.0 has the code of the former, 5.15.0 that of the latter), accelerate
#   1.15.0, torch 2.13.0.
# Behaviour: Trainer has the model sum the loss of a causal LM over the tokens that are predicted, and divide it by a
#   number of its own. In 4.57.6 that is the number of labels, in which the first token of each row counts although
#   nothing predicts it; in 5.24.0 it is left out. So a row of n tokens has (n - 1) / n of its loss with 4.57.6, in
#   training and in evaluation. Rows whose first label is -100 have the same loss with both.
# Seen: one model with one set of rows of 8 tokens: eval_loss 3.848 with 4.57.6, 4.397 with 5.24.0, which is what
#   model(**rows).loss says with both; perplexities 46.9 and 81.2. Rows of 32 tokens: 31/32 of the loss. The
#   loss that is logged in training is the same number in each case.
# Why it matters: the exponential of eval_loss is what many cards of healed models call perplexity. A base model
#   measured with one release and its pruned model with the other can look better for being pruned, and 4.57.6 favours
#   whoever cuts texts into shorter rows.
# Exit: 0 while the two releases do this, otherwise not.
set -euo pipefail

work=$(mktemp -d)
export TMPDIR="$work"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile \
    torch==2.13.0 transformers==5.24.0 accelerate==1.15.0 requests==2.32.5
"$work/venv/bin/pip" install --quiet --no-compile --no-deps --target "$work/older" \
    transformers==4.57.6 tokenizers==0.22.2 huggingface_hub==0.36.2

cat >"$work/losses.py" <<'PY'
import math
import sys

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, __version__

ROWS = 16
torch.manual_seed(0)
sizes = dict(hidden_size=64, intermediate_size=128, num_attention_heads=4, num_key_value_heads=2)
model = LlamaForCausalLM(LlamaConfig(vocab_size=64, num_hidden_layers=2, initializer_range=0.1, **sizes)).eval()
print(f"transformers {__version__}:")
for length, first_label in ((8, True), (32, True), (8, False)):
    ids = torch.randint(64, (ROWS, length), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    if not first_label:
        labels[:, 0] = -100
    rows = [{"input_ids": row, "labels": label} for row, label in zip(ids, labels, strict=True)]
    with torch.no_grad():
        own = model(input_ids=ids, labels=labels).loss.item()
    batches = dict(per_device_train_batch_size=ROWS, per_device_eval_batch_size=ROWS)
    options = dict(max_steps=1, logging_steps=1, learning_rate=0.0, save_strategy="no", report_to=[], use_cpu=True)
    trainer = Trainer(model, TrainingArguments("out", **batches, **options), train_dataset=rows, eval_dataset=rows)
    evaluated = trainer.evaluate()["eval_loss"]
    trainer.train()
    trained = next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    expected = (length - 1) / length if first_label and sys.argv[1] == "less" else 1.0
    print(
        f"  rows of {length} tokens, first label {'kept' if first_label else '-100'}: the model's loss {own:.4f}, "
        f"eval_loss {evaluated:.4f}, training loss {trained:.4f}, perplexity {math.exp(evaluated):.1f}"
    )
    if abs(evaluated / own - expected) > 1e-3 or abs(trained / own - expected) > 1e-3:
        raise SystemExit("changed: Trainer divides the loss by another number now")
PY

cd "$work"
export HF_HUB_OFFLINE=1 HF_HOME="$work/hf"
PYTHONPATH=older venv/bin/python losses.py less 2>older.txt | grep -v "^{"
venv/bin/python losses.py all 2>newer.txt | grep -v "^{"
