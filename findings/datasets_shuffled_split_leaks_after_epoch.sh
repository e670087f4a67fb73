#!/usr/bin/env bash
# Versions: datasets 5.2.0, torch 2.13.0, transformers 5.24.0, accelerate 1.15.0.
# Behaviour: take(n) and skip(n) of a shuffled stream count rows of the shuffled order, and set_epoch gives another
#   order. From the second epoch on, what is trained on has rows that were held out in the first. transformers' Trainer
#   calls set_epoch by itself.
# Seen: 1,000 rows in 4 shards, 100 held out by shuffle(seed=0, buffer_size=100), take(100) and skip(100). Trained on in
#   epochs 0, 1, 2: 0, 30, 35 of them. Split first and shuffled afterwards: none.
# Why it matters: the loss on held-out text says when a pruned model has been healed enough. Here it falls because the
#   model has been trained on that text, and only in runs of more than one epoch.
# Exit: 0 while this happens, otherwise not.
set -euo pipefail

work=$(mktemp -d)
export TMPDIR="$work"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.13.0 transformers==5.24.0 accelerate==1.15.0 datasets==5.2.0

cd "$work"
HF_HUB_OFFLINE=1 HF_HOME="$work/hf" venv/bin/python - 2>log.txt <<'PY'
import torch
from datasets import Dataset, IterableDataset
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback, Trainer, TrainingArguments

ROWS, HELD_OUT, EPOCHS = 1000, 100, 3
SIZES = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1)


def rows() -> IterableDataset:
    ids = [[i, i] for i in range(ROWS)]
    return Dataset.from_dict({"input_ids": ids, "labels": ids}).to_iterable_dataset(num_shards=4)


def trained_on(stream: IterableDataset) -> list[list[int]]:
    """Return the rows that Trainer hands to the model, by epoch."""
    seen = []
    model = LlamaForCausalLM(LlamaConfig(vocab_size=ROWS, **SIZES))

    def note(module, args, kwargs):
        seen.extend(kwargs["input_ids"][:, 0].tolist())

    model.register_forward_pre_hook(note, with_kwargs=True)
    steps = (ROWS - HELD_OUT) // 100
    options = dict(max_steps=EPOCHS * steps, per_device_train_batch_size=100, use_cpu=True, save_strategy="no")
    trainer = Trainer(model, TrainingArguments("out", report_to=[], disable_tqdm=True, **options), train_dataset=stream)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    share = steps * 100
    assert len(seen) == EPOCHS * share
    return [seen[epoch * share : (epoch + 1) * share] for epoch in range(EPOCHS)]


torch.manual_seed(0)
counts = {}
shuffled = rows().shuffle(seed=0, buffer_size=100)
split_after = shuffled.take(HELD_OUT), shuffled.skip(HELD_OUT)
split_before = rows().take(HELD_OUT), rows().skip(HELD_OUT).shuffle(seed=0, buffer_size=100)
for name, (held_out, rest) in (("shuffled, then split", split_after), ("split, then shuffled", split_before)):
    kept = {row["input_ids"][0] for row in held_out}
    counts[name] = [len(kept & set(epoch)) for epoch in trained_on(rest)]
    print(f"{name}: of {len(kept)} rows held out, trained on in epochs 0, 1, 2: {counts[name]}")
first, *later = counts["shuffled, then split"]
if first != 0 or min(later) == 0 or any(counts["split, then shuffled"]):
    raise SystemExit("changed: the parts of a shuffled stream are kept apart in another way now")
PY
