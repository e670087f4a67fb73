"""The card of a healed sibling: three columns, how much of what pruning cost came back, and the training in full."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from hubprune.cards import free_text
from hubprune.cards.context import Adding, Benchmarks, FreeText, Glance, Made, Picture, Table, VerificationSummary
from hubprune.cards.limits import benchmark_limits, benchmark_verdict, unwritten

# fmt: off
# isort: off
from hubprune.cards.markdown import (
    NONE, count, listing, plain, rounded, with_interval,
)
# isort: on
# fmt: on
from hubprune.cards.measured import SIDES, limited, tables, through_chat
from hubprune.cards.removal import calibration
from hubprune.core.artifacts import (
    SHARES,
    BenchmarkComparison,
    CameBack,
    Estimate,
    HealedBenchmarks,
    HealingLoss,
    HealingRecord,
    Recovered,
    SiblingReport,
    TaskComparison,
)
from hubprune.core.console import duration
from hubprune.core.privacy import is_local_data, public_name
from hubprune.core.recipe import Recipe, parse
from hubprune.core.specs import HealSpec

LOSSES: dict[HealingLoss, str] = {
    "kl": "KL(base || this model) of the next token",
    "kl+hidden": "KL(base || this model) of the next token, and one minus the cosine of the hidden states behind every"
    " layer",
    "ce": "cross entropy with the texts",
}
NOTHING_LOST = "no clear loss"
TRAIN_ON = 'To fine-tune it with peft, LoraConfig(target_modules="all-linear") finds the matrices that are left.'


def told(spec: HealSpec | None) -> str:
    """Say in some words what a healed sibling is; None for one that was trained elsewhere."""
    if spec is None:
        return "healed: trained elsewhere from this model"
    how = f"LoRA of rank {spec.rank}" if spec.method == "lora" else "all weights"
    return f"healed: trained for {spec.steps:,} steps {_aim(spec.loss, 'the base')} ({how})"


def then(report: SiblingReport) -> str:
    """Say what was done to the weights, for the licence."""
    if report.healing:
        return f"then its weights were trained {_aim(report.healing.loss, 'the base')}"
    return "then its weights were trained elsewhere"


def _aim(loss: HealingLoss, name: str) -> str:
    return "on texts" if loss == "ce" else f"to predict as {name} does"


def _method(record: HealingRecord) -> str:
    return f"LoRA of rank {record.rank}, merged" if record.method == "lora" else "all weights"


def summary(report: SiblingReport) -> str:
    """Say in one sentence what was done, with its numbers; it follows "This is <pruned model> with"."""
    if not (record := report.healing):
        mean = report.recovered.step.mean_points if report.recovered else None
        gain = f": {with_interval(mean, unit=' points')} on average over the benchmarks" if mean else ""
        return f"weights that somebody trained elsewhere{gain}."
    before, after = record.before, record.after
    parts = [f"a KL divergence to the base of {_nats(after.kl)} instead of {_nats(before.kl)} nats per token"]
    if share := record.recovered:
        parts.insert(0, f"{_percent(share)} of the lost log-perplexity recovered")
    return (
        f"its weights trained for {count(record.steps)} steps {_aim(record.loss, report.base.name)}"
        f" ({_method(record)}): {' and '.join(parts)}, on held-out texts."
    )


def _nats(value: float) -> str:
    return plain(value, digits=4)


def _percent(share: Estimate | Recovered | None) -> str:
    """Write a share with its 95 % interval: 91.2 % (89.0 to 93.1)."""
    if share is None:
        return NOTHING_LOST
    low, high = share.low or 0.0, share.high or 0.0
    return f"{_share(share.value)} ({plain(100 * low, digits=1)} to {plain(100 * high, digits=1)})"


# ---- at a glance -------------------------------------------------------------------------------------------------


def glance(report: SiblingReport) -> Glance:
    """Compare base, pruned and healed in the figures that a reader asks for first."""
    rows: list[tuple[str, ...]] = [(
        "Parameters", rounded(report.checkpoint.base_parameters), rounded(report.checkpoint.parameters),
        rounded(report.healed.written.parameters if report.healed else 0), NONE,
    )]  # fmt: skip
    verdict = []
    if record := report.healing:
        before, after = record.before, record.after
        kl = f"{plain(100 * (1 - after.kl / before.kl), digits=1)} %" if before.kl > 0 else NONE
        rows += [
            (
                f"Perplexity on {count(record.held_out_documents)} held-out texts",
                *(plain(v, digits=3) for v in (record.base_perplexity, before.perplexity, after.perplexity)),
                _percent(record.recovered),
            ),
            ("KL divergence to the base, nats per token", "0", _nats(before.kl), _nats(after.kl), kl),
            ("Top-1 agreement with the base", "100.0 %", _share(before.top1), _share(after.top1), NONE),
        ]  # fmt: skip
    if (seen := report.recovered) and (mean := seen.step.mean_points):
        names = [row.task for row in seen.both.main_metrics() if row.is_share]
        values = [_mean(seen.dropped, side="base"), _mean(seen.dropped), _mean(seen.both)]
        label = f"Mean of {len(names)} benchmark{'s'[: len(names) - 1]}, %"
        rows.append((label, *(plain(100 * v, digits=2) for v in values), with_interval(mean, unit=" points")))
        verdict.append(_mean_verdict(mean, tasks=len(names)))
    columns = ("", "Base", "Pruned", "This model", "Recovered, or change from pruned (95 % interval)")
    told = benchmark_verdict(seen.both) if seen else "Verdict: what it gained on benchmarks was not measured."
    return Glance(table=Table(columns=columns, align="lrrrr", rows=tuple(rows)), verdict=(told, *verdict))


def _share(value: float) -> str:
    return f"{plain(100 * value, digits=1)} %"


def _mean(comparison: BenchmarkComparison, *, side: str = "pruned") -> float:
    rows = [row for row in comparison.main_metrics() if row.is_share]
    return sum((row.base if side == "base" else row.pruned).value for row in rows) / len(rows)


def _mean_verdict(mean: Estimate, *, tasks: int) -> str:
    ends, how = mean.ends, "not distinguishable from"
    if ends and (ends[0] > 0 or ends[1] < 0):
        how = f"clearly {'higher' if mean.value > 0 else 'lower'} than"
    return f"{'Their mean' if tasks > 1 else 'Its result'} is {how} the pruned model's."


# ---- benchmarks --------------------------------------------------------------------------------------------------


def benchmarks(seen: HealedBenchmarks | None) -> Benchmarks | None:
    """Put base, pruned and healed model into one table; None where nothing was run."""
    if seen is None or not seen.both.tasks:
        return None
    steps = {_key(row): row for row in seen.step.tasks}
    found = ((row, steps[_key(row)]) for row in seen.both.tasks if _key(row) in steps)
    table, details = tables(("Base", "Pruned", "This model"), [(r, s, (r.base, s.base, r.pruned)) for r, s in found])
    compared = seen.both
    sentences = (
        f"Base, pruned and healed model answered the same documents with lm-eval {compared.lm_eval} ({compared.dtype},"
        f" {compared.device}, seed {compared.seed}).",
        *through_chat(compared),
        *limited(compared),
    )
    return Benchmarks(sentences=sentences, table=table, details=details, picture=None, notes=(SIDES,))


def _key(row: TaskComparison) -> tuple[str, str, str | None]:
    return row.task, row.metric, row.filter


def came_back(seen: HealedBenchmarks | None) -> Adding | None:
    """Say which share of every loss came back; None where no metric tells."""
    if seen is None or not seen.came_back:
        return None
    rows = tuple((row.task, row.metric, _lost(row), _percent(row.share)) for row in seen.came_back)
    sentences = (
        "The recovered share of a loss is (this − pruned) / (base − pruned): 100 % is the base's own value. Its 95 %"
        " interval is from the documents, each of which all three models answered (Fieller 1954). A loss whose interval"
        " holds 0 is not clear and has no share.",
    )
    columns = ("Task", "Metric", "Lost by pruning (95 % interval)", "Recovered (95 % interval)")
    table = Table(columns=columns, align="llrr", rows=rows)
    return Adding(title="How much was recovered", sentences=sentences, table=table)


def _lost(row: CameBack) -> str:
    return with_interval(row.lost, unit=" points" if row.metric in SHARES else " nats")


def texts(report: SiblingReport) -> FreeText | None:
    """Show what base and healed model wrote, with the pruned one's figures between theirs; None where nothing is."""
    found, before = free_text.section(report.generation), report.pruned_repetition
    if found is None or found.measures is None or before is None or report.generation is None:
        return found
    prompts = found.measures.columns[0].rpartition("mean of ")[2]
    pruned = free_text.measures(before, prompts=prompts)
    rows = tuple(
        (*row[:2], other[2], *row[2:]) for row, other in zip(found.measures.rows, pruned.rows, strict=True)
    )  # fmt: skip
    columns = (*found.measures.columns[:2], "Pruned", "This model", "Change from base (95 % interval)")
    table = Table(columns=columns, align=f"{found.measures.align}r", rows=rows)
    told = f"The pruned model's texts are on the card of {report.pruned}."
    return replace(found, measures=table, sentences=(*found.sentences, told))


