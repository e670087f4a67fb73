"""Print what dropping attention sublayers of a demo model costs.

    python -m hubprune.demo.measure MODEL_DIR [--drop 3] [--more 6] [--random 3] [--limit N] [--threads 1]

The rows of the table are the base, the `--drop` sublayers with the lowest scores, the `--drop` with the highest,
`--random` seeded choices of as many, the `--more` lowest, and the floor: no attention at all. Columns: perplexity on
texts from a seed of their own, the accuracy on each benchmark in percent, their mean, and the share of repeated
4-grams in greedy text. It stands apart from the rest of the package on purpose: a second opinion with few lines.
"""

import argparse
import contextlib
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubprune.demo import DATASETS, MIX, PROMPTS, TASK_NAMES, TASKS
from hubprune.demo.world import CALIBRATION_SEED, SUBSETS, texts

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

METRICS = dict(zip(TASK_NAMES, ("acc_norm", "acc_norm", "acc", "acc_norm", "acc"), strict=True))
COLUMNS = ("dropped", "layers", "perplexity", *(t.removeprefix("demo_") for t in TASK_NAMES), "mean", "repetition")
PERPLEXITY_SEED = "perplexity-1"
CALIBRATION_TEXTS = 200
PERPLEXITY_TEXTS_PER_SUBSET = 30
NEW_TOKENS = 120


@dataclass(frozen=True)
class Measured:
    """One row of the table."""

    name: str
    layers: tuple[int, ...]
    perplexity: float
    accuracies: Mapping[str, float]
    repetition: float

    def cells(self) -> list[str]:
        """Return the row as text, accuracies in percent."""
        points = [100 * value for value in self.accuracies.values()]
        shown = [f"{value:.1f}" for value in [*points, sum(points) / len(points)]]
        return [self.name, " ".join(map(str, self.layers)), f"{self.perplexity:.3f}", *shown, f"{self.repetition:.2f}"]


