"""What was measured: benchmarks, free text, and the limits that follow from their numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator

from hubprune.artifacts import (
    BenchmarkComparison,
    Continuation,
    DropPlan,
    GenerationComparison,
    LayerScores,
    TaskComparison,
)
from hubprune.publishing.context import Benchmarks, FreeText, Pair, Table
from hubprune.publishing.numbers import NONE, count, plain, signed, with_error
from hubprune.publishing.privacy import is_local_data, public_name
from hubprune.publishing.removal import ranked_thing
from hubprune.publishing.samples import mean_repetition, repeated_share, shown_pairs

__all__ = ["benchmarks", "free_text", "limits"]


def benchmarks(comparison: BenchmarkComparison | None) -> Benchmarks | None:
    """Compare base and pruned task by task; None where nothing was run."""
    if comparison is None or not comparison.tasks:
        return None
    columns = ("Task", "Metric", "n", "Shots", "Chance", "Base", "This model", "Δ points", "Δ relative, %")
    rows = tuple(_task_row(task) for task in comparison.tasks)
    return Benchmarks(
        sentences=tuple(_benchmark_sentences(comparison)), table=Table(columns=columns, align="llrrrrrrr", rows=rows)
    )


def _task_row(task: TaskComparison) -> tuple[str, ...]:
    values = [with_error(m.value, m.standard_error) for m in (task.base, task.pruned)]
    n = count(task.documents)
    if task.documents != task.documents_available:
        n += f" of {count(task.documents_available)}"
    metric = f"{task.metric} {'↑' if task.higher_is_better else '↓'}"
    chance = NONE if task.chance is None else plain(task.chance, digits=4)
    changes = signed(task.change_points), signed(task.change_relative)
    return task.task, metric, n, str(task.num_fewshot), chance, *values, *changes


def _benchmark_sentences(comparison: BenchmarkComparison) -> Iterator[str]:
    yield (
        f"Base and this model were measured in the same run, on the same documents, with lm-eval {comparison.lm_eval}"
        f" ({comparison.dtype}, {comparison.device}, seed {comparison.seed})."
    )
    yield from _backend_sentences(comparison)
    yield (
        "± is one standard error; that of the mean change is unpaired, as if the two had seen different documents."
        " Chance is the accuracy of guessing. Δ points is 100 × (this − base) for metrics between 0 and 1 and does not"
        " exist for others; Δ relative is this / base − 1. ↑: higher is better, ↓: lower is better."
    )
    if comparison.limit is not None:
        limit = count(comparison.limit)
        yield f"Limited to the first {limit} documents of each task: no figure here is the full benchmark's."


def _backend_sentences(comparison: BenchmarkComparison) -> Iterator[str]:
    """Say what computed the log-likelihoods, and how that was compared with lm-eval's own backend."""
    if comparison.backend == "hf":
        why = f", since {comparison.fallback}" if comparison.fallback else ""
        yield f"Log-likelihoods are from lm-eval's own Hugging Face backend{why}."
        return
    check = comparison.self_check
    compared = (
        f"; lm-eval's own backend computed {count(check.requests)} requests of each as well, and differed by at most"
        f" {check.largest_difference:.1e} nats"
        if check
        else ""
    )
    yield f"Log-likelihoods were computed for both in one pass, which runs once what they have in common{compared}."


# ---- free text ---------------------------------------------------------------------------------------------------


def free_text(generation: GenerationComparison | None) -> FreeText | None:
    """Show the first pair and the most repetitive one verbatim; None where no text was written."""
    if generation is None or not generation.continuations:
        return None
    pairs = tuple(_pair(number, pair=pair) for number, pair in shown_pairs(generation))
    return FreeText(sentences=tuple(_text_sentences(generation, shown=len(pairs))), pairs=pairs)


def _pair(number: int, *, pair: Continuation) -> Pair:
    share = plain(100 * repeated_share(pair.pruned), digits=1)
    reason = "the first prompt" if number == 1 else f"the most repetitive text of this model ({share} % repeated)"
    return Pair(number=number, reason=reason, prompt=pair.prompt, base=pair.base, pruned=pair.pruned)


