"""Quantize a folder with hubprune and with llm-compressor, and measure what comes of both on the same texts.

    python benchmarks/quantize.py FOLDER WORK --group-size 128 --calibration MIX --llm-compressor VENV/bin/python

Both calibrate on the same token ids.  Each result is loaded in a fresh process of this environment, in float32, and its
next tokens are compared with the unquantized folder's on texts that nobody calibrated on.  llm-compressor wants other
versions of transformers and compressed-tensors: it runs this file by the interpreter of an environment of its own.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROWS = {
    "hubprune gptq": ("hubprune", "gptq"), "llm-compressor gptq": ("llmcompressor", "gptq"),
    "hubprune rtn": ("hubprune", "rtn"), "llm-compressor rtn": ("llmcompressor", "rtn"),
}  # fmt: skip


def texts(folder: str, mix: str, samples: int, target: str) -> dict[str, Any]:
    """Draw what is calibrated on, and what is measured on, as token ids."""
    from hubprune.core.console import Reporter
    from hubprune.core.files import StageStore, scratch_folder
    from hubprune.core.specs import QuantizationSpec
    from hubprune.pruning.documents import find_mix
    from hubprune.workflows import quantize, quantized
    from hubprune.workflows.run import open_session

    spec, found = QuantizationSpec(scheme="w8a16", group_size=4), find_mix(mix, num_samples=samples)
    base = quantize.find_unquantized(folder, None, spec, session=open_session(None))
    with scratch_folder(name="texts") as work:
        how = quantized.How(mix=found, store=StageStore(work), reporter=Reporter(quiet=True))
        opened = quantized.open_source(base, spec, work, how)
        _, calibration, held_out = quantize.draw_texts(opened, found, quantize.commits_of(found), how)
    Path(target).write_text(json.dumps({"calibration": calibration, "held_out": held_out}))
    return {"calibration": len(calibration), "held_out": len(held_out)}


def hubprune(folder: str, out: str, group: int, method: str, mix: str, samples: int) -> dict[str, Any]:
    """Quantize with hubprune."""
    import hubprune as tool

    made = tool.quantize(
        folder, out=out, group_size=group, method=method, calibration=mix, num_samples=samples, quiet=True
    )
    found = made.record.divergence
    return {"told": found.kl if found else None, "bits": made.record.bits_per_weight}


def llmcompressor(folder: str, out: str, group: int, method: str, ids: str) -> dict[str, Any]:
    """Quantize with llm-compressor, in its own environment."""
    from datasets import Dataset
    from llmcompressor import oneshot  # type: ignore[import-not-found]
    from llmcompressor.modifiers.gptq import GPTQModifier  # type: ignore[import-not-found]
    from llmcompressor.modifiers.quantization import QuantizationModifier  # type: ignore[import-not-found]
    from transformers import AutoModelForCausalLM

    rows = json.loads(Path(ids).read_text())["calibration"]
    weights = {
        "num_bits": 4, "type": "int", "strategy": "group", "group_size": group, "symmetric": True, "dynamic": False,
    }  # fmt: skip
    kind = GPTQModifier if method == "gptq" else QuantizationModifier
    modifier = kind(ignore=["lm_head"], config_groups={"group_0": {"targets": ["Linear"], "weights": weights}})
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", trust_remote_code=True)
    data = Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]})
    oneshot(
        model=model, recipe=modifier, dataset=data, max_seq_length=max(map(len, rows)),
        num_calibration_samples=len(rows), trust_remote_code_model=True,
    )  # fmt: skip
    model.save_pretrained(out, save_compressed=True)
    return {}


def measure(folder: str, out: str, ids: str) -> dict[str, Any]:
    """Compare the next tokens of two folders, both in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    rows = [torch.tensor([row]) for row in json.loads(Path(ids).read_text())["held_out"] if len(row) > 1]
    found = []
    for place in (folder, out):
        model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32, trust_remote_code=True).eval()
        with torch.inference_mode():
            found.append([model(row).logits[0, :-1].double().log_softmax(-1) for row in rows])
    kl = agreed = count = 0.0
    nll = [0.0, 0.0]
    for row, before, after in zip(rows, *found, strict=True):
        kl += float((before.exp() * (before - after)).sum())
        agreed += float((before.argmax(-1) == after.argmax(-1)).sum())
        count += len(before)
        for number, logits in enumerate((before, after)):
            nll[number] -= float(logits.gather(1, row[0, 1:, None]).sum())
    size = sum(path.stat().st_size for path in Path(out).glob("*.safetensors"))
    ppl = [math.exp(total / count) for total in nll]
    return {"kl": kl / count, "top1": agreed / count, "ppl": ppl[1], "ppl_before": ppl[0], "bytes": size}


STEPS = {step.__name__: step for step in (texts, hubprune, llmcompressor, measure)}


def run(python: str, step: str, **values: Any) -> dict[str, Any]:
    """Run a step in a fresh process on one thread, and return what it says, its CPU seconds and its peak memory."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    told = [sys.executable if python == "" else python, __file__, "--step", step, json.dumps(values)]
    done = subprocess.run(told, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def main() -> None:
    """Measure all rows and print them as a table of Markdown."""
    if sys.argv[1:2] == ["--step"]:
        began = time.process_time()
        found = STEPS[sys.argv[2]](**json.loads(sys.argv[3]))
        usage = resource.getrusage(resource.RUSAGE_SELF)
        print(json.dumps({**found, "cpu": time.process_time() - began, "peak_mb": usage.ru_maxrss / 1024}))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("work", type=Path)
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--num-samples", type=int, default=400)
    parser.add_argument("--llm-compressor", help="interpreter of an environment that has it")
    parser.add_argument("--only", help="rows whose names begin so")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    ids, samples = str(given.work / "ids.json"), given.num_samples
    run("", "texts", folder=given.folder, mix=given.calibration, samples=samples, target=ids)
    print("| | KL | top-1 | perplexity | bytes | CPU s | peak MB |\n|---|---|---|---|---|---|---|", flush=True)
    for name, (tool, method) in ROWS.items():
        python = given.llm_compressor if tool == "llmcompressor" else ""
        if python is None or (given.only and not name.startswith(given.only)):
            continue
        out = given.work / name.replace(" ", "-")
        subprocess.run(["rm", "-rf", str(out)], check=True)
        own = {"ids": ids} if python else {"mix": given.calibration, "samples": samples}
        made = run(python, tool, folder=given.folder, out=str(out), group=given.group_size, method=method, **own)
        seen = run("", "measure", folder=given.folder, out=str(out), ids=ids)
        figures = f"{seen['kl']:.5f} | {seen['top1']:.4f} | {seen['ppl']:.4f} (before {seen['ppl_before']:.4f})"
        print(f"| {name} | {figures} | {seen['bytes']:,} | {made['cpu']:.0f} | {made['peak_mb']:.0f} |", flush=True)


if __name__ == "__main__":
    main()
