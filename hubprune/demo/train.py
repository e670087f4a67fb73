"""Train a tiny base model from scratch, with its tokenizer, on text of the made-up world.

    python -m hubprune.demo.train --arch llama --seed 1 --out DIR
    python -m hubprune.demo.train --arch mistral --out DIR

made the two folders in `models`. Each took about 460 CPU seconds on one thread (torch 2.13, transformers 5.23), for
2200 steps of 2048 tokens. Everything is seeded: on one machine a second run gives the same losses. Another machine or
another version of torch sums in another order, so the weights will not be equal bit by bit, and the scores of such
small models then differ by some points.

What made copying appear within minutes: a first stage of drills (lists and shuffled pairs of words, said again and
again), one token per word, tied embeddings without weight decay, and many short texts that repeat their names.
Runs that lacked most of these learnt the facts and copied no name.
"""

import argparse
import json
import random
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubprune.demo.world import SUBSETS, World

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer
    from transformers import PreTrainedModel

BOS, EOS = "<s>", "</s>"
BOS_ID, EOS_ID = 0, 1
TOKENIZER_SEED = "tokenizer-0"
SHARES = {"stories": 5, "web_samples_v2": 7, "web_samples_v1": 3, "wikihow": 3, "openstax": 1, "stanford": 3}
"""Documents per subset, in proportion: more of the texts that cannot be written without looking back."""
LOG_EVERY = 50


@dataclass(frozen=True)
class Stage:
    """One part of the training."""

    until: float
    """Share of all steps at which it ends."""
    row_tokens: int
    """Tokens per row of a batch."""
    drill_share: float
    """Share of the documents that are drills in copying."""


STAGES = (Stage(0.15, 128, 0.8), Stage(0.75, 128, 0.1), Stage(1.0, 256, 0.0))


@dataclass(frozen=True)
class Settings:
    """Everything that decides the weights, apart from the world itself and `STAGES`."""

    arch: str = "llama"
    seed: int = 0
    steps: int = 2200
    batch_tokens: int = 2048
    learning_rate: float = 4e-3
    warmup_steps: int = 60
    weight_decay: float = 0.1
    """Of the matrices. Embeddings are spared: those of names would shrink into one another before they are copied."""
    hidden_size: int = 64
    intermediate_size: int = 128
    num_layers: int = 10
    num_heads: int = 4
    num_kv_heads: int = 2
    sliding_window: int = 64
    """Tokens that Mistral's attention sees; Llama sees them all."""
    max_positions: int = 512
    init_std: float = 0.05


# the tokenizer --------------------------------------------------------------------------------------------------------


def vocabulary(seed: str) -> list[str]:
    """Return the tokens by id: two marks, the 256 bytes, then every word of the world, the most frequent first."""
    from tokenizers import pre_tokenizers

    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False)
    world = World(seed)
    texts = [world.text(subset) for subset in SUBSETS for _ in range(1500)] + [world.drill() for _ in range(200)]
    words = Counter(word for text in texts for word, _ in splitter.pre_tokenize_str(text))
    longer = sorted((word for word in words if len(word) > 1), key=lambda word: (-words[word], word))
    return [BOS, EOS, *sorted(pre_tokenizers.ByteLevel.alphabet()), *longer]


