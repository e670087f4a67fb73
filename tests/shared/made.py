"""Fixed artifacts of a small publish: every figure in the golden cards comes from here."""

from __future__ import annotations

from hubprune.cards.card import Pictures, context_of
from hubprune.cards.manifest import checkpoint_tag
from hubprune.cards.overview import Snippet
from hubprune.core.artifacts import (
    BaseCard,
    BaseCheckpoint,
    BenchmarkChange,
    BenchmarkComparison,
    CalibrationRecord,
    CalibrationSource,
    Check,
    DroppedSublayer,
    DropPlan,
    Environment,
    Estimate,
    ImportanceScores,
    Interval,
    KvCacheMeasured,
    LayerScores,
    Margin,
    MetricValue,
    ModelText,
    ModelTexts,
    PairedComparison,
    PeakMemory,
    PublishReport,
    RepoFile,
    RuntimeComparison,
    RuntimeRun,
    SelfCheck,
    SnippetRun,
    SpeedMeasured,
    SpeedReport,
    SpeedRow,
    TaskComparison,
    Verification,
    WrittenCheckpoint,
)
from hubprune.core.recipe import BaseModelSpec, CalibrationMix, CalibrationSubset, DropSpec, EvaluationSpec, Recipe
from hubprune.evaluation import compare
from hubprune.evaluation.repetition import pair_texts

BASE_COMMIT = "13afe5124825b4f3751f836b40dafda64c1ed062"
DATA_COMMIT = "1234567890123456789012345678901234567890"
ATTN = (0.278848, 0.110186, 0.007285, 0.021, 0.006152, 0.007109, 0.006841, 0.052)


def recipe(**changes):
    values = {
        "base": BaseModelSpec(repo_id="meta-llama/Llama-3.2-3B"),
        "drop": DropSpec(attn_drop=3, protect=(0, 1)),
        "calibration": CalibrationMix(
            name="cosmopedia",
            subsets=(
                CalibrationSubset(dataset="HuggingFaceTB/cosmopedia", config="stories", weight=0.3),
                CalibrationSubset(dataset="HuggingFaceTB/cosmopedia", config="wikihow", weight=0.7),
            ),
        ),
        "evaluation": EvaluationSpec(tasks=("arc_easy", "lambada_openai"), limit=500),
    }
    return Recipe(**{**values, **changes})


def base(**changes):
    values = {
        "name": "meta-llama/Llama-3.2-3B",
        "commit": BASE_COMMIT,
        "config": {"model_type": "llama", "num_hidden_layers": 8, "dtype": "bfloat16"},
        "files": (RepoFile(path="config.json", size=2, git_oid="0" * 40),),
        "card": BaseCard(language=("en", "no"), license="llama3.2"),
    }
    return BaseCheckpoint(**{**values, **changes})


def scores():
    block = tuple(round(2 * v, 6) for v in ATTN)
    record = CalibrationRecord(
        mix="cosmopedia",
        sources=(
            CalibrationSource(
                dataset="HuggingFaceTB/cosmopedia", config="stories", split="train", commit=DATA_COMMIT,
                weight=0.3, documents=120, tokens=51_234,
            ),
            CalibrationSource(
                dataset="HuggingFaceTB/cosmopedia", config="wikihow", split="train", commit=DATA_COMMIT,
                weight=0.7, documents=280, tokens=120_000,
            ),
        ),
        max_tokens=512, seed=0, shuffle_buffer=1000, token_sha256="ab" * 32,
    )  # fmt: skip
    mean = ImportanceScores(attn=ATTN, mlp=tuple(reversed(ATTN)), block=block)
    error = ImportanceScores(attn=(0.0001,) * 8, mlp=(0.0002,) * 8, block=(0.0003,) * 8)
    return LayerScores(
        aggregation="document", dtype="bfloat16", device="cpu", mean=mean, standard_error=error,
        by_source=(mean, mean), calibration=record,
    )  # fmt: skip


def plan(**changes):
    dropped = tuple(DroppedSublayer(kind="attn", layer=n, score=ATTN[n], rank=r) for r, n in enumerate((4, 6, 5), 1))
    margin = Margin(last_dropped=5, first_kept=2, difference=0.000176, standard_error=0.0001)
    values = {
        "selected_by": "score",
        "num_hidden_layers": 8,
        "dropped": dropped,
        "protected": (0, 1),
        "margins": (margin,),
    }
    return DropPlan(**{**values, **changes})


def plan_by_hand():
    dropped = (DroppedSublayer(kind="attn", layer=3), DroppedSublayer(kind="attn", layer=5))
    return plan(selected_by="hand", dropped=dropped, protected=(), margins=())


def checkpoint(**changes):
    values = {
        "files": (
            RepoFile(path="config.json", size=900, sha256="c" * 64),
            RepoFile(path="model.safetensors", size=6_276_321_104, sha256="d" * 64),
            RepoFile(path="modeling_pruned_llama.py", size=5000, sha256="e" * 64),
        ),
        "parameters": 3_137_000_000,
        "base_parameters": 3_212_749_824,
        "weight_bytes": 6_274_000_000,
        "base_weight_bytes": 6_425_499_648,
        "dtypes": ("BF16",),
        "kv_bytes_per_token": 20_480,
        "base_kv_bytes_per_token": 32_768,
    }
    return WrittenCheckpoint(**{**values, **changes})


