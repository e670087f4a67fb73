"""What a reader is warned of, and what the measurements come to: by rules from the data, never by hand.

No causes are claimed: what is said is what a number says.
"""

from __future__ import annotations

from collections.abc import Iterator

from hubprune.cards import free_text
from hubprune.cards.numbers import INTERVAL, NONE, count, p_value, plain, with_error, with_interval
from hubprune.cards.removal import ranked_thing
from hubprune.cards.timed import hardware
from hubprune.core.artifacts import (
    BenchmarkComparison,
    DropPlan,
    Estimate,
    GenerationComparison,
    LayerScores,
    Mark,
    PairedLoops,
    RepetitionComparison,
    SpeedReport,
    TaskComparison,
)
from hubprune.core.privacy import is_local_data, public_name

__all__ = ["limits", "verdict"]

STANDS_OUT = 2.0
"""Times the others' mean loss from which on the largest loss is said to stand out."""
WORD_PREDICTION = "lambada"
"""How the tasks begin that ask for the last word of a passage (arXiv 1606.06031)."""


# ---- verdict -----------------------------------------------------------------------------------------------------


def verdict(comparison: BenchmarkComparison | None, *, repetition: RepetitionComparison | None) -> tuple[str, ...]:
    """Say in a sentence each what the benchmarks and the free text come to."""
    return _benchmark_verdict(comparison), _loop_verdict(repetition.loops if repetition else None)


def _benchmark_verdict(comparison: BenchmarkComparison | None) -> str:
    if comparison is None or not comparison.tasks:
        return "Verdict: what the removal cost on benchmarks was not measured."
    rows = comparison.main_metrics()
    told = [part for mark in WORDS if (part := _marked(rows, mark))]
    if len(rows) > sum(_mark(row) is not None for row in rows):
        told.append(f"{sum(_mark(row) is None for row in rows)} not tested")
    of = "1 benchmark" if len(rows) == 1 else f"{len(rows)} benchmarks"
    return f"Verdict: of {of}, {', '.join(told)}.{_mean_verdict(comparison)}"


WORDS: dict[Mark, str] = {
    "worse": "worse",
    "better": "better",
    "not distinguishable": "not distinguishable from the base",
    "at chance": "that the base itself only guesses at",
}


def _mean_verdict(comparison: BenchmarkComparison) -> str:
    """Say what the mean came to: many small losses that no task shows by itself can be one of the mean."""
    mean = _clear_mean(comparison)
    return f" Their mean is {'lower' if mean.value < 0 else 'higher'} than the base's." if mean else ""


def _clear_mean(comparison: BenchmarkComparison) -> Estimate | None:
    """Return the mean change over several tasks where its interval leaves out 0."""
    mean = comparison.mean_points
    if sum(row.is_share for row in comparison.main_metrics()) < 2 or mean is None:
        return None
    clear = mean.low is not None and mean.high is not None and (mean.low > 0 or mean.high < 0)
    return mean if clear else None


def _marked(rows: tuple[TaskComparison, ...], mark: Mark) -> str:
    names = [row.task for row in rows if _mark(row) == mark]
    return f"{len(names)} {WORDS[mark]} ({', '.join(names)})" if names else ""


def _mark(row: TaskComparison) -> Mark | None:
    return row.paired.mark if row.paired else None


def _loop_verdict(loops: PairedLoops | None) -> str:
    if loops is None:
        return "Whether its texts end in loops more often than the base's was not measured."
    if loops.pruned <= loops.base:
        return "No more of its texts end in a loop than of the base's."
    if loops.change.low is not None and loops.change.low > 0:
        return "Its texts end in a loop more often than the base's."
    return "More of its texts end in a loop than of the base's, which is not distinguishable from chance."


# ---- limits ------------------------------------------------------------------------------------------------------


def limits(
    plan: DropPlan,
    *,
    scores: LayerScores | None,
    comparison: BenchmarkComparison | None,
    generation: GenerationComparison | None,
    speed: SpeedReport | None = None,
) -> tuple[str, ...]:
    """List by fixed rules what the numbers warn of and what was not measured; no causes are claimed."""
    return (
        *_benchmark_limits(comparison),
        *free_text.limits(generation),
        *_score_limits(plan, scores=scores),
        "Nothing was trained after the removal.",
        *([f"Speed and memory are those of {hardware(speed)}: other hardware may gain more or less."] if speed else []),
        _not_measured(comparison, speed=speed),
    )