def build_tokenizer(tokens: Sequence[str]) -> "Tokenizer":
    """Return a tokenizer in which a word of the world is one token, and any other text falls to its UTF-8 bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    ids = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([BOS, EOS])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, BOS_ID)]
    )
    return tokenizer


# the batches ----------------------------------------------------------------------------------------------------------


def documents(stage: Stage, seed: str) -> Iterator[str]:
    """Yield new documents without end, the subsets in the proportions of `SHARES`."""
    world, chance = World(f"{seed}-text"), random.Random(f"{seed}-order")
    subsets, weights = list(SHARES), list(SHARES.values())
    while True:
        if chance.random() < stage.drill_share:
            yield world.drill()
        else:
            yield world.text(chance.choices(subsets, weights)[0])


def packed_rows(stage: Stage, tokenizer: "Tokenizer", seed: str) -> Iterator[list[int]]:
    """Yield rows of row_tokens + 1 ids, each of which starts with a document; what does not fit is cut off."""
    row: list[int] = []
    for text in documents(stage, seed):
        row += [*tokenizer.encode(text).ids, EOS_ID]
        if len(row) > stage.row_tokens:
            yield row[: stage.row_tokens + 1]
            row = []


def batches(settings: Settings, tokenizer: "Tokenizer") -> Iterator["torch.Tensor"]:
    """Yield one batch of token ids (rows, row_tokens + 1) per step."""
    import torch

    start = 0
    for number, stage in enumerate(STAGES):
        end = round(stage.until * settings.steps)
        rows = packed_rows(stage, tokenizer, f"train-{settings.seed}-{number}")
        for _ in range(start, end):
            yield torch.tensor([next(rows) for _ in range(settings.batch_tokens // stage.row_tokens)])
        start = end


# the model ------------------------------------------------------------------------------------------------------------


def model_config(settings: Settings, *, vocab_size: int) -> dict[str, Any]:
    """Return config.json in the style that transformers 4 and 5 both read."""
    own: dict[str, Any] = {"sliding_window": settings.sliding_window}
    if settings.arch == "llama":
        own = {"attention_bias": False, "mlp_bias": False, "rope_scaling": None}
    return own | {
        "architectures": ["LlamaForCausalLM" if settings.arch == "llama" else "MistralForCausalLM"],
        "model_type": settings.arch,
        "vocab_size": vocab_size, "hidden_size": settings.hidden_size, "intermediate_size": settings.intermediate_size,
        "num_hidden_layers": settings.num_layers, "num_attention_heads": settings.num_heads,
        "num_key_value_heads": settings.num_kv_heads, "head_dim": settings.hidden_size // settings.num_heads,
        "hidden_act": "silu", "max_position_embeddings": settings.max_positions, "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0, "tie_word_embeddings": True, "initializer_range": settings.init_std,
        "attention_dropout": 0.0, "bos_token_id": BOS_ID, "eos_token_id": EOS_ID, "pad_token_id": EOS_ID,
        "use_cache": True, "torch_dtype": "float32",
    }  # fmt: skip


def build_model(settings: Settings, *, vocab_size: int) -> "PreTrainedModel":
    """Return an untrained model."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(settings.seed)
    config = AutoConfig.for_model(**model_config(settings, vocab_size=vocab_size))
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model


def build_optimizer(model: "PreTrainedModel", settings: Settings) -> "torch.optim.Optimizer":
    """Return AdamW that decays the matrices of the layers only."""
    import torch

    named = list(model.named_parameters())
    decayed = [p for name, p in named if p.dim() == 2 and "embed" not in name]
    spared = [p for name, p in named if p.dim() != 2 or "embed" in name]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": spared, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.98), fused=True)


def learning_rate(step: int, settings: Settings) -> float:
    """Return the learning rate of a step, counted from 1: a linear rise, then a linear fall to zero."""
    rise = step / settings.warmup_steps
    fall = (settings.steps + 1 - step) / (settings.steps + 1 - settings.warmup_steps)
    return settings.learning_rate * min(rise, fall)