def _text_sentences(generation: GenerationComparison, *, shown: int) -> Iterator[str]:
    total = len(generation.continuations)
    base, pruned = (plain(100 * share, digits=1) for share in mean_repetition(generation))
    prompts = "1 prompt" if total == 1 else f"{total} prompts"
    yield (
        f"Both models continued {prompts}: {generation.decoding} decoding, no penalty, at most"
        f" {generation.max_new_tokens} new tokens, {generation.dtype} on {generation.device}."
    )
    yield (
        "Shown by a fixed rule: the first prompt, and the one whose text by this model has the largest share of"
        " 4-word sequences that it had before."
    )
    if rest := total - shown:
        others = "The other pair is" if rest == 1 else f"The other {rest} pairs are"
        yield f"{others} in hubprune.json."
    yield f"Mean share of repeated 4-word sequences: base {base} %, this model {pruned} %."


# ---- limits ------------------------------------------------------------------------------------------------------


def limits(
    plan: DropPlan,
    *,
    scores: LayerScores | None,
    comparison: BenchmarkComparison | None,
    generation: GenerationComparison | None,
) -> tuple[str, ...]:
    """List by fixed rules what the numbers warn of and what was not measured; no causes are claimed."""
    return (
        *_benchmark_limits(comparison),
        *_text_limits(generation),
        *_score_limits(plan, scores=scores),
        "Nothing was trained after the removal.",
        "Not measured: speed, safety and bias, long contexts, languages and tasks other than those above.",
    )


def _benchmark_limits(comparison: BenchmarkComparison | None) -> Iterator[str]:
    if comparison is None or not comparison.tasks:
        yield "No benchmark was run: what the removal cost is not known."
        return
    for task in comparison.tasks:
        if _is_clear_loss(task):
            change = signed(task.change_points, unit=" points")
            told = change if task.change_points is not None else signed(task.change_relative, unit=" %")
            yield f"{task.task} ({task.metric}) got worse by more than twice the combined standard error: {told}."
    yield from filter(None, map(_at_chance, comparison.tasks))
    if comparison.limit is not None:
        yield f"The benchmarks saw at most {count(comparison.limit)} documents per task, so their errors are wide."


def _is_clear_loss(task: TaskComparison) -> bool:
    """Unpaired, hence cautious: both models saw the same documents."""
    errors = (task.base.standard_error, task.pruned.standard_error)
    loss = task.base.value - task.pruned.value if task.higher_is_better else task.pruned.value - task.base.value
    return None not in errors and loss > 2 * math.hypot(*(e or 0.0 for e in errors))


def _at_chance(task: TaskComparison) -> str | None:
    """A base that does no better than guessing has nothing to lose: its task tells nothing of the removal."""
    error = task.base.standard_error
    if task.chance is None or error is None or abs(task.base.value - task.chance) > 2 * error:
        return None
    figures = f"{with_error(task.base.value, error, digits=3)}, chance {plain(task.chance, digits=3)}"
    return f"{task.task} ({task.metric}): the base itself is at chance ({figures})."


def _text_limits(generation: GenerationComparison | None) -> Iterator[str]:
    if generation is None or not generation.continuations:
        yield "No free text was written: whether the model falls into loops is not known."
        return
    base, pruned = mean_repetition(generation)
    if pruned > base:
        shares = f"{plain(100 * pruned, digits=1)} % of its 4-word sequences against {plain(100 * base, digits=1)} %"
        yield f"It repeats itself more than the base: {shares} over {len(generation.continuations)} prompts."


def _score_limits(plan: DropPlan, *, scores: LayerScores | None) -> Iterator[str]:
    if plan.widths:
        yield "The neurons were chosen by their weights alone: no calibration supports their choice."
    if scores is None and not plan.dropped:
        return
    if scores is None:
        how = "given by hand" if plan.selected_by == "hand" else "chosen by no score"
        yield f"The layers were {how} and nothing was scored: no calibration supports the choice."
        return
    if local := [public_name(s.dataset) for s in scores.calibration.sources if is_local_data(s.dataset)]:
        yield f"The scores come from files that are not published ({', '.join(local)}): they cannot be reproduced."
    for margin in plan.margins:
        if margin.near_tie:
            one, other = (f"{ranked_thing(margin, n)} {layer}" for n, layer in enumerate(margin.neighbours))
            yield f"Whether {one} or {other} goes is a near tie."