# ---- how it was made ---------------------------------------------------------------------------------------------


def made(report: SiblingReport, *, curve: str | None) -> Made:
    """Tell the training in full, or that it was elsewhere, and how the files were checked."""
    verification = None
    if report.healed:
        seen = report.healed.verification
        checks = Table(
            columns=("Check", "Result", "What was seen"), align="lll",
            rows=tuple((c.name, "passed" if c.passed else "failed", c.detail) for c in seen.checks),
        )  # fmt: skip
        loaded = f"A fresh process loaded the written files with transformers {seen.transformers} and compared them"
        sentence = f"{loaded} with the base that has the trained tensors."
        verification = VerificationSummary(sentence=sentence, checks=checks)
    if record := report.healing:
        sentences, rows, texts = (
            _training(report, record),
            _figures(record),
            calibration(record.data, endpoint=report.endpoint),
        )
    else:
        sentences, rows, texts = _elsewhere(report), _taken(report), None
    text = ""
    if record and curve:
        text = (
            f"Training loss, held-out KL and held-out perplexity over {count(record.steps)} steps: KL from"
            f" {_nats(record.before.kl)} to {_nats(record.after.kl)}"
        )
    return Made(
        title="How it was healed", sentences=tuple(sentences),
        table=Table(columns=("", "Value"), align="ll", rows=tuple(rows)), calibration=None,
        folded="The training in figures" if record else "What was handed over",
        verification=verification, trained_on=texts,
        picture=Picture(path=curve, text=text) if curve else None,
    )  # fmt: skip