def train(model: "PreTrainedModel", stream: Iterator["torch.Tensor"], settings: Settings) -> None:
    """Take one step per batch of the stream and print the mean loss now and then, in nats per token."""
    import torch

    optimizer, recent, began = build_optimizer(model, settings), list[float](), time.process_time()
    for step, batch in enumerate(stream, start=1):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, settings)
        logits = model(input_ids=batch[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        recent.append(loss.item())
        if len(recent) == LOG_EVERY:
            seconds = time.process_time() - began
            print(f"step {step}  loss {sum(recent) / LOG_EVERY:.4f}  {seconds:.0f} CPU s", flush=True)
            recent.clear()


# the folder -----------------------------------------------------------------------------------------------------------

CARD = """---
license: apache-2.0
language:
  - en
library_name: transformers
pipeline_tag: text-generation
---

# {title}

A {family} model with {layers} layers, hidden size {hidden} and {parameters:,} parameters, trained from scratch in
minutes on one CPU core. It knows one thing: short English texts about a small made-up world, written by a seeded
program. It exists so that pruning, benchmarks and publishing can be tried and tested without a download; it is of no
use for anything else.

- Text, tokenizer and weights are made by `python -m hubprune.demo.train --arch {arch} --seed {seed} --out DIR`.
- A word of the world is one token; any other text is read byte by byte, and was never trained on.
- Attention: {attention}. Rows of up to 256 tokens were trained on.
"""


def card(model: "PreTrainedModel", settings: Settings) -> str:
    """Return the README.md of the model folder."""
    window = f"a sliding window of {settings.sliding_window} tokens"
    return CARD.format(
        title=f"tiny-{settings.arch}", family=settings.arch.capitalize(), arch=settings.arch, seed=settings.seed,
        layers=settings.num_layers, hidden=settings.hidden_size, parameters=model.num_parameters(),
        attention="full causal" if settings.arch == "llama" else window,
    )  # fmt: skip


def json_files(settings: Settings, *, vocab_size: int) -> Mapping[str, Mapping[str, Any]]:
    """Return the content of the small JSON files of a model folder by name."""
    marks = {"bos_token": BOS, "eos_token": EOS, "pad_token": EOS}
    ids = {"bos_token_id": BOS_ID, "eos_token_id": EOS_ID, "pad_token_id": EOS_ID}
    return {
        "config.json": model_config(settings, vocab_size=vocab_size),
        "generation_config.json": {**ids, "do_sample": False},
        "special_tokens_map.json": marks,
        "tokenizer_config.json": {
            **marks, "clean_up_tokenization_spaces": False, "model_max_length": settings.max_positions,
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    }  # fmt: skip


def save(model: "PreTrainedModel", tokenizer: "Tokenizer", out: Path, settings: Settings) -> None:
    """Write a folder that transformers 4 and 5 both load."""
    from safetensors.torch import save

    out.mkdir(parents=True, exist_ok=True)
    for name, content in json_files(settings, vocab_size=tokenizer.get_vocab_size()).items():
        (out / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    weights = {name: w.contiguous() for name, w in model.state_dict().items() if name != "lm_head.weight"}
    (out / "model.safetensors").write_bytes(save(weights, metadata={"format": "pt"}))
    tokenizer.save(str(out / "tokenizer.json"))
    (out / "README.md").write_text(card(model, settings), encoding="utf-8")


def settings_from(arguments: Sequence[str] | None) -> tuple[Settings, Path]:
    """Return the settings and the folder that a command line asks for."""
    parser = argparse.ArgumentParser(description="Train a tiny base model on text of the made-up world.")
    parser.add_argument("--arch", choices=("llama", "mistral"), default="llama")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=Settings.steps)
    parser.add_argument("--seed", type=int, default=Settings.seed)
    given = parser.parse_args(arguments)
    return Settings(arch=given.arch, steps=given.steps, seed=given.seed), given.out


def main(arguments: Sequence[str] | None = None) -> None:
    """Train on one thread and write the model folder."""
    import torch

    settings, out = settings_from(arguments)
    torch.set_num_threads(1)
    tokenizer = build_tokenizer(vocabulary(TOKENIZER_SEED))
    model = build_model(settings, vocab_size=tokenizer.get_vocab_size())
    print(f"{model.num_parameters():,} parameters, {tokenizer.get_vocab_size()} tokens", flush=True)
    train(model, batches(settings, tokenizer), settings)
    save(model, tokenizer, out, settings)


if __name__ == "__main__":
    main()
