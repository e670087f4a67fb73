"""What every stage of a publish needs, by arithmetic: bytes, passes over the weights, multiplications, seconds.

Nothing is read but config.json and the size of the weights.  One token through a model takes 2 x N + 2 x L x T x d
floating-point operations: N weights that it is multiplied with, L layers whose attention is d wide, T tokens of context
(Kaplan et al., arXiv 2001.08361, section 2.1; half of T is masked).  Where one token is written after the other, all
weights come out of memory for each of them, and that takes longer.  What is larger than memory is read from disk once a
pass.  Which way a stage takes is decided as the stage itself does it.  Seconds are rough: a product of two large
matrices and one of a matrix with a vector were timed, not a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

from hubprune.core.architectures import architecture_of
from hubprune.core.artifacts import StageNeed
from hubprune.core.devices import COMPUTE_BITS
from hubprune.core.memory import kv_bytes_per_layer
from hubprune.core.recipe import Recipe
from hubprune.core.streaming import STATES_SHARE
from hubprune.evaluation.computing import CPU_SLOTS, GPU_SLOTS
from hubprune.evaluation.models import CPU_SHARE, GPU_SHARE
from hubprune.evaluation.streamed import WORK, chunk_tokens

EFFICIENCY = 0.5
"""Share of the speed of one large product that a whole model gets to."""
LIBRARIES = 500 * 10**6
"""Bytes of a process that has loaded torch and transformers, and no weights."""
WORK_BYTES = 64 * 10**6
"""Bytes of the blocks in which files are copied and hashed."""
PROMPT_TOKENS = 20
"""Of a prompt, on average."""
CHECKED = 4 * (PROMPT_TOKENS + 24) * 3
"""Tokens that a verification runs: four prompts with what is written after them, in three ways."""
PASSES = 6
"""Times that it reads the weights where they do not fit."""
SNIPPET_TOKENS = 40
GUESSED = (2000, 100, 60, 0)
TASKS: Mapping[str, tuple[int, int, int, int]] = {
    "arc_challenge": (1172, 65, 40, 0), "arc_easy": (2376, 55, 35, 0), "boolq": (3270, 150, 150, 0),
    "gsm8k": (1319, 130, 230, 256), "hellaswag": (10042, 180, 100, 0), "lambada_openai": (5153, 75, 75, 0),
    "lambada_standard": (5153, 85, 85, 0), "mmlu": (14042, 100, 100, 0), "openbookqa": (500, 31, 20, 0),
    "piqa": (1838, 60, 45, 0), "rte": (277, 85, 85, 0), "winogrande": (1267, 47, 25, 0),
}  # fmt: skip
"""Task -> documents, tokens of one with all its endings, tokens of one as an example, tokens that are written.  Counted
at 4.3 characters a token; for a task that is not named, a guess."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What arithmetic has to know of a model."""

    weight_bytes: int
    """Of the files."""
    parameters: int
    layers: int
    hidden: int
    intermediate: int
    attention: int
    """Heads x head size."""
    table: int
    """Parameters of the embedding, and of the head."""
    tables: int
    """2, or 1 where the head is tied to the embedding."""
    kv_bytes: int
    """A token takes in the caches of all layers."""

    @classmethod
    def of(cls, config: Mapping[str, Any], *, weight_bytes: int, stored: str, tied: bool) -> Shape:
        """Read the shape out of a config.json; the parameters follow from the bytes."""
        heads, hidden, layers = (config[key] for key in ("num_attention_heads", "hidden_size", "num_hidden_layers"))
        widths = config["intermediate_size"]  # one, or one a layer
        kinds = architecture_of(config).attention_kinds(config)
        return cls(
            weight_bytes=weight_bytes, parameters=weight_bytes * 8 // COMPUTE_BITS[stored], layers=layers,
            hidden=hidden, intermediate=max(widths) if isinstance(widths, list) else widths,
            attention=heads * int(config.get("head_dim") or hidden // heads),
            table=config["vocab_size"] * hidden, tables=2 - tied, kv_bytes=len(kinds) * kv_bytes_per_layer(config),
        )  # fmt: skip

    @property
    def layer_parameters(self) -> int:
        """Of one layer."""
        return max(0, self.parameters - self.tables * self.table) // self.layers

    def forward(self, tokens: int, *, context: int, head: bool = True) -> float:
        """Return the floating-point operations of tokens that read so much context each."""
        weights = self.layers * self.layer_parameters + self.table * head
        return tokens * (2.0 * weights + 2.0 * self.layers * context * self.attention)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What computes: speeds per second, and memory that is free."""

    flops: float
    memory_rate: float
    """Bytes of weights that go through a product with a vector."""
    disk_rate: float
    """Bytes that are read from disk."""
    host: int
    device: int
    """The same as `host` on a CPU."""
    gpu: bool = False
    itemsize: int
    """Bytes of a number in the dtype that is computed in."""

    def holds(self, weights: int) -> bool:
        """Tell whether weights of so many bytes may be in memory."""
        return weights <= (GPU_SHARE if self.gpu else CPU_SHARE) * self.device

    def seconds(self, flop: float, *, read: float = 0.0) -> float:
        """Return how long it takes to compute, and meanwhile to read from disk."""
        return max(flop / (EFFICIENCY * self.flops), read / self.disk_rate)


def needs(recipe: Recipe, shape: Shape, machine: Machine, *, missing: int) -> tuple[StageNeed, ...]:
    """Return what every stage of a recipe needs; `missing` bytes are to be downloaded."""
    size, n = shape.weight_bytes, shape.parameters * machine.itemsize
    fits = machine.holds(n)
    layer = shape.layer_parameters * machine.itemsize
    found = [StageNeed(stage="download", way="once", memory=WORK_BYTES, read=0, written=missing, seconds=None)]
    if recipe.needs_scores:
        found.append(_scores(recipe, shape, machine))
    hashed = 4 * size  # the base's hash, the copy read and written, its hash
    write = hashed / machine.disk_rate
    found.append(
        StageNeed(stage="write", way="tensor by tensor", memory=WORK_BYTES, read=size, written=size, seconds=write)
    )
    read, flop = (2 if fits else 2 * PASSES) * size, 2 * shape.forward(CHECKED, context=PROMPT_TOKENS)
    found.append(
        StageNeed(
            stage="verify", way="one model after the other" if fits else f"offloaded, {PASSES} passes over each",
            memory=LIBRARIES + (n if fits else 3 * layer), read=read, flop=flop,
            seconds=machine.seconds(flop, read=read),
        )
    )  # fmt: skip
    if recipe.evaluation.tasks:
        found.append(_benchmarks(recipe, shape, machine, fits=fits))
    found += [_free_text(recipe, shape, machine, fits=fits), _snippet(shape, machine, fits=fits)]
    return tuple(found)


def _scores(recipe: Recipe, shape: Shape, machine: Machine) -> StageNeed:
    mix, batch = recipe.calibration, recipe.score_batch_size
    rounds = sum(a for a in recipe.drop.amounts.values() if isinstance(a, int)) if recipe.schedule != "one-shot" else 1
    tokens = mix.num_samples * mix.max_tokens
    states = tokens * shape.hidden * machine.itemsize * (shape.layers if rounds > 1 else 1)
    in_memory = states <= STATES_SHARE * machine.host
    at_work = 8 * batch * mix.max_tokens * shape.hidden * machine.itemsize
    layers = 2 * shape.layer_parameters * machine.itemsize  # one is read while the other runs
    read = rounds * shape.weight_bytes
    flop = rounds * shape.forward(tokens, context=mix.max_tokens, head=False)
    return StageNeed(
        stage="scores", way=f"layer by layer{'' if in_memory else ', hidden states in a file'}",
        memory=LIBRARIES + layers + at_work + (states if in_memory else 0), read=read, flop=flop,
        written=0 if in_memory else states, seconds=machine.seconds(flop, read=read),
    )  # fmt: skip


def benchmark_tokens(recipe: Recipe) -> tuple[int, int]:
    """Return the tokens that the tasks of a recipe let a model read, and write."""
    spec, read, written = recipe.evaluation, 0, 0
    for task in spec.tasks:
        documents, own, example, new = TASKS.get(task, GUESSED)
        documents = min(documents, spec.limit or documents)
        read += documents * (own + spec.num_fewshot.get(task, 0) * example)
        written += documents * new
    return read, written


def _benchmarks(recipe: Recipe, shape: Shape, machine: Machine, *, fits: bool) -> StageNeed:
    """Both models: they share weights, and what comes before the first drop."""
    tokens, new = benchmark_tokens(recipe)
    n, layer = shape.parameters * machine.itemsize, shape.layer_parameters * machine.itemsize
    flop = 2 * shape.forward(tokens + new, context=PROMPT_TOKENS)
    if fits:
        seconds = machine.seconds(flop) + 2 * new / 64 * n / machine.memory_rate
        read, way, memory = shape.weight_bytes, "both in memory, weights shared", n + 2**28
    else:
        state, slots = 2 * shape.hidden * machine.itemsize, GPU_SLOTS if machine.gpu else CPU_SLOTS
        work = slots * WORK * (shape.hidden + shape.intermediate) * machine.itemsize
        chunk = chunk_tokens(
            each=state, layer=layer, cast=0, parameters=shape.parameters, slots=slots, work=work, free=machine.host,
            device_free=machine.device if machine.gpu else None,
        )  # fmt: skip
        passes = ceil(tokens / chunk)
        memory = 2 * layer + work + min(chunk, tokens) * state
        read = passes * shape.weight_bytes + new * shape.weight_bytes // 64
        way = f"layer by layer, {passes:,} pass{'es' if passes > 1 else ''} over the weights"
        seconds = machine.seconds(flop, read=read)
    return StageNeed(
        stage="benchmarks", way=f"{way}, about {tokens:,} tokens", memory=LIBRARIES + memory, read=read, flop=flop,
        seconds=seconds,
    )  # fmt: skip


def _free_text(recipe: Recipe, shape: Shape, machine: Machine, *, fits: bool) -> StageNeed:
    spec = recipe.evaluation
    rows, steps = len(spec.prompt_texts()), spec.max_new_tokens
    cache = rows * (PROMPT_TOKENS + steps) * shape.kv_bytes
    n, flop = shape.parameters * machine.itemsize, 2 * shape.forward(rows * steps, context=steps)
    if fits:
        seconds = max(machine.seconds(flop), 2 * steps * n / machine.memory_rate)
        return StageNeed(
            stage="free text", way=f"both in memory, {rows} texts at once", memory=LIBRARIES + n + cache,
            read=shape.weight_bytes, flop=flop, seconds=seconds,
        )  # fmt: skip
    read = 2 * steps * shape.weight_bytes
    return StageNeed(
        stage="free text", way="offloaded, one pass for every token", read=read, flop=flop,
        memory=LIBRARIES + cache + 3 * shape.layer_parameters * machine.itemsize,
        seconds=machine.seconds(flop, read=read),
    )  # fmt: skip


def _snippet(shape: Shape, machine: Machine, *, fits: bool) -> StageNeed:
    """The code of the card, and once more what was loaded back from the Hub, as a reader runs them."""
    size, n = shape.weight_bytes, shape.parameters * machine.itemsize
    read = 2 * size if fits else 2 * SNIPPET_TOKENS * size
    seconds = read / machine.disk_rate + 2 * SNIPPET_TOKENS * n / machine.memory_rate
    return StageNeed(
        stage="snippet, load back", way="as a reader, twice" if fits else "as a reader, offloaded", read=read,
        memory=LIBRARIES + (n if fits else 3 * shape.layer_parameters * machine.itemsize), written=size,
        flop=2 * shape.forward(SNIPPET_TOKENS, context=SNIPPET_TOKENS), seconds=seconds,
    )  # fmt: skip
