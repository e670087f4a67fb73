"""From what a runtime computed and what transformers says of it to a verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from hubprune.core.artifacts import RuntimeName, RuntimeOutcome, RuntimeRun
from hubprune.runtimes.asking import RUNTIMES, Answer
from hubprune.runtimes.reference import Row

TOLERANCES: Mapping[RuntimeName, float] = {"vllm": 1e-4, "llama.cpp": 1e-3, "mlx": 1e-3}
"""Largest allowed difference of the logarithm of a token's probability, both in float32.  llama.cpp and mlx-lm sum in
another order, and llama.cpp rounds within its kernels."""
HALF_PRECISION = 0.25
"""The same where weights are quantized, so that a runtime computes in the 16 bits that config.json names: what rounding
alone made of a chosen token there was up to 0.15."""


def compare(
    name: RuntimeName,
    answer: Answer,
    rows: Sequence[Row],
    *,
    tokens: Sequence[Sequence[int]] = (),
    tolerance: float | None = None,
) -> RuntimeRun:
    """Hold a runtime's answer against what transformers says of the same texts.

    A text is equal where transformers, given the same tokens before it, would have chosen every token of it.  Where it
    would have chosen another one, that counts as a tie if it holds both for equally probable, up to the tolerance.

    Args:
        name: of the runtime.
        answer: of the runtime.
        rows: what transformers says of each of its texts.
        tokens: what transformers cuts the same texts into.
        tolerance: None for the runtime's own.
    """
    allowed = TOLERANCES[name] if tolerance is None else tolerance
    equal, tied, differences = 0, 0, list[float]()
    for text, row in zip(answer.texts, rows, strict=True):
        gaps = [
            best_logprob - logprob
            for token, best, best_logprob, logprob in zip(
                text.ids, row.best, row.best_logprobs, row.logprobs, strict=True
            )
            if token != best
        ]
        equal += not gaps
        tied += bool(gaps) and max(gaps) <= allowed
        differences += (abs(one - other) for one, other in zip(text.logprobs, row.logprobs, strict=True))
    cut = sum(tuple(one) == tuple(other) for one, other in zip(answer.tokens, tokens, strict=True)) if tokens else 0
    largest = max(differences) if all(map(math.isfinite, differences)) else None
    close = largest is not None and largest <= allowed
    same = close and equal + tied == len(rows) and cut == len(tokens)
    outcome: RuntimeOutcome = "equal" if same else "differs"
    run = RuntimeRun(
        runtime=name, outcome=outcome, detail="", versions=answer.versions, architecture=answer.architecture,
        device=answer.device, dtype=answer.dtype, texts=len(rows), equal_texts=equal, tied_texts=tied,
        new_tokens=len(answer.texts[0].ids), largest_difference=largest, tolerance=allowed, cut_texts=len(tokens),
        equally_cut_texts=cut, kv_blocks=answer.kv_blocks, kv_block_tokens=answer.kv_block_tokens,
        kv_layers=answer.kv_layers, seconds=answer.seconds,
    )  # fmt: skip
    return run.model_copy(update={"detail": detail(run)})


def detail(run: RuntimeRun) -> str:
    """Say what was seen of a run."""
    texts = f"{run.equal_texts} of {run.texts} greedy texts of {run.new_tokens} tokens equal"
    ties = f", {run.tied_texts} up to a tie" if run.tied_texts else ""
    close = "a probability is no number"
    if run.largest_difference is not None:
        close = f"log-probabilities within {run.largest_difference:.1e} ({run.tolerance:g} allowed)"
    cut = f", {run.equally_cut_texts} of {run.cut_texts} texts cut into the same tokens" if run.cut_texts else ""
    layers = f", KV cache in {run.kv_layers} layers" if run.kv_layers is not None else ""
    blocks = f" and {run.kv_blocks:,} blocks of {run.kv_block_tokens}" if run.kv_blocks and run.kv_block_tokens else ""
    return f"{run.label}, {run.architecture}, {run.dtype}: {texts}{ties}, {close}{cut}{layers}{blocks}"


def refused(name: RuntimeName, words: str, *, versions: Mapping[str, str] | None = None) -> RuntimeRun:
    """Say in its own words that a runtime does not take a checkpoint."""
    told = f"{RUNTIMES[name].title} does not run it: {words}"
    if name == "vllm" and ("head_dim" in words or "head size" in words.lower()):
        told += f" ({HEAD_SIZES})"
    return RuntimeRun(runtime=name, outcome="refused", detail=told, versions=dict(versions or {}))


HEAD_SIZES = "vLLM's attention for CPUs takes heads of 32, 64, 80, 96, 112, 128, 160, 192, 224, 256 and 512 numbers"
