#!/usr/bin/env bash
# Versions: optipfair 0.4.2, torch 2.13.0, transformers 5.24.0.
# Behaviour: prune_model(..., dataloader=...) weighs MLP neurons by their activations on calibration texts. It hands
#   the attention mask to the model but sums the activations over every position, padding included; and it adds up the
#   norms of batches, each a root of a sum of squares. So which neurons go depends on how the same texts are padded
#   and batched. (By its source, the score of whole layers does leave padding out.)
# Seen: 8 texts of 12 tokens, 64 of 256 neurons to drop in each of 2 layers: other neurons go when the texts are
#   padded to 48 tokens, and when they come one by one instead of as one batch.
# Why it matters: batch size and padding look like matters of speed. Here they choose the neurons, so that two people
#   with one model and one data set get two pruned models.
# Exit: 0 while optipfair does this, otherwise not.
set -euo pipefail

work=$(mktemp -d)
export TMPDIR="$work"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.13.0 transformers==5.24.0 numpy==2.4.6 optipfair==0.4.2

cd "$work"
HF_HUB_OFFLINE=1 HF_HOME="$work/hf" venv/bin/python - 2>log.txt <<'PY'
import torch
from optipfair import prune_model
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

TEXTS, TOKENS, PADDED, PAD = 8, 12, 48, 0
generator = torch.Generator().manual_seed(1)
ids = torch.randint(1, 64, (TEXTS, TOKENS), generator=generator)


def loader(length: int, batch_size: int) -> DataLoader:
    padding = torch.full((TEXTS, length - TOKENS), PAD)
    mask = torch.cat([torch.ones_like(ids), torch.zeros_like(padding)], dim=1)
    rows = [
        {"input_ids": row, "attention_mask": kept}
        for row, kept in zip(torch.cat([ids, padding], dim=1), mask, strict=True)
    ]
    return DataLoader(rows, batch_size=batch_size)


def kept_neurons(calibration: DataLoader) -> list[set[int]]:
    """Return the neurons of each layer that are left, found again by their rows of gate_proj."""
    torch.manual_seed(0)
    sizes = dict(hidden_size=64, intermediate_size=256, num_attention_heads=4, num_key_value_heads=2)
    config = LlamaConfig(vocab_size=64, num_hidden_layers=2, initializer_range=0.2, **sizes)
    model = LlamaForCausalLM(config).eval()
    before = [layer.mlp.gate_proj.weight.detach().clone() for layer in model.model.layers]
    pruned = prune_model(model, pruning_percentage=25, dataloader=calibration, show_progress=False)
    kept = []
    for rows, layer in zip(before, pruned.model.layers, strict=True):
        same = (rows[:, None] == layer.mlp.gate_proj.weight[None]).all(dim=-1)
        kept.append(set(same.any(dim=1).nonzero().flatten().tolist()))
    return kept


plain = kept_neurons(loader(TOKENS, TEXTS))
again = kept_neurons(loader(TOKENS, TEXTS))
padded = kept_neurons(loader(PADDED, TEXTS))
one_by_one = kept_neurons(loader(TOKENS, 1))
print("neurons kept in each layer:", [len(neurons) for neurons in plain])
for name, other in (("the same once more", again), ("padded to 48 tokens", padded), ("one text a batch", one_by_one)):
    print(f"{name}: kept here and not there, by layer:", [len(a - b) for a, b in zip(plain, other, strict=True)])
if again != plain or padded == plain or one_by_one == plain:
    raise SystemExit("changed: padding and batches have another influence on the neurons now")
PY
