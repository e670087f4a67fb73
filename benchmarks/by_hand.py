"""What somebody without this package would write: a script for each job, which checks nothing.

    python benchmarks/by_hand.py prune BASE TARGET LAYERS
    python benchmarks/by_hand.py score BASE TARGET TEXTS DOCUMENTS TOKENS COUNT
    python benchmarks/by_hand.py silence BASE TARGET LAYERS
    python benchmarks/by_hand.py evaluate BACKEND BASE PRUNED TASKS SAMPLES

prune      load, delete the attention of some layers with its norm, save
score      load, find the attentions with the lowest importance scores by hooks, delete, save
silence    load, let the attention of some layers add nothing, save: what stock code can load and lm-eval can measure
evaluate   benchmarks of two folders, through a backend of this package; prints how it went as JSON
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Collection
from itertools import pairwise
from pathlib import Path
from typing import Any


def load(folder: str) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()


def delete_and_save(model: Any, layers: Collection[int], target: str) -> None:
    from transformers import AutoTokenizer

    for layer in layers:
        del model.model.layers[layer].self_attn
        del model.model.layers[layer].input_layernorm
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(model.config.name_or_path).save_pretrained(target)


def prune(base: str, target: str, layers: str) -> None:
    delete_and_save(load(base), list(map(int, layers.split(","))), target)


def score(base: str, target: str, texts: str, documents: str, tokens: str, count: str) -> None:
    import torch
    from transformers import AutoTokenizer

    model, tokenizer = load(base), AutoTokenizer.from_pretrained(base)
    lines = Path(texts).read_text().splitlines()[: int(documents)]
    rows = [tokenizer(json.loads(line)["text"]).input_ids[: int(tokens)] for line in lines]
    states: list[torch.Tensor] = []
    for layer in model.model.layers:
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            norm.register_forward_pre_hook(lambda _, inputs: states.append(inputs[0].float()))
    with torch.inference_mode():
        model.model(torch.tensor(rows), use_cache=False)  # the texts are long enough to fill all rows
    cosines = [torch.cosine_similarity(before, after, dim=-1).mean() for before, after in pairwise(states)]
    scores = (1 - torch.stack(cosines[::2])).tolist()  # every other pair has an attention between
    lowest = sorted(range(len(scores)), key=lambda layer: scores[layer])[: int(count)]
    delete_and_save(model, lowest, target)


def silence(base: str, target: str, layers: str) -> None:
    model = load(base)
    for layer in map(int, layers.split(",")):
        model.model.layers[layer].self_attn.o_proj.weight.data.zero_()
    delete_and_save(model, (), target)


def evaluate(backend: str, base: str, pruned: str, tasks: str, samples: str) -> None:
    from hubprune.core.console import Reporter
    from hubprune.core.recipe import EvaluationSpec
    from hubprune.evaluation import harness
    from hubprune.evaluation.pair import ModelFolder

    names = tuple(sorted(path.stem for path in Path(tasks).glob("*.yaml")))
    spec = EvaluationSpec.model_validate({"tasks": names, "include_path": tasks, "backend": backend})
    folders = (ModelFolder(Path(base)), ModelFolder(Path(pruned), own_code=True))
    found = harness.run(
        *folders, spec=spec, seed=0, device="auto", dtype="auto", reporter=Reporter(), samples_folder=Path(samples)
    )
    check = found.self_check
    print(json.dumps({"fallback": found.fallback, "self_check": check.largest_difference if check else None}))


if __name__ == "__main__":
    jobs: dict[str, Callable[..., None]] = {"prune": prune, "score": score, "silence": silence, "evaluate": evaluate}
    jobs[sys.argv[1]](*sys.argv[2:])