def _training(report: SiblingReport, record: HealingRecord) -> Iterator[str]:
    what = "LoRA adapters on all matrices of the decoder layers were trained, added to these in float32 and rounded"
    rest = " once to the stored dtype; embedding, norms and head are the base's, byte for byte."
    yield f"{what}{rest}" if record.method == "lora" else "All weights were trained in float32 and rounded once."
    teacher = ": the base was no teacher" if record.loss == "ce" else ", with the unpruned base as the teacher"
    yield f"The loss was {LOSSES[record.loss]}{teacher}."
    if record.steps < record.planned_steps:
        yield (
            f"It ended after {count(record.steps)} of {count(record.planned_steps)} steps, since the held-out loss no"
            " longer fell."
        )
    scored = parse(Recipe, report.recipe).needs_scores
    unseen = "neither trained on nor used for the scores" if scored else "not trained on"
    yield (
        f"Perplexity, KL divergence and top-1 agreement (how often the most likely token is the same) are of"
        f" {count(record.held_out_documents)} held-out documents of the same mix ({count(record.held_out_tokens)}"
        f" tokens), which were {unseen}."
    )
    if record.checked_against:
        left = f"{count(record.left_out)} documents were left out, since they" if record.left_out else "no document"
        yield (
            f"The texts were searched for passages of {listing(record.checked_against)}: {left} shared 13 words in"
            " a row with these benchmarks."
        )
    else:
        yield "The texts were not searched for passages of any benchmark."


