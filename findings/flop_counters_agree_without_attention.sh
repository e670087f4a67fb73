#!/usr/bin/env bash
# Versions: torch 2.13.0 (FlopCounterMode), fvcore 0.1.5.post20221221, calflops 0.3.2, ptflops 0.7.5 (backend aten),
#   thop 0.1.1.post2209072238, torch-pruning 1.6.1, transformers 5.24.0, on a CPU.
# Behaviour: six counters of FLOPs give one and the same number for a Llama, and all leave the attention out: scores
#   and weighted values run in one fused kernel of scaled_dot_product_attention, transformers' default, which none of
#   them knows on a CPU. With attn_implementation="eager" four count it; thop and torch-pruning, which look at modules,
#   leave it out there, too.
# Seen: 2 layers of width 64, 512 tokens: 58,720,256 multiply-adds by all six, exactly the matrices with weights.
#   Attention has 67,108,864 more: eager gives 125,829,120 by four of the six. fvcore warns of an unsupported
#   operator; the others say nothing.
# Why it matters: speed-ups of pruned models are reported as FLOPs by these very tools, and agreement looks like
#   proof. Dropping attention layers saves more than they say, the more so the longer the text; a number from a GPU,
#   where FlopCounterMode knows the kernel, is not comparable with one from a CPU. (pytorch/pytorch#195460 reports
#   FlopCounterMode alone.)
# Exit: 0 while the six leave it out, otherwise not.
set -euo pipefail

work=$(mktemp -d)
export TMPDIR="$work"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.13.0 transformers==5.24.0 accelerate==1.15.0 numpy==2.4.6 \
    fvcore==0.1.5.post20221221 calflops==0.3.2 ptflops==0.7.5 thop==0.1.1.post2209072238 torch-pruning==1.6.1

cd "$work"
HF_HUB_OFFLINE=1 HF_HOME="$work/hf" CUDA_VISIBLE_DEVICES="" venv/bin/python - 2>log.txt <<'PY'
import contextlib
import io

import calflops
import ptflops
import thop
import torch
import torch_pruning
from fvcore.nn import FlopCountAnalysis
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

TOKENS, WIDTH, INNER, WORDS, LAYERS = 512, 64, 128, 512, 2
ids = torch.zeros(1, TOKENS, dtype=torch.long)


def make(attention: str) -> LlamaForCausalLM:
    sizes = dict(hidden_size=WIDTH, intermediate_size=INNER, num_attention_heads=4, num_key_value_heads=4)
    config = LlamaConfig(vocab_size=WORDS, num_hidden_layers=LAYERS, attn_implementation=attention, **sizes)
    config.use_cache = False
    return LlamaForCausalLM(config).eval()


def by_torch(model: LlamaForCausalLM) -> int:
    with FlopCounterMode(display=False) as counter:
        model(ids)
    return counter.get_total_flops() // 2  # it counts multiplications and additions


def by_ptflops(model: LlamaForCausalLM) -> int:
    options = dict(as_strings=False, print_per_layer_stat=False, backend="aten")
    options["input_constructor"] = lambda _: {"input_ids": ids}
    return ptflops.get_model_complexity_info(model, (TOKENS,), **options)[0]


def by_calflops(model: LlamaForCausalLM) -> int:
    return calflops.calculate_flops(model, kwargs={"input_ids": ids}, print_results=False, output_as_string=False)[1]


COUNTERS = {
    "torch": by_torch,
    "fvcore": lambda model: FlopCountAnalysis(model, (ids,)).total(),
    "calflops": by_calflops,
    "ptflops": by_ptflops,
    "thop": lambda model: thop.profile(model, inputs=(ids,), verbose=False)[0],
    "torch-pruning": lambda model: torch_pruning.utils.count_ops_and_params(model, ids)[0],
}
weights = TOKENS * (LAYERS * (4 * WIDTH * WIDTH + 3 * WIDTH * INNER) + WIDTH * WORDS)
attention = LAYERS * 2 * TOKENS * TOKENS * WIDTH
print(f"multiply-adds: {weights:,} with weights, {attention:,} in attention, {weights + attention:,} in all")
found: dict[str, dict[str, int]] = {}
for implementation in ("sdpa", "eager"):
    with contextlib.redirect_stdout(io.StringIO()):
        found[implementation] = {name: int(count(make(implementation))) for name, count in COUNTERS.items()}
    print(f"{implementation}:", ", ".join(f"{name} {count:,}" for name, count in found[implementation].items()))

blind = {name for name, count in found["eager"].items() if count == weights}
rest = {count for name, count in found["eager"].items() if name not in blind}
if set(found["sdpa"].values()) != {weights} or blind != {"thop", "torch-pruning"} or rest != {weights + attention}:
    raise SystemExit("changed: attention is counted in another way now")
PY