def verification():
    checks = (
        Check(name="logits", passed=True, detail="largest difference 1.2e-06 (at most 1e-04)"),
        Check(name="cache", passed=True, detail="greedy text with cache = without cache"),
    )
    return Verification(
        checks=checks, max_logit_difference=1.2e-6, parameters=3_137_000_000, cache_bytes=20_480 * 16,
        cache_tokens=16, transformers="5.23.0",
    )  # fmt: skip


def in_runtimes():
    """The same, run in two other runtimes beside one that does not take it."""
    values = {"runtime": "vllm", "outcome": "equal", "detail": "seen", "texts": 4, "equal_texts": 3, "tied_texts": 1,
              "versions": {"vllm": "0.32.0", "transformers": "5.19.0"}, "architecture": "nemotron_nas.DeciLM",
              "new_tokens": 24, "largest_difference": 2.3e-5, "dtype": "float32", "kv_layers": 5,
              "command": f"vllm serve {REPO_ID} --trust-remote-code"}  # fmt: skip
    others = {"runtime": "llama.cpp", "versions": {"llama-cpp-python": "0.3.36"}, "kv_layers": None, "command": None}
    runs = (
        RuntimeRun(**values),
        RuntimeRun(**{**values, **others, "equal_texts": 4, "tied_texts": 0, "architecture": "deci"}),
        RuntimeRun(runtime="mlx", outcome="refused", detail="it said no", versions={"mlx-lm": "0.32.2"}),
    )
    compared = RuntimeComparison(layout="nemotron-nas", dtype="float32", transformers="5.23.0", runs=runs)
    return verification().model_copy(update={"in_runtimes": compared})


def task(
    name, metric, base, pruned, *, better="higher", dataset="allenai/ai2_arc", config="ARC-Easy", chance=None,
    paired=None,
):  # fmt: skip
    return TaskComparison(
        task=name, metric=metric, higher_is_better=better == "higher", documents=500, documents_available=2376,
        num_fewshot=0, version="1.0", dataset=dataset, dataset_config=config, dataset_commit=DATA_COMMIT, split="test",
        base=MetricValue(value=base[0], standard_error=base[1]),
        pruned=MetricValue(value=pruned[0], standard_error=pruned[1]), chance=chance, paired=paired,
    )  # fmt: skip


def right_or_wrong(lost, won, *, points, error, at_chance=()):
    """What the documents say of an accuracy that changed by so many points, with an interval of two errors."""
    ends = {"low": (points - 2 * error) / 100, "high": (points + 2 * error) / 100}
    return PairedComparison(
        difference=Estimate(value=points / 100, standard_error=error / 100, **ends), lost=lost, won=won, test="mcnemar",
        p_value=compare.mcnemar(lost, won), at_chance=at_chance,
    )  # fmt: skip


def benchmarks(**changes):
    lambada = {"dataset": "EleutherAI/lambada_openai", "config": "default"}
    small, large = right_or_wrong(17, 13, points=-0.76, error=1.1), right_or_wrong(54, 15, points=-7.80, error=1.6)
    ratio = PairedComparison(
        ratio=Estimate(value=5.11 / 3.93, standard_error=0.02, low=1.2610, high=1.3408), test="t", p_value=2.5e-31
    )
    tasks = (
        task("arc_easy", "acc_norm", (0.7180, 0.0092), (0.7104, 0.0093), chance=0.25, paired=small),
        task("lambada_openai", "acc", (0.6969, 0.0064), (0.6189, 0.0068), paired=large, **lambada),
        task("lambada_openai", "perplexity", (3.93, 0.08), (5.11, 0.12), better="lower", paired=ratio, **lambada),
    )
    values = {
        "tasks": tasks, "limit": 500, "backend": "shared", "batch_size": None,
        "self_check": SelfCheck(requests=8, largest_difference=0.031, tolerance=0.5),
         "dtype": "bfloat16", "device": "cpu", "seed": 0,
        "lm_eval": "0.4.13", "seconds": 230.75, **changes,
    }  # fmt: skip
    judged = compare.judge(values["tasks"])
    return BenchmarkComparison(**{**values, "tasks": judged, "mean_change": compare.mean_change(judged)})


def generation():
    loop = "France. " + "It is the most visited city in the world. " * 4
    texts = (
        ("Paris is the capital of", " France and its largest city.", " France, on the Seine."),
        ("The recipe needs ```flour``` and", " | butter | {{ 7 * 7 }}", loop),
        ("Once upon a time", " there was a king.", " there was a queen."),
    )
    prompts, base, pruned = zip(*texts, strict=True)
    return pair_texts(prompts, written(base), written(pruned))


def written(texts):
    """What a model wrote whose tokens are words."""
    words = sorted({word for text in texts for word in text.split()})
    return ModelTexts(
        texts=tuple(
            ModelText(text=text, tokens=len(text.split()), token_ids=tuple(map(words.index, text.split())))
            for text in texts
        ),
        batches=(tuple(range(len(texts))),), max_new_tokens=64, dtype="bfloat16", device="cpu",
    )  # fmt: skip


