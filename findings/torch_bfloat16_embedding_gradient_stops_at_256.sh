#!/usr/bin/env bash
# Versions: torch 2.13.0 on a CPU.
# Behaviour: the gradient of a bfloat16 embedding is added up in bfloat16, one position after the other. From 256 on, 1
#   more is less than half of the distance to the next number, so that a token's gradient stops growing, however often
#   the token occurs. `index_put_(accumulate=True)` does the same, and so does `index_add_` of a vector; `index_add_`
#   of a matrix, `scatter_add_` and `sum` of the same values do not.
# Seen: a token that occurs 1000 times, each with a gradient of 1: 256 in bfloat16, 1000 in float32. With a gradient
#   of 0.1 each, 32 instead of 100.
# Why it matters: frequent tokens, a full stop or a space, occur thousands of times in a batch of a training. With all
#   weights in bfloat16 their embeddings learn from the first few hundred positions of each batch alone. Adapters, or
#   float32 weights under autocast, do not.
# Exit: 0 while torch does this, otherwise not.
set -euo pipefail

work=$(mktemp -d)
export TMPDIR="$work"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.13.0 numpy==2.4.6

"$work/venv/bin/python" - <<'PY'
import torch

TIMES = 1000
EXPECTED = {"index_put_": 256, "index_add_": 256, "index_add_ of a matrix": TIMES, "scatter_add_": TIMES}
ids = torch.zeros(TIMES, dtype=torch.long)


def embedding_gradient(each: float, dtype: torch.dtype) -> float:
    embedding = torch.nn.Embedding(4, 2).to(dtype)
    (embedding(ids) * each).sum().backward()
    return embedding.weight.grad[0, 0].item()


def added_up(method: str) -> float:
    total, ones = torch.zeros(4, dtype=torch.bfloat16), torch.ones(TIMES, dtype=torch.bfloat16)
    if method == "index_add_ of a matrix":
        return total[:, None].repeat(1, 2).index_add_(0, ids, ones[:, None].repeat(1, 2))[0, 0].item()
    if method == "index_put_":
        return total.index_put_((ids,), ones, accumulate=True)[0].item()
    return getattr(total, method)(0, ids, ones)[0].item()


seen = {(each, dtype): embedding_gradient(each, dtype) for each in (1.0, 0.1) for dtype in (torch.bfloat16, torch.float32)}
for (each, dtype), value in seen.items():
    print(f"gradient of a token that occurs {TIMES} times, {each} each, {dtype}: {value:g}")
others = {method: added_up(method) for method in EXPECTED}
others["sum"] = torch.ones(TIMES, dtype=torch.bfloat16).sum().item()
print(f"{TIMES} bfloat16 ones added up: {others}")

stops = seen[1.0, torch.bfloat16] == 256 and seen[0.1, torch.bfloat16] < 50
exact = seen[1.0, torch.float32] == TIMES and abs(seen[0.1, torch.float32] - 100) < 0.1
if not stops or not exact or others != EXPECTED | {"sum": TIMES}:
    raise SystemExit("changed: the gradient of a bfloat16 embedding is added up in another way now")
PY
