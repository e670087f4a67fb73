"""Fixed artifacts of siblings: a quantized one that was measured, and two GGUF files."""

from __future__ import annotations

import made

from hubprune.core.artifacts import (
    Divergence,
    Estimate,
    GgufExport,
    Parity,
    ParityFigures,
    QuantizationRecord,
    QuantizedBenchmarks,
    QuantizedCheckpoint,
    RepoFile,
    SiblingLink,
    SiblingReport,
    SnippetRun,
    Together,
)
from hubprune.core.specs import QuantizationSpec

QUANTIZED, GGUF = f"{made.REPO_ID}-W4A16", f"{made.REPO_ID}-GGUF"
LINKS = (
    SiblingLink(repo_id=QUANTIZED, told="4-bit weights (W4A16, groups of 128), GPTQ"),
    SiblingLink(repo_id=GGUF, told="GGUF files for llama.cpp (q8_0 and q4_k_m)"),
)


def record(**changes):
    values = {
        "source": made.REPO_ID, "source_commit": None, "scheme": "w4a16", "group_size": 128, "method": "gptq",
        "ignored": ("lm_head",), "matrices": 187, "quantized_parameters": 2_743_000_000, "bits_per_weight": 4.125,
        "source_bytes": 6_274_000_000, "weight_bytes": 2_202_000_000, "calibration": made.scores().calibration,
        "divergence": Divergence(
            kl=0.0312, kl_error=0.0011, top1=0.9123, perplexity=9.12, quantized_perplexity=9.31, documents=64,
            tokens=28_000,
        ),
        "compressed_tensors": "0.20.0",
    }  # fmt: skip
    return QuantizationRecord(**{**values, **changes})


def quantized(files=None):
    files = files or made.checkpoint().files
    written = made.checkpoint(files=files, weight_bytes=2_202_000_000, dtypes=("BF16", "I32"))
    return QuantizedCheckpoint(written=written, record=record(), verification=made.verification())


def points(value, low, high):
    return Estimate(value=value, standard_error=1.0, low=low, high=high)


def four(*, excess=(0.4, -1.2, 2.0)):
    measured = made.benchmarks()
    rows = [
        Together(
            name="arc_easy", metric="acc", dropped=points(-0.8, -3.0, 1.4), quantized=points(-0.4, -1.9, 1.1),
            both=points(-1.0, -3.4, 1.4), excess=points(0.2, -1.0, 1.4),
        ),
        Together(
            name="mean", metric=None, dropped=points(-4.3, -6.2, -2.3), quantized=points(-0.6, -1.7, 0.5),
            both=points(-4.5, -6.6, -2.4), excess=points(*excess),
        ),
    ]  # fmt: skip
    return QuantizedBenchmarks(dropped=measured, control=measured, both=measured, step=measured, together=tuple(rows))


def parity():
    seen = ParityFigures(
        positions=182, agreed=177, undecided=0, max_logit_difference=0.66, relative_difference=0.0224, greedy_texts=4,
        equal_greedy_texts=3, tokenized_texts=12, equal_tokenized_texts=12,
    )  # fmt: skip
    return Parity(
        model=seen, control=seen, without_control=None, rule="logits within 10% of their spread", failures=(),
        transformers="5.24.0", llama_cpp_python="0.3.36",
    )  # fmt: skip


def export(outtype="q8_0", *, file=None, size=3_334_000_000, sha256="f" * 64):
    return GgufExport(
        file=file or f"Llama-3.2-3B-attn-drop-3-{outtype.upper()}.gguf", size=size, sha256=sha256, architecture="deci",
        outtype=outtype, layers=8, layers_without_attention=(4, 5, 6), layers_without_mlp=(), context_length=131_072,
        tokenizer="gpt2, llama-bpe", notes=(), parity=parity(), not_verified=None,
    )  # fmt: skip


def report(kind="quantized", **changes):
    code = SnippetRun(repo_id="x", revision=None, code="print(1)", output="1", transformers="5.24.0")
    values = {
        "kind": kind, "repo_id": QUANTIZED if kind == "quantized" else GGUF, "endpoint": "https://huggingface.co",
        "pruned": made.REPO_ID, "pruned_tag": "hubprune-01234567", "base": made.base(), "plan": made.plan(),
        "checkpoint": made.checkpoint(), "snippet": code, "environment": made.environment(), "seconds": {"four": 81.0},
    }  # fmt: skip
    if kind == "quantized":
        recipe = made.recipe(quantize=QuantizationSpec())
        values |= {"quantized": quantized(), "control": record(), "benchmarks": four(), "beside": LINKS[1:]}
    else:
        recipe = made.recipe(gguf=("q8_0", "q4_k_m"))
        carried = (RepoFile(path="LICENSE.txt", size=5, sha256="a" * 64),)
        values |= {"exports": (export(), export("q4_k_m")), "carried": carried, "beside": LINKS[:1]}
    return SiblingReport(**{**values, "recipe": recipe.model_dump(mode="json", exclude_none=True), **changes})
