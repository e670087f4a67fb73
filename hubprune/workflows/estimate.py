"""What every stage of a publish needs, by arithmetic: bytes, passes over the weights, multiplications, seconds.

Nothing is read but config.json and the size of the weights.  One token through a model takes 2 x N + 2 x L x T x d
floating-point operations: N weights that it is multiplied with, L layers whose attention is d wide, T tokens of context
(Kaplan et al., arXiv 2001.08361, section 2.1; half of T is masked).  Where one token is written after the other, all
weights come out of memory for each of them, and that takes longer.  What is larger than memory is read from disk once a
pass.  Which way a stage takes is decided as the stage itself does it.  Seconds are rough: a product of two large
matrices and one of a matrix with a vector were timed, not a model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

from hubprune.core.amounts import count_of
from hubprune.core.artifacts import BY_LOSS, StageNeed
from hubprune.core.devices import COMPUTE_BITS
from hubprune.core.memory import kv_bytes_per_layer
from hubprune.core.recipe import Recipe
from hubprune.core.streaming import STATES_SHARE
from hubprune.core.suites import cost_of
from hubprune.evaluation.computing import CPU_SLOTS, GPU_SLOTS, TEXT_ROWS
from hubprune.evaluation.models import CPU_SHARE, GPU_SHARE
from hubprune.evaluation.streamed import WORK, chunk_tokens
from hubprune.pruning.frontier import SHARES_GONE
from hubprune.pruning.placing import FEW_TOKENS, FEWEST_TOKENS, WORK_BYTES
from hubprune.workflows.choosing import ranked_kinds

EFFICIENCY = 0.5
"""Share of the speed of one large product that a whole model gets to."""
LIBRARIES, BLOCKS = 500 * 10**6, 64 * 10**6
"""Bytes of a process that has loaded torch and transformers, and of what files are copied and hashed through."""
PROMPT_TOKENS, SNIPPET_TOKENS = 20, 40
PROMPTS = 4
"""Of a verification."""
GGUF_BITS = {"f32": 32, "f16": 16, "bf16": 16, "q8_0": 9, "q6_k": 7, "q5_k_m": 6, "q5_k_s": 6}
"""Bits of a weight, rounded up; fewer of the others."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What arithmetic has to know of a model."""

    weight_bytes: int  # of the files
    parameters: int
    layers: int
    hidden: int
    intermediate: int
    attention: int  # heads x head size
    table: int  # parameters of the embedding, and of the head
    layer: int  # parameters of one layer
    kv_bytes: int  # that a token takes in the caches of all layers

    @classmethod
    def of(cls, config: Mapping[str, Any], *, weight_bytes: int, stored: str, tied: bool) -> Shape:
        """Read the shape out of a config.json; the parameters follow from the bytes."""
        heads, hidden, layers = (config[key] for key in ("num_attention_heads", "hidden_size", "num_hidden_layers"))
        widths = config["intermediate_size"]  # one, or one a layer
        parameters, table = weight_bytes * 8 // COMPUTE_BITS[stored], config["vocab_size"] * hidden
        return cls(
            weight_bytes=weight_bytes, parameters=parameters, layers=layers, hidden=hidden, table=table,
            intermediate=max(widths) if isinstance(widths, list) else widths,
            attention=heads * int(config.get("head_dim") or hidden // heads),
            layer=max(0, parameters - (2 - tied) * table) // layers, kv_bytes=layers * kv_bytes_per_layer(config),
        )  # fmt: skip

    def forward(self, tokens: int, *, context: int, head: bool = True) -> float:
        """Return the floating-point operations of tokens that read so much context each."""
        weights = self.layers * self.layer + self.table * head
        return tokens * (2.0 * weights + 2.0 * self.layers * context * self.attention)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What computes: speeds per second, and bytes of memory that are free."""

    flops: float
    memory_rate: float  # bytes of weights that go through a product with a vector
    disk_rate: float
    host: int
    device: int  # the same as `host` on a CPU
    gpu: bool = False
    itemsize: int  # bytes of a number in the dtype that is computed in

    def seconds(self, flop: float, *, read: float = 0.0) -> float:
        """Return how long it takes to compute, and meanwhile to read from disk."""
        return max(flop / (EFFICIENCY * self.flops), read / self.disk_rate)


def needs(recipe: Recipe, shape: Shape, machine: Machine, *, missing: int) -> tuple[StageNeed, ...]:
    """Return what every stage of a recipe needs; `missing` bytes are to be downloaded."""
    size, whole = shape.weight_bytes, shape.parameters * machine.itemsize
    fits = whole <= (GPU_SHARE if machine.gpu else CPU_SHARE) * machine.device
    held = whole if fits else 3 * shape.layer * machine.itemsize

    def need(stage: str, way: str, *, memory: int, read: int, flop: float, seconds: float = 0.0) -> StageNeed:
        seconds = max(seconds, machine.seconds(flop, read=read))
        return StageNeed(stage=stage, way=way, memory=LIBRARIES + memory, read=read, flop=flop, seconds=seconds)

    scores = [_scores(recipe, shape, machine)] if recipe.needs_scores else []
    # The hash of the base, the copy read and written, its hash.
    times = {"download": (missing, None), "write": (size, 4 * size / machine.disk_rate)}
    download, write = (
        StageNeed(stage=stage, way="block by block", memory=BLOCKS, read=0, written=written, seconds=seconds)
        for stage, (written, seconds) in times.items()
    )
    # Weights are used where they are in the files, and those that memory has no room for are read in every pass.
    again = 0 if machine.gpu and fits else max(0, whole - machine.host + WORK_BYTES)
    new = FEWEST_TOKENS if again else FEW_TOKENS
    passes = 3 + 2 * new  # the base once, the result, its texts twice, and what was written
    verify = need(
        "verify", f"{passes} passes, {again / whole:.0%} from disk" if again else "one model after the other",
        memory=whole - again - (LIBRARIES if again else 0), read=2 * size + (passes - 2) * again * size // whole,
        flop=shape.forward(PROMPTS * (passes * PROMPT_TOKENS), context=PROMPT_TOKENS),
    )  # fmt: skip
    spec = recipe.evaluation
    asked = cost_of(spec.tasks, spec.num_fewshot, limit=spec.limit)
    reading, writing = (2 * shape.forward(tokens, context=PROMPT_TOKENS) for tokens in (asked.read, asked.written))
    told = f"about {asked.told}"
    if fits:
        # Read in large batches, then written one token after the other, so many texts at once.
        steps = 2 * asked.written / TEXT_ROWS * whole / machine.memory_rate
        both = [machine.seconds(reading, read=size), max(machine.seconds(writing), steps)]
        told += f", {both[1] / sum(both):.0%} of the time if so" if asked.written else ""
        benchmarks = need(
            "benchmarks", f"both in memory, weights shared, {told}", memory=whole + 2**28, read=size,
            flop=reading + writing, seconds=sum(both),
        )  # fmt: skip
    else:
        passes, at_work = _layer_by_layer(shape, machine, asked.read)
        way = f"layer by layer, {passes:,} pass{'es' if passes > 1 else ''} over the weights, {told}"
        read = (passes + asked.written // TEXT_ROWS) * size
        benchmarks = need("benchmarks", way, memory=at_work, read=read, flop=reading + writing)
    rows, steps = len(recipe.evaluation.prompt_texts()), recipe.evaluation.max_new_tokens
    text = need(
        "free text", f"both in memory, {rows} texts at once" if fits else "offloaded, one pass for every token",
        memory=held + rows * (PROMPT_TOKENS + steps) * shape.kv_bytes, read=size if fits else 2 * steps * size,
        flop=2 * shape.forward(rows * steps, context=steps), seconds=2 * steps * whole / machine.memory_rate,
    )  # fmt: skip
    back = need(
        "snippet, load back", "as a reader, twice" if fits else "as a reader, offloaded", memory=held,
        read=2 * size * (1 if fits else SNIPPET_TOKENS), flop=2 * shape.forward(SNIPPET_TOKENS, context=SNIPPET_TOKENS),
        seconds=2 * SNIPPET_TOKENS * whole / machine.memory_rate,
    ).model_copy(update={"written": size})  # fmt: skip
    measured = [benchmarks] if recipe.evaluation.tasks else []
    return (download, *scores, write, verify, *measured, text, back, *_siblings(recipe, shape, machine, measured))


def _siblings(recipe: Recipe, shape: Shape, machine: Machine, measured: Sequence[StageNeed]) -> Iterator[StageNeed]:
    """Yield what is made beside the result; it counts as large as the base."""
    mix, size = recipe.calibration, shape.weight_bytes
    if heal := recipe.heal:
        lora, tokens = heal.method == "lora", heal.steps * heal.batch_size * mix.max_tokens
        # The teacher's pass, the student's, and the way back: one more, or two where all weights have gradients.
        flop = (3 if lora else 4) * shape.forward(tokens, context=mix.max_tokens)
        weights = shape.parameters * (machine.itemsize if lora else machine.itemsize + 16)
        yield StageNeed(
            stage="heal", way=f"{heal.steps:,} steps, {tokens:,} tokens at most", memory=LIBRARIES + weights, read=size,
            written=2 * size, flop=flop, seconds=machine.seconds(flop, read=size),
        )  # fmt: skip
        for need in measured:
            yield need.model_copy(update={"stage": "benchmarks, healed"})
    if spec := recipe.quantize:
        tokens = mix.num_samples * mix.max_tokens
        columns = max(shape.hidden, shape.intermediate, shape.attention)
        # Of a layer: itself twice, second moments of the widest input, and all hidden states before and after.
        at_work = 2 * shape.layer * machine.itemsize + 2 * 4 * columns**2 + 2 * tokens * shape.hidden * machine.itemsize
        # Second moments of what enters each matrix, and the error of each column spread over those behind.
        moments = 2.0 * tokens * shape.layers * (3 * shape.hidden + shape.attention + shape.intermediate) * columns
        spread = 1.0 * shape.layers * shape.layer * columns if spec.method == "gptq" else 0.0
        flop = 3 * shape.forward(tokens, context=mix.max_tokens, head=False) + spread
        flop += moments if spec.method == "gptq" else 0.0
        written = 2 * shape.table * machine.itemsize + shape.parameters * (5 if spec.scheme == "w4a16" else 9) // 8
        stage = StageNeed(
            stage="quantize", way=f"layer by layer, {tokens:,} tokens", memory=LIBRARIES + at_work, read=3 * size,
            written=written, flop=flop, seconds=machine.seconds(flop, read=3 * size),
        )  # fmt: skip
        yield stage
        for need in measured:
            yield stage.model_copy(update={"stage": "quantize the base"})
            memory = LIBRARIES + 2 * shape.parameters * machine.itemsize
            yield need.model_copy(update={"stage": "benchmarks, quantized", "memory": memory, "way": "both quantized"})
    if recipe.gguf:
        written = sum(size * GGUF_BITS.get(outtype, 5) // 16 for outtype in recipe.gguf)
        reference = LIBRARIES + 4 * shape.parameters
        yield StageNeed(
            stage="GGUF files", way="compared in float32, with the base as a control", memory=reference, read=2 * size,
            written=written, seconds=4 * len(recipe.gguf) * size / machine.disk_rate,
        )  # fmt: skip


def _losses(recipe: Recipe, shape: Shape, machine: Machine, *, rounds: int) -> StageNeed:
    """Say what leaving out takes: about half a pass for every variant, and a head; rounds mostly begin higher up."""
    each = len(ranked_kinds(recipe)) + (len(SHARES_GONE) if "width" in recipe.drop.parts else 0)
    mix, variants = recipe.calibration, each * shape.layers
    tokens, head = mix.num_samples * mix.max_tokens, 4 * shape.table
    state = mix.max_tokens * shape.hidden * machine.itemsize * (variants + 2)  # of one document
    room = max(1, machine.host - head)
    states = min(mix.num_samples * state, max(state * recipe.score_batch_size, int(STATES_SHARE * room)))
    chunks = ceil(mix.num_samples * state / states)
    passes = 1 + variants * (shape.layers + 1) / (2 * shape.layers)
    layers = passes * shape.forward(tokens, context=mix.max_tokens, head=False)
    flop, read = rounds * (layers + 2.0 * tokens * shape.table * (variants + 2)), rounds * chunks * shape.weight_bytes
    in_file = states > room
    way = f"leave-one-out of {variants}, layer by layer{f', in {chunks} chunks' if chunks > 1 else ''}"
    return StageNeed(
        stage="scores", way=way, read=read, flop=flop, written=states if in_file else 0,
        memory=LIBRARIES + head + 2 * shape.layer * machine.itemsize + (0 if in_file else states),
        seconds=machine.seconds(flop, read=read),
    )  # fmt: skip


def _scores(recipe: Recipe, shape: Shape, machine: Machine) -> StageNeed:
    mix, rounds = recipe.calibration, 1
    if recipe.schedule == "iterative":
        rounds = sum(count_of(amount, of=shape.layers) for amount in recipe.drop.amounts.values())
    if recipe.metric in BY_LOSS:
        return _losses(recipe, shape, machine, rounds=rounds)
    tokens = mix.num_samples * mix.max_tokens
    states = tokens * shape.hidden * machine.itemsize * (shape.layers if rounds > 1 else 1)
    in_file = states > STATES_SHARE * machine.host
    at_work = 8 * recipe.score_batch_size * mix.max_tokens * shape.hidden + 2 * shape.layer  # one is read meanwhile
    read, flop = rounds * shape.weight_bytes, rounds * shape.forward(tokens, context=mix.max_tokens, head=False)
    return StageNeed(
        stage="scores", way=f"layer by layer{', hidden states in a file' if in_file else ''}", read=read, flop=flop,
        memory=LIBRARIES + at_work * machine.itemsize + (0 if in_file else states), written=states if in_file else 0,
        seconds=machine.seconds(flop, read=read),
    )  # fmt: skip


def _layer_by_layer(shape: Shape, machine: Machine, tokens: int) -> tuple[int, int]:
    """Return the passes over the weights that benchmarks of both models take, and the bytes of memory."""
    state, layer = 2 * shape.hidden * machine.itemsize, shape.layer * machine.itemsize
    slots = GPU_SLOTS if machine.gpu else CPU_SLOTS
    work = slots * WORK * (shape.hidden + shape.intermediate) * machine.itemsize
    chunk = chunk_tokens(
        each=state, layer=layer, cast=0, parameters=shape.parameters, slots=slots, work=work, free=machine.host,
        device_free=machine.device if machine.gpu else None,
    )  # fmt: skip
    return ceil(tokens / chunk), 2 * layer + work + min(chunk, tokens) * state
