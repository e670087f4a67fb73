#!/usr/bin/env bash
# Versions: torch 2.13.0, transformers 5.24.0, on a CPU.
# Behaviour: torch.nn.functional.linear without a bias takes a view of states, [rows, 1, width] cut out of
#   [rows, tokens, width], in two ways. A weight that requires a gradient is used as it is. A frozen one is multiplied
#   row by row, and in bfloat16 it is copied once for every row before, in no_grad and inference_mode, too. So
#   generate() needs more memory and time after model.requires_grad_(False), which is meant to save both: the head is
#   given the last positions of the prompts, which are such a view.
# Seen: head of 32,000 x 512 in bfloat16 (33 MB), 16 rows: largest block that an operation takes 1 MB if it requires a
#   gradient, 524 MB (16 heads) if it is frozen; the same through generate() of a Llama of that head. A contiguous copy
#   of the view takes 1 MB either way, and in float32 nothing is copied.
# Why it matters: for a vocabulary of 128,000 and 32 prompts the copies of a 3B's head in bfloat16 are 25 GB. Whoever
#   freezes a model to measure it runs out of memory where the trainable one does not.
# Exit: 0 while torch does this, otherwise not.
set -euo pipefail

work=$(mktemp -d)
export TMPDIR="$work"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.13.0 transformers==5.24.0 numpy==2.4.6

"$work/venv/bin/python" - <<'PY'
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM

ROWS, TOKENS, WIDTH, WORDS = 16, 8, 512, 32_000
HEAD = WORDS * WIDTH * 2


def largest(run):
    with torch.inference_mode(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        run()
    return max(event.cpu_memory_usage for event in found.events())


def told(name, sizes):
    trainable, frozen = sizes
    print(f"{name}: trainable {trainable / 1e6:.0f} MB, frozen {frozen / 1e6:.0f} MB, one head {HEAD / 1e6:.0f} MB")
    return trainable < HEAD / 4 and frozen >= ROWS * HEAD


torch.manual_seed(0)
weight = torch.randn(WORDS, WIDTH, dtype=torch.bfloat16)
with torch.inference_mode():
    states = torch.randn(ROWS, TOKENS, WIDTH, dtype=torch.bfloat16)
both = [torch.nn.Parameter(weight, requires_grad=wanted) for wanted in (True, False)]
view = [largest(lambda w=w: F.linear(states[:, -1:], w)) for w in both]
whole = [largest(lambda w=w: F.linear(states[:, -1:].contiguous(), w)) for w in both]
print(f"contiguous: {whole[0] / 1e6:.0f} MB and {whole[1] / 1e6:.0f} MB")
same = told("a view", view) and max(whole) < HEAD / 4

config = LlamaConfig(
    vocab_size=WORDS, hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
    bos_token_id=1, eos_token_id=None, pad_token_id=0,
)
model = LlamaForCausalLM(config).to(torch.bfloat16).eval()
ids = torch.randint(3, WORDS, (ROWS, TOKENS))
sizes = []
for wanted in (True, False):
    model.requires_grad_(wanted)
    sizes.append(largest(lambda: model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=1)))
if not (told("generate()", sizes) and same):
    raise SystemExit("changed: frozen weights are no longer copied, or others are, too")
PY
