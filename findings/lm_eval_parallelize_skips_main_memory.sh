#!/usr/bin/env bash
# Versions: lm-eval 0.4.13, transformers 5.24.0, accelerate 1.15.0, on a CPU.
# Behaviour: parallelize=True hands max_memory with the GPUs alone to device_map="auto", unless max_cpu_memory is
#   given. A device that max_memory does not name gets nothing, so whatever the GPUs do not hold goes to disk and main
#   memory stays empty. The docstring says of offload_folder that it is for a model that "does not fit in GPU and CPU
#   memory combined".
# Seen: without a GPU every layer is on disk, with gigabytes of memory free, and all offloaded tensors are read again
#   for each batch: 39 tensors, 8 batches, 312 reads. With max_cpu_memory=1GiB all is in memory, 0 reads. A dry run
#   of the same argument for one GPU that holds half: layers on 0 and on disk, none on cpu.
# Why it matters: for a model a little larger than its GPU this is the documented way, and it runs, with equal
#   results, at the speed of reading files instead of that of memory. The log says that parameters are on the disk, as
#   it would if memory were short; one more argument undoes it.
# Exit: 0 while lm-eval does this, otherwise not.
set -euo pipefail

work=$(mktemp -d)
export TMPDIR="$work"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.13.0 transformers==5.24.0 accelerate==1.15.0 \
    numpy==2.4.6 requests==2.32.5 dill==0.4.1
"$work/venv/bin/pip" install --quiet --no-compile --no-deps lm-eval==0.4.13  # the rest is for its tasks and tables

cd "$work"
export HF_HUB_OFFLINE=1 HF_HOME="$work/hf" HF_HUB_DISABLE_PROGRESS_BARS=1 CUDA_VISIBLE_DEVICES=""
venv/bin/python - 2>log.txt <<'PY'
import torch
from accelerate.utils.offload import OffloadedWeightsLoader
from lm_eval.api.instance import Instance
from lm_eval.models import huggingface
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.integrations.accelerate import infer_auto_device_map

words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(256)}, unk_token="w0"))
words.pre_tokenizer = pre_tokenizers.Whitespace()
PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w255").save_pretrained("model")
torch.manual_seed(0)
sizes = dict(hidden_size=64, intermediate_size=128, num_attention_heads=4, num_key_value_heads=2)
model = LlamaForCausalLM(LlamaConfig(vocab_size=256, num_hidden_layers=4, initializer_range=0.3, **sizes))
model.save_pretrained("model")

reads = 0
read_one = OffloadedWeightsLoader.__getitem__


def counted(self, key):
    global reads
    reads += 1
    return read_one(self, key)


OffloadedWeightsLoader.__getitem__ = counted


def evaluate(**options) -> tuple[set, int, list[float]]:
    """Return where the layers are, how many tensors eight batches read from disk, and the eight log-likelihoods."""
    global reads
    lm = HFLM("model", device="cpu", batch_size=1, **options)
    texts = [(f"w{i} w{i + 1} w{i + 2}", f" w{i + 3} w{i + 4}") for i in range(0, 80, 10)]
    requests = [Instance("loglikelihood", {}, text, i) for i, text in enumerate(texts)]
    reads = 0
    scores = [score for score, _ in lm.loglikelihood(requests, disable_tqdm=True)]
    return set(map(str, getattr(lm.model, "hf_device_map", {"": "cpu"}).values())), reads, scores


plain = evaluate()
parallel = evaluate(parallelize=True, offload_folder="offload")
with_cpu = evaluate(parallelize=True, offload_folder="offload", max_cpu_memory="1GiB")
for name, found in (("plain", plain), ("parallelize=True", parallel), ("and max_cpu_memory=1GiB", with_cpu)):
    print(f"{name}: layers on {sorted(found[0])}, {found[1]} tensors read from disk for 8 batches")

half = model.get_memory_footprint() // 2
huggingface.get_max_memory = lambda: {0: half, "cpu": 2**40}  # what accelerate would find with one GPU
limits = HFLM._get_accelerate_args(object.__new__(HFLM), parallelize=True)["max_memory"]
with torch.device("meta"):
    empty = AutoModelForCausalLM.from_config(model.config)
device_map = infer_auto_device_map(empty, max_memory=dict(limits), no_split_module_classes=["LlamaDecoderLayer"])
placed = set(device_map.values())
print(f"a dry run for one GPU that holds half: max_memory {limits}, devices {sorted(map(str, placed))}")

close = all(abs(a - b) < 1e-3 for a, b in zip(plain[2], parallel[2], strict=True))
seen = (plain[:2], parallel[0], parallel[1] >= 8 * 39 - 8, with_cpu[:2], set(limits), placed, close)
if seen != (({"cpu"}, 0), {"disk"}, True, ({"cpu"}, 0), {0}, {0, "disk"}, True):
    raise SystemExit("changed: parallelize=True places layers in another way now")
PY