def _figures(record: HealingRecord) -> Iterator[tuple[str, str]]:
    yield "Method", _method(record)
    yield "Trained parameters", count(record.trained_parameters)
    yield "Loss", record.loss
    steps = count(record.steps)
    yield "Steps", steps if record.steps == record.planned_steps else f"{steps} of {count(record.planned_steps)}"
    yield "Documents per step", count(record.batch_size)
    yield "Tokens trained on", count(record.tokens)
    yield "Different documents", f"{count(record.data.documents)}, {count(record.data.tokens)} tokens"
    yield "Highest learning rate", f"{record.learning_rate:.3g}"
    yield "Seed", str(record.seed)
    yield "Training time", duration(record.seconds)
    yield "Device and dtype", f"{record.device}, {record.dtype}"
    yield "Libraries", ", ".join(f"{name} {number}" for name, number in record.versions.items())


def _elsewhere(report: SiblingReport) -> Iterator[str]:
    adopted = report.recipe.get("adopted") or {}
    commit = f" at commit {adopted['revision']}" if adopted.get("revision") else ""
    by = f"taken from {adopted['repo_id']}{commit}, whose authors chose what went, too" if adopted else ""
    yield (
        f"It was trained elsewhere and {by or 'handed over as a folder'}: hubprune does not know on which texts, nor"
        " for how long, nor whether texts of the benchmarks were among them."
    )
    yield (
        "Of that folder only the weights were taken, rounded once to the stored dtype; configs, tokenizer and code are"
        " those of the pruned model. Names and shapes of its tensors, its config.json and the ids of its tokenizer were"
        " found to be the pruned model's."
    )


def _taken(report: SiblingReport) -> Iterator[tuple[str, str]]:
    if seen := report.elsewhere:
        yield "Tensors that changed", f"{count(seen.changed)} of {count(seen.tensors)}"
        yield "Dtypes as handed over", ", ".join(seen.dtypes)
        stored = report.healed.written.dtypes if report.healed else ()
        yield "Dtypes as published", ", ".join(stored)


# ---- limits ------------------------------------------------------------------------------------------------------


def limits(report: SiblingReport) -> Iterator[str]:
    """List by fixed rules what the numbers warn of and what was not measured."""
    if seen := report.recovered:
        yield from benchmark_limits(seen.both)
        if worse := [row.task for row in seen.step.main_metrics() if row.paired and row.paired.mark == "worse"]:
            yield f"Training made it worse than the pruned model on {listing(worse)}."
    else:
        yield "No benchmark was run: what was recovered there is not known."
    yield from unwritten(seen.both if seen else None)
    yield from free_text.limits(report.generation)
    if record := report.healing:
        yield (
            "The held-out texts are of the same mix as those that it was trained on: on other texts, less may be"
            " recovered."
        )
        local = [public_name(s.dataset) for s in record.data.sources if is_local_data(s.dataset)]
        if local:
            yield f"The texts in {listing(local)} are not public, so that nobody else can train the same."
    else:
        yield "What it was trained on is not known here, so that a benchmark's texts may have been among it."
    yield "Not measured: speed, safety and bias, long contexts, other languages."