@contextlib.contextmanager
def without_attention(model: "PreTrainedModel", layers: Sequence[int]) -> Iterator[None]:
    """Let the attention sublayers of some layers add nothing while the context lasts."""

    def silence(_module: object, _args: object, output: tuple["torch.Tensor", object]) -> tuple["torch.Tensor", object]:
        return output[0].new_zeros(output[0].shape), output[1]

    handles = [model.model.layers[i].self_attn.register_forward_hook(silence) for i in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def encoded(tokenizer: "PreTrainedTokenizerFast", documents: Sequence[str]) -> list["torch.Tensor"]:
    """Return one tensor of token ids (1, tokens) per document."""
    import torch

    return [torch.tensor([tokenizer(document)["input_ids"]]) for document in documents]


def attention_scores(model: "PreTrainedModel", rows: Sequence["torch.Tensor"]) -> list[float]:
    """Return S = 1 - cos(x, x + attention(norm(x))) of every layer, the mean over all tokens, in fp32."""
    import torch

    layers = model.model.layers
    totals, inputs, count = [0.0] * len(layers), dict[int, torch.Tensor](), sum(row.numel() for row in rows)

    def before(index: int, args: tuple["torch.Tensor", ...]) -> None:
        inputs[index] = args[0]

    def after(index: int, output: tuple["torch.Tensor", object]) -> None:
        x, y = inputs[index].float(), inputs[index].float() + output[0].float()
        totals[index] += (1 - torch.cosine_similarity(x, y, dim=-1)).double().sum().item()

    handles = []
    for i, layer in enumerate(layers):
        handles.append(layer.input_layernorm.register_forward_pre_hook(lambda _m, args, i=i: before(i, args)))
        handles.append(layer.self_attn.register_forward_hook(lambda _m, _a, output, i=i: after(i, output)))
    with torch.inference_mode():
        for row in rows:
            model(input_ids=row, use_cache=False)
    for handle in handles:
        handle.remove()
    return [total / count for total in totals]


def perplexity(model: "PreTrainedModel", rows: Sequence["torch.Tensor"]) -> float:
    """Return exp of the mean loss per token over documents that are read one at a time."""
    import torch

    nats, count = 0.0, 0
    with torch.inference_mode():
        for row in rows:
            logits = model(input_ids=row, use_cache=False).logits[0, :-1].float()
            nats += torch.nn.functional.cross_entropy(logits, row[0, 1:], reduction="sum").item()
            count += row.numel() - 1
    return float(torch.tensor(nats / count).exp())


def continuation(model: "PreTrainedModel", row: "torch.Tensor") -> list[int]:
    """Return up to `NEW_TOKENS` greedy token ids after a prompt, without a cache."""
    import torch

    start, end = row.shape[1], model.config.eos_token_id
    with torch.inference_mode():
        while row.shape[1] < start + NEW_TOKENS:
            chosen = model(input_ids=row, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)
            if chosen.item() == end:
                break
            row = torch.cat([row, chosen], dim=1)
    return [int(i) for i in row[0, start:]]


def repetition(ids: Sequence[int]) -> float:
    """Return the share of 4-grams that repeat an earlier one."""
    grams = [tuple(ids[i : i + 4]) for i in range(len(ids) - 3)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def task_config(name: str) -> dict[str, Any]:
    """Return a task file as lm-eval takes it, its rows read from the folder here instead of from a Hub."""
    import yaml

    config: dict[str, Any] = yaml.safe_load((TASKS / f"{name}.yaml").read_text(encoding="utf-8"))
    folder = DATASETS[str(config.pop("dataset_path")).split("/")[1]]
    rows = folder / f"{config.pop('dataset_name')}.jsonl"
    return {**config, "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(rows)}}}


def accuracies(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerFast", *, limit: int | None
) -> dict[str, float]:
    """Return the accuracy on each benchmark, from lm-eval."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=64, device="cpu")
    tasks = [task_config(name) for name in TASK_NAMES]
    results = simple_evaluate(model=harness, tasks=tasks, limit=limit, bootstrap_iters=0)["results"]
    return {name: float(results[name][f"{metric},none"]) for name, metric in METRICS.items()}


def plans(scores: Sequence[float], options: argparse.Namespace) -> dict[str, tuple[int, ...]]:
    """Return which layers lose their attention in each row of the table."""
    order, k = sorted(range(len(scores)), key=scores.__getitem__), options.drop
    chosen = {"base": [], f"lowest {k}": order[:k], f"highest {k}": order[-k:]}
    for seed in range(options.random):
        chosen[f"random {k} #{seed}"] = random.Random(seed).sample(order, k)
    chosen |= {f"lowest {more}": order[:more] for more in options.more}
    chosen["no attention"] = order
    return {name: tuple(sorted(layers)) for name, layers in chosen.items()}


def calibration_texts() -> list[str]:
    """Return the calibration mix: `CALIBRATION_TEXTS` texts in the proportions of its subsets."""
    import yaml

    mix = yaml.safe_load(MIX.read_text(encoding="utf-8"))
    counts = {part["config"]: round(part["weight"] * CALIBRATION_TEXTS) for part in mix["subsets"]}
    return [text for subset, count in counts.items() for text in texts(subset, count, seed=CALIBRATION_SEED)]


def measured_rows(folder: Path, options: argparse.Namespace) -> Iterator[Measured]:
    """Yield the rows of the table one by one."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    scores = attention_scores(model, encoded(tokenizer, calibration_texts()))
    print("scores by layer:", " ".join(f"{score:.4f}" for score in scores), end="\n\n")
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|", flush=True)
    held = [t for s in SUBSETS for t in texts(s, PERPLEXITY_TEXTS_PER_SUBSET, seed=PERPLEXITY_SEED)]
    rows, prompts = encoded(tokenizer, held), PROMPTS.read_text(encoding="utf-8").splitlines()
    for name, layers in plans(scores, options).items():
        with without_attention(model, layers), torch.inference_mode():
            written = [continuation(model, row) for row in encoded(tokenizer, prompts)]
            if options.text:
                shown = [f"[{name}] {p} ->{tokenizer.decode(w)}" for p, w in zip(prompts, written, strict=True)]
                print(*shown, sep="\n", flush=True)
            reps = sum(map(repetition, written)) / len(written)
            results = accuracies(model, tokenizer, limit=options.limit)
            yield Measured(name, layers, perplexity(model, rows), results, reps)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description="Print what dropping attention sublayers of a demo model costs.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--drop", type=int, default=3)
    parser.add_argument("--more", type=int, nargs="*", default=[6])
    parser.add_argument("--random", type=int, default=3)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--text", action="store_true", help="print the greedy texts too")
    options = parser.parse_args(arguments)
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    import torch

    torch.set_num_threads(options.threads)
    for row in measured_rows(options.model, options):
        print("| " + " | ".join(row.cells()) + " |", flush=True)


if __name__ == "__main__":
    main()