def _not_measured(comparison: BenchmarkComparison | None, *, speed: SpeedReport | None) -> str:
    others = "languages and tasks other than those above" if comparison and comparison.tasks else "other languages"
    return f"Not measured: {'' if speed else 'speed, '}safety and bias, long contexts, {others}."


def _benchmark_limits(comparison: BenchmarkComparison | None) -> Iterator[str]:
    if comparison is None or not comparison.tasks:
        yield "No benchmark was run: what the removal cost is not known."
        return
    yield from comparison.left_out
    yield from filter(None, map(_clear_loss, comparison.tasks))
    if (mean := _clear_mean(comparison)) and mean.value < 0:
        told = with_interval(mean, unit=" points", label=INTERVAL)
        yield f"The mean of {sum(row.is_share for row in comparison.main_metrics())} benchmarks got worse: {told}."
    yield from _standing_out(comparison)
    yield from filter(None, map(_at_chance, comparison.main_metrics()))
    if comparison.limit is not None:
        yield f"The benchmarks saw at most {count(comparison.limit)} documents per task, so their errors are wide."


def _clear_loss(task: TaskComparison) -> str | None:
    """A loss that chance alone would hardly make, by the test that the benchmarks section tells of."""
    if not task.paired or task.paired.mark != "worse" or task.paired.holm_p_value is None:
        return None
    change, unit = (task.points, " points") if task.points else (task.percent, " %")
    told = with_interval(change, unit=unit, label=INTERVAL) if change else NONE
    words = ", predicting the last word of a passage," if task.points and task.task.startswith(WORD_PREDICTION) else ""
    return f"{task.task} ({task.metric}){words} got worse: {told}, adjusted {p_value(task.paired.holm_p_value)}."


def _standing_out(comparison: BenchmarkComparison) -> Iterator[str]:
    """Compare the largest loss with the mean of the others, where it is clear and there are others that lost."""
    changes = [(row.points.value, row) for row in comparison.main_metrics() if row.points]
    if len(changes) < 3:
        return
    change, worst = min(changes, key=lambda pair: pair[0])
    others = [value for value, row in changes if row is not worst]
    mean = sum(others) / len(others)
    if _mark(worst) != "worse" or mean >= 0 or change / mean < STANDS_OUT:
        return
    yield (
        f"{worst.task} lost {plain(-change, digits=2)} points, {plain(change / mean, digits=1)} times the mean loss of"
        f" the other {len(others)} benchmarks ({plain(-mean, digits=2)} points)."
    )


def _at_chance(task: TaskComparison) -> str | None:
    """Say of a base that only guesses that it had nothing to lose, else of this model that nothing is left."""
    guessing = task.paired.at_chance if task.paired else ()
    if task.chance is None or not guessing:
        return None
    who, value = ("the base itself", task.base) if "base" in guessing else ("this model, unlike the base,", task.pruned)
    figures = f"{with_error(value.value, value.standard_error, digits=3)}, chance {plain(task.chance, digits=3)}"
    return f"{task.task} ({task.metric}): {who} is no better than guessing ({figures})."


def _score_limits(plan: DropPlan, *, scores: LayerScores | None) -> Iterator[str]:
    if plan.widths:
        yield "The neurons were chosen by their weights alone: no calibration supports their choice."
    if scores is None and not plan.dropped:
        return
    if scores is None:
        how = "given by hand" if plan.selected_by == "hand" else "chosen by no score"
        what = "layer was" if len(plan.dropped) == 1 else "layers were"
        yield f"The {what} {how} and nothing was scored: no calibration supports the choice."
        return
    if local := [public_name(s.dataset) for s in scores.calibration.sources if is_local_data(s.dataset)]:
        yield f"The scores come from files that are not published ({', '.join(local)}): they cannot be reproduced."
    for margin in plan.margins:
        if margin.near_tie:
            one, other = (f"{ranked_thing(margin, n)} {layer}" for n, layer in enumerate(margin.neighbours))
            yield f"Whether {one} or {other} goes is a near tie."
