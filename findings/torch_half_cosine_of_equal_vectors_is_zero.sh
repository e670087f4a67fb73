#!/usr/bin/env bash
# Versions: torch 2.13.0 on a CPU.
# Behaviour: torch.nn.functional.cosine_similarity divides by norms that it keeps in the dtype of its inputs. A
#   float16 vector whose norm passes 65504 is divided by infinity: its cosine with itself is 0.0, though every value
#   is finite. Nothing is said.
# Seen: two channels at 46000 (norm 65054): cosine with itself 1.0. Two at 47000 (norm 66468): 0.0; 1.0 for the same
#   values as float32 or bfloat16.
# Why it matters: 1 - cos(input, output) is how layers are ranked for removal. A layer that changes nothing scores
#   1.0, the highest importance there is, as soon as a few channels are as large as those of models known for massive
#   activations.
# Exit: 0 while torch does this, otherwise not.
set -euo pipefail

work=$(mktemp -d)
export TMPDIR="$work"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.13.0 numpy==2.4.6

"$work/venv/bin/python" - <<'PY'
import torch
import torch.nn.functional as F


def cosine_with_itself(channel: float, dtype: torch.dtype) -> float:
    hidden = torch.zeros(4096)
    hidden[:2] = channel
    hidden = hidden.to(dtype)
    assert hidden.isfinite().all()
    return F.cosine_similarity(hidden, hidden, dim=-1).item()


seen = {}
for dtype in (torch.float16, torch.bfloat16, torch.float32):
    for channel in (46_000, 47_000):
        seen[dtype, channel] = cosine_with_itself(channel, dtype)
        norm = 2**0.5 * channel
        print(f"{dtype}, two channels at {channel} (norm {norm:.0f}): cos(x, x) = {seen[dtype, channel]:.3f}")

zeros = {key for key, cosine in seen.items() if cosine == 0.0}
ones = {key for key, cosine in seen.items() if abs(cosine - 1.0) < 0.01}
if zeros != {(torch.float16, 47_000)} or len(ones) != 5:
    raise SystemExit("changed: equal float16 vectors of a large norm have another cosine now")
PY
