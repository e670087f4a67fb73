"""Fixed artifacts of siblings: a healed and a quantized one that were measured, and two GGUF files."""

from __future__ import annotations

import made

from hubprune.core.artifacts import (
    CameBack,
    CurvePoint,
    Divergence,
    Estimate,
    GgufExport,
    HealedBenchmarks,
    HealingRecord,
    HeldOut,
    Parity,
    ParityFigures,
    PrunedCheckpoint,
    QuantizationRecord,
    QuantizedBenchmarks,
    QuantizedCheckpoint,
    Recovered,
    RepoFile,
    SiblingLink,
    SiblingReport,
    SnippetRun,
    Together,
    TrainedElsewhere,
)
from hubprune.core.specs import HealSpec, QuantizationSpec

HEALED, QUANTIZED, GGUF = (f"{made.REPO_ID}{suffix}" for suffix in ("-healed", "-W4A16", "-GGUF"))
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


PRUNED = (0.7104, 0.6189, 5.11)
"""What `made.benchmarks` has of the pruned model."""


def compared(before, after, *, arc, lambada):
    """Two models' accuracies and perplexity; of each accuracy how many documents were lost and won."""
    rows = []
    for row, was, now, seen in zip(made.benchmarks().tasks, before, after, (arc, lambada, None), strict=True):
        if seen:
            paired = made.right_or_wrong(*seen, points=100 * (now - was), error=1.0)
        else:
            ratio = Estimate(value=now / was, standard_error=0.02, low=now / was - 0.03, high=now / was + 0.03)
            paired = row.paired.model_copy(update={"ratio": ratio, "p_value": 1e-9 if now > 1.05 * was else 0.3})
        base, pruned = row.base.model_copy(update={"value": was}), row.pruned.model_copy(update={"value": now})
        rows.append(row.model_copy(update={"base": base, "pruned": pruned, "paired": paired}))
    return made.benchmarks(tasks=tuple(rows))


def four(*, excess=(0.4, -1.2, 2.0)):
    base, quantized, both = (0.7180, 0.6969, 3.93), (0.7140, 0.6889, 4.0), (0.7080, 0.6173, 5.17)
    rows = [
        Together(
            name="arc_easy", metric="acc_norm", dropped=points(-0.76, -2.96, 1.44), quantized=points(-0.4, -1.9, 1.1),
            both=points(-1.0, -3.0, 1.0), excess=points(0.16, -1.0, 1.32),
        ),
        Together(
            name="mean", metric=None, dropped=points(-4.28, -6.22, -2.34), quantized=points(-0.6, -1.7, 0.5),
            both=points(-4.48, -5.89, -3.07), excess=points(*excess),
        ),
    ]  # fmt: skip
    return QuantizedBenchmarks(
        dropped=made.benchmarks(), control=compared(base, quantized, arc=(12, 10), lambada=(14, 10)),
        both=compared(base, both, arc=(15, 10), lambada=(55, 15)),
        step=compared(PRUNED, both, arc=(9, 8), lambada=(11, 10)), together=tuple(rows),
    )  # fmt: skip


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


def healing(**changes):
    looks = [
        (0, None, (0.2403, 11.02, 0.8241)),
        (100, 0.0712, (0.0518, 9.61, 0.9012)),
        (200, 0.0402, (0.0411, 9.52, 0.9130)),
    ]
    curve = [
        CurvePoint(step=step, loss=loss, held_out=HeldOut(kl=seen[0], perplexity=seen[1], top1=seen[2]))
        for step, loss, seen in looks
    ]
    values = {
        "method": "lora", "rank": 16, "loss": "kl", "learning_rate": 0.00058, "batch_size": 8, "steps": 200,
        "planned_steps": 200, "tokens": 684_936, "seed": 0, "data": made.scores().calibration, "held_out_documents": 64,
        "held_out_tokens": 27_654, "left_out": 3, "checked_against": ("arc_easy", "lambada_openai"),
        "base_perplexity": 9.12, "curve": tuple(curve), "recovered": Recovered(value=0.7744, low=0.741, high=0.803),
        "trained_parameters": 24_313_856, "shares_weights": True, "seconds": 754.0, "dtype": "bfloat16",
        "device": "cuda:0", "versions": {"accelerate": "1.15.0", "peft": "0.21.2", "torch": "2.13.0"},
    }  # fmt: skip
    return HealingRecord(**{**values, **changes})


def three(**changes):
    base, healed = (0.7180, 0.6969, 3.93), (0.7140, 0.6669, 4.3)
    rows = (
        CameBack(
            task="arc_easy", metric="acc_norm", lost=points(0.76, -1.44, 2.96), share=None,
        ),
        CameBack(
            task="lambada_openai", metric="acc", lost=points(7.8, 4.6, 11.0),
            share=Estimate(value=0.615, low=0.42, high=0.8),
        ),
    )  # fmt: skip
    values = {
        "dropped": made.benchmarks(), "both": compared(base, healed, arc=(12, 10), lambada=(24, 9)),
        "step": compared(PRUNED, healed, arc=(10, 12), lambada=(11, 35)), "came_back": rows,
    }  # fmt: skip
    return HealedBenchmarks(**{**values, **changes})


def healed(files=None):
    files = files or made.checkpoint().files
    return PrunedCheckpoint(written=made.checkpoint(files=files), verification=made.verification())


def elsewhere():
    return {
        "healing": None, "recipe": made.recipe().model_dump(mode="json", exclude_none=True),
        "elsewhere": TrainedElsewhere(dtypes=("F32",), changed=180, tensors=226),
    }  # fmt: skip


def report(kind="quantized", **changes):
    code = SnippetRun(repo_id="x", revision=None, code="print(1)", output="1", transformers="5.24.0")
    values = {
        "kind": kind, "repo_id": {"healed": HEALED, "quantized": QUANTIZED, "gguf": GGUF}[kind], "endpoint": "https://huggingface.co",
        "pruned": made.REPO_ID, "pruned_tag": "hubprune-01234567", "base": made.base(), "plan": made.plan(),
        "checkpoint": made.checkpoint(), "snippet": code, "environment": made.environment(),
        "seconds": {"snippet": 81.0},
    }  # fmt: skip
    if kind == "healed":
        recipe = made.recipe(heal=HealSpec())
        values |= {"healed": healed(), "healing": healing(), "recovered": three(), "beside": LINKS}
        values |= {"generation": made.generation(), "pruned_repetition": made.generation().repetition}
    elif kind == "quantized":
        recipe = made.recipe(quantize=QuantizationSpec())
        values |= {"quantized": quantized(), "control": record(), "benchmarks": four(), "beside": LINKS[1:]}
    else:
        recipe = made.recipe(gguf=("q8_0", "q4_k_m"))
        carried = (RepoFile(path="LICENSE.txt", size=5, sha256="a" * 64),)
        values |= {"exports": (export(), export("q4_k_m")), "carried": carried, "beside": LINKS[:1]}
    return SiblingReport(**{**values, "recipe": recipe.model_dump(mode="json", exclude_none=True), **changes})