def snippet():
    tag = checkpoint_tag(checkpoint())
    return SnippetRun(
        repo_id=REPO_ID, revision=tag, transformers="5.23.0",
        code=Snippet(repo_id=REPO_ID, revision=tag, custom_code=True).code(),
        output="Paris is the capital of France, on the Seine.\n\n```\nIt is | the most visited",
    )  # fmt: skip


def environment():
    return Environment(
        hubprune="0.1.0", python="3.11.9", platform="Linux x86_64", machine="Two-Core CPU", threads=2,
        versions={"torch": "2.13.0", "transformers": "5.23.0"},
    )  # fmt: skip


def timed(measure, ratio, *, control=(1.0, 0.99, 1.01), seconds=(0.012, 0.01), tokens=None):
    """A row of a timing: medians and intervals are given, one round holds the seconds."""
    base, pruned = seconds
    measured = SpeedMeasured(
        measure=measure, ratio=Interval(median=ratio[0], low=ratio[1], high=ratio[2]),
        control=Interval(median=control[0], low=control[1], high=control[2]), seconds=pruned, base_seconds=base,
        tokens_per_second=tokens and tokens / pruned, base_tokens_per_second=tokens and tokens / base, depth=512,
        new_tokens=32, batch_size=1, round_seconds=((base, base, pruned),) * 20,
    )  # fmt: skip
    return SpeedRow(
        measured=measured, verdict=measured.verdict, sdr=measured.sdr(-4.28, standard_error=0.97, ends=(-6.22, -2.34))
    )


def speed(**changes):
    rows = (
        timed("prefill", (1.01, 0.98, 1.04), seconds=(0.05, 0.0495), tokens=512),
        timed("first-token", (1.02, 1.01, 1.03), control=(1.02, 1.01, 1.03), seconds=(0.051, 0.05)),
        timed("decode", (1.125, 1.1, 1.15), seconds=(0.9, 0.8), tokens=32),
        timed("generation", (1.12, 1.09, 1.15), seconds=(0.95, 0.85), tokens=32),
    )
    values = {
        "base": "meta-llama/Llama-3.2-3B", "base_commit": BASE_COMMIT, "pruned": REPO_ID, "pruned_commit": None,
        "dropped": (("attn", 4), ("attn", 5), ("attn", 6)), "rows": rows,
        "kv_cache": KvCacheMeasured(
            tokens=512, base=16_777_216, pruned=10_485_760, base_computed=16_777_216, pruned_computed=10_485_760
        ),
        "peak_memory": PeakMemory(
            how="allocator", base=6_600_000_000, pruned=6_400_000_000, depth=512, new_tokens=32, batch_size=1
        ),
        "largest_batch": None,
        "benchmarks": BenchmarkChange(
            points=-4.28, standard_error=0.97, low=-6.22, high=-2.34, tasks=("arc_easy", "lambada_openai")
        ),
        "environment": environment().model_copy(update={"machine": "NVIDIA L4"}), "device": "cuda",
        "dtype": "bfloat16", "threads": 2, "attention": "sdpa", "seed": 0,
    }  # fmt: skip
    return SpeedReport(**{**values, **changes})


SECONDS = {"score": 81.2, "write": 0.4, "benchmarks": 4210.0}
REPO_ID = "oopere/Llama-3.2-3B-attn-drop-3"


def card_parts(**changes):
    values = {
        "recipe": recipe(), "base": base(), "scores": scores(), "plan": plan(), "checkpoint": checkpoint(),
        "verification": verification(), "benchmarks": benchmarks(), "generation": generation(),
        "snippet": snippet(), "environment": environment(), "seconds": SECONDS, "repo_id": REPO_ID,
    }  # fmt: skip
    return {**values, **changes}


def report(**changes):
    values = {key: value for key, value in card_parts().items() if key != "recipe"}
    values |= {"recipe": recipe().model_dump(mode="json"), "published": None, "endpoint": "https://huggingface.co"}
    used = {**values, **changes}
    return PublishReport(**used)


def card_context(*, pictures=None, overrides=None, **changes):
    """What a card is rendered from, of these parts; no validation stands in the way of hostile text."""
    values = {"endpoint": "https://huggingface.co", "published": None, **card_parts(**changes)}
    report = PublishReport.model_construct(**{**values, "recipe": values["recipe"].model_dump()})
    return context_of(report, pictures=pictures or Pictures(), overrides=overrides)


BY_HAND = {
    "scores": None,
    "plan": plan_by_hand(),
    "recipe": recipe(drop=DropSpec(attn_layers=(3, 5)), evaluation=EvaluationSpec(tasks=())),
    "checkpoint": checkpoint(kv_bytes_per_token=24_576),
    "seconds": {"checkpoint": 0.4},
    "benchmarks": None,
    "generation": None,
    "base": base(card=BaseCard()),
}
"""What makes the parts of a card those of a drop by hand, of which nothing was measured."""
