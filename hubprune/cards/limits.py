"""What a reader is warned of, and what the measurements come to: by rules from the data, never by hand.

No causes are claimed: what is said is what a number says.  At the end stands the regression budget: how much a result
may lose before it is not published.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from hubprune.cards import free_text
from hubprune.cards.markdown import NONE, count, p_value, plain, signed, with_error, with_interval
from hubprune.cards.removal import ranked_thing
from hubprune.cards.timed import hardware
from hubprune.core.artifacts import (
    BenchmarkComparison,
    DropPlan,
    Estimate,
    GenerationComparison,
    LayerScores,
    Mark,
    MetricValue,
    RepetitionComparison,
    SpeedReport,
    TaskComparison,
)
from hubprune.core.errors import OverBudgetError
from hubprune.core.privacy import is_local_data, public_name
from hubprune.core.recipe import LOOPS, MEAN, REPETITION, TEXT_BUDGETS

STANDS_OUT = 2.0
LONG_CONTEXT = 4096
"""Tokens of a prompt from which on long contexts were measured."""
"""Times the others' mean loss from which on the largest loss is said to stand out."""
FLOOR = 2.0
"""Standard errors that the share of right answers has to be above 0 by, where nothing can be guessed."""
WORD_PREDICTION = "lambada"
"""How the tasks begin that ask for the last word of a passage (arXiv 1606.06031)."""
WORDS: Mapping[Mark, str] = {
    "worse": "worse",
    "better": "better",
    "not distinguishable": "not distinguishable from the base",
    "at chance": "at chance in the base already",
}


# ---- verdict -----------------------------------------------------------------------------------------------------


def verdict(comparison: BenchmarkComparison | None, *, repetition: RepetitionComparison | None) -> tuple[str, ...]:
    """Say in a sentence each what the benchmarks and the free text come to."""
    if repetition is None:
        return benchmark_verdicts(comparison)
    if repetition.loops.pruned <= repetition.loops.base:
        loops = "No more of its texts end in a loop than of the base's."
    elif free_text.is_above_zero(repetition.loops.change):
        loops = "Its texts end in a loop more often than the base's."
    else:
        loops = "More of its texts end in a loop than of the base's, by a difference not distinguishable from chance."
    return (*benchmark_verdicts(comparison), loops)


def retention(comparison: BenchmarkComparison) -> Iterator[str]:
    """Say how much of the base's mean is left, and of the part of it above guessing, where that is not near 0."""
    shares = [row for row in comparison.main_metrics() if row.is_share]
    base, left = (sum(getattr(row, side).value for row in shares) for side in ("base", "pruned"))
    chance = sum(row.chance or 0.0 for row in shares)
    if base <= 0:
        return
    above = ""
    if chance and not any(_mark(row) == "at chance" for row in shares) and base > chance:
        above = f" ({plain(100 * (left - chance) / (base - chance), digits=1)} % of the part above guessing)"
    what = "It keeps" if len(shares) == 1 else "On average it keeps"
    yield f"{what} {plain(100 * left / base, digits=1)} % of the base's result{above}."


# ---- when to use it ----------------------------------------------------------------------------------------------


def purpose(comparison: BenchmarkComparison | None, *, repetition: RepetitionComparison | None) -> tuple[str, ...]:
    """Say what the measurements speak for and against; what the verdict says already is not said again."""
    rows = comparison.main_metrics() if comparison else ()
    enough = "where the losses shown here are acceptable" if rows else "although no benchmark shows here what was lost"
    told = [f"For what the base is used for, {enough}. Test it on your own task first."]
    kinds = (("Answers scored by their likelihood", False), ("Written answers", True))
    # Of benchmarks that an earlier version ran it is not known which of these they are.
    if {row.is_written for row in rows} == {True, False}:
        told += [_kind(name, [row for row in rows if row.is_written is kind]) for name, kind in kinds]
    told += unwritten(comparison)
    if repetition and free_text.is_above_zero((seen := repetition.loops).change):
        ends = f"{seen.pruned} of {seen.texts} texts end in a loop, {seen.base} of the base's"
        told.append(f"Not for free text that nobody reads before it is used: {ends}.")
    return tuple(told)


def unwritten(comparison: BenchmarkComparison | None) -> Iterator[str]:
    """Say that no benchmark let the model write its answers, where that is known."""
    if comparison and comparison.tasks and all(row.is_written is False for row in comparison.tasks):
        yield (
            "Whether it still writes correct answers, as in mathematics, code or chat, was not measured: the benchmarks"
            " score given ones."
        )


def _kind(name: str, rows: list[TaskComparison]) -> str:
    """Say of the tasks of a kind which clearly lost, and of the others that they did not."""
    worse = [row.task for row in rows if _mark(row) == "worse"]
    blind = [row.task for row in rows if _mark(row) in (None, "at chance")]
    rest, of = len(rows) - len(worse) - len(blind), f"{len(rows)} benchmark{'s'[: len(rows) - 1]}"
    parts = [f"clearly worse than the base on {', '.join(worse)}"] if worse else []
    parts += [f"no clear loss on {'the other ' if worse else ''}{rest} of {of}"] if rest else []
    parts += [f"nothing can be told from {', '.join(blind)}"] if blind else []
    return f"{name}: {'; '.join(parts)}."


def benchmark_verdicts(comparison: BenchmarkComparison | None) -> tuple[str, ...]:
    """Say what a model's benchmarks come to, and how much of the base's mean is left."""
    return benchmark_verdict(comparison), *(retention(comparison) if comparison else ())


def benchmark_verdict(comparison: BenchmarkComparison | None) -> str:
    """Say what a model's benchmarks come to against its base."""
    if comparison is None or not comparison.tasks:
        return "Verdict: what the removal cost on benchmarks was not measured."
    rows = comparison.main_metrics()
    told: list[str] = []
    for mark, words in WORDS.items():
        if names := [row.task for row in rows if _mark(row) == mark]:
            verb = "" if told else "is " if len(names) == 1 else "are "
            every, which = len(names) == len(rows), f" ({', '.join(names)})"
            told.append(f"{'all' if every else len(names)} {verb}{words}{'' if every else which}")
    if untested := sum(_mark(row) is None for row in rows):
        told.append(f"{untested} not tested")
    if len(rows) == 1:
        only = _mark(rows[0])
        told = [f"{rows[0].task}, its one benchmark, is {WORDS[only] if only else 'not tested'}"]
    # Many small losses that no task shows by itself can be one of the mean.
    mean = _clear_mean(comparison)
    also = f" Their mean is clearly {'lower' if mean.value < 0 else 'higher'} than the base's." if mean else ""
    return f"Verdict: {f'of {len(rows)} benchmarks, ' if len(rows) > 1 else ''}{', '.join(told)}.{also}"


def _clear_mean(comparison: BenchmarkComparison) -> Estimate | None:
    """Return the mean change over several tasks where its interval leaves out 0."""
    mean = comparison.mean_points
    if sum(row.is_share for row in comparison.main_metrics()) < 2 or mean is None:
        return None
    clear = mean.low is not None and mean.high is not None and (mean.low > 0 or mean.high < 0)
    return mean if clear else None


def _mark(row: TaskComparison) -> Mark | None:
    return row.paired.mark if row.paired else None


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
    read_long = comparison and any((row.prompt_tokens or 0) >= LONG_CONTEXT for row in comparison.tasks)
    others = "languages and tasks other than those above" if comparison and comparison.tasks else "other languages"
    return (
        *benchmark_limits(comparison),
        *free_text.limits(generation),
        *_score_limits(plan, scores=scores),
        "Nothing was trained after the removal.",
        *([f"Speed and memory are those of {hardware(speed)}: other hardware may gain more or less."] if speed else []),
        f"Not measured: {'' if speed else 'speed, '}safety and bias, {'' if read_long else 'long contexts, '}{others}.",
    )


def benchmark_limits(comparison: BenchmarkComparison | None) -> Iterator[str]:
    """List what the benchmarks of a model warn of."""
    if comparison is None or not comparison.tasks:
        yield "No benchmark was run: what the removal cost is not known."
        return
    yield from comparison.left_out
    for row in comparison.tasks:
        # A loss that chance alone would hardly make, by the test that the benchmarks section tells of.
        if row.paired and row.paired.mark == "worse" and row.paired.holm_p_value is not None:
            change, unit = (row.points, " points") if row.points else (row.percent, " %")
            told = signed(change.value, unit=unit) if change else NONE
            last = row.points and row.task.startswith(WORD_PREDICTION)
            words = ", predicting the last word of a passage," if last else ""
            words = ", whose answers the model writes itself," if row.is_written else words
            yield f"{row.task} ({row.metric}){words} got worse: {told}, adjusted {p_value(row.paired.holm_p_value)}."
    yield from _standing_out(comparison)
    for row in comparison.main_metrics():
        if row.chance is not None and row.paired and (guessing := row.paired.at_chance):
            # A base that only guesses had nothing to lose; else nothing is left of what this model could do.
            by_base = "base" in guessing
            who, value = ("the base itself", row.base) if by_base else ("this model, unlike the base,", row.pruned)
            figures = f"{_percent(value)}, chance {plain(100 * row.chance, digits=1)} %"
            yield f"{row.task} ({row.metric}): {who} is no better than guessing ({figures})."
        elif row.is_written and row.is_share and row.base.value <= FLOOR * (row.base.standard_error or 0.0):
            told = f"the base itself gets hardly any right ({_percent(row.base)}), so that little can be lost"
            yield f"{row.task} ({row.metric}): {told}."
    if comparison.limit is not None:
        yield f"The benchmarks saw at most {count(comparison.limit)} documents per task, so their errors are wide."


def _percent(value: MetricValue) -> str:
    """Write a share with its standard error in percent."""
    error = value.standard_error
    return f"{with_error(100 * value.value, None if error is None else 100 * error, digits=1)} %"


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


def _score_limits(plan: DropPlan, *, scores: LayerScores | None) -> Iterator[str]:
    if plan.widths:
        yield "The neurons were chosen by their weights alone: no calibration supports their choice."
    if scores is None:
        if plan.dropped:
            how = "given by hand" if plan.selected_by == "hand" else "chosen by no score"
            what = "layer was" if len(plan.dropped) == 1 else "layers were"
            yield f"The {what} {how} and nothing was scored: no calibration supports the choice."
        return
    if local := [public_name(s.dataset) for s in scores.calibration.sources if is_local_data(s.dataset)]:
        yield f"The scores come from files that are not published ({', '.join(local)}): they cannot be reproduced."
    for margin in plan.margins:
        if margin.near_tie:
            named = (ranked_thing(margin, place, metric=plan.metric) for place in (0, 1))
            last, first = (f"{what} {layer}" for what, layer in zip(named, margin.neighbours, strict=True))
            yield f"The choice between {last} (dropped) and {first} (kept) was a near tie."


# ---- budget ------------------------------------------------------------------------------------------------------


ROUNDING = 1e-9
"""Points that a difference of two shares may be off by, so that a loss of exactly the budget is within it."""


@dataclass(frozen=True, kw_only=True)
class BudgetLine:
    """What one task, the mean, or the free text was allowed to lose and has lost."""

    name: str
    allowed: float
    """Points."""
    change: Estimate | None
    """Pruned minus base in points; None where nothing between 0 and 1 was measured."""
    seen: str = ""
    """What was counted, where that says more than points."""

    @property
    def of_texts(self) -> bool:
        """Whether it is of the free text, where more is worse."""
        return self.name in TEXT_BUDGETS

    @property
    def kept(self) -> bool:
        """Whether it lost no more than allowed.  The point estimate decides; what was not measured is not kept."""
        if self.change is None:
            return False
        return self.change.value * (1 if self.of_texts else -1) <= self.allowed + ROUNDING

    @property
    def limit(self) -> float:
        """The change that is just allowed."""
        return self.allowed if self.of_texts else -self.allowed

    @property
    def text(self) -> str:
        """The line in words, with the interval of the change."""
        allowed = f"{plain(self.allowed, digits=2)} points{' more' if self.of_texts else ''} allowed"
        if self.change is None:
            lack = "was not measured" if self.of_texts else "has no metric between 0 and 1"
            return f"{self.name} {lack}, {allowed}"
        seen = f" ({self.seen})" if self.seen else ""
        return f"{self.name} {with_interval(self.change)}{seen}, {allowed}{'' if self.kept else ', over budget'}"


def budget_lines(
    limits: Mapping[str, float], benchmarks: BenchmarkComparison | None, generation: GenerationComparison | None = None
) -> tuple[BudgetLine, ...]:
    """Compare every entry of a budget with what was measured, in the order of the budget.

    Args:
        limits: `max_loss` of the recipe.
        benchmarks: a task counts by its first metric that is a share; None where nothing was run.
        generation: the free text; what its texts are too short to show was not measured.
    """
    changes: dict[str, Estimate] = {}
    for row in benchmarks.tasks if benchmarks else ():
        if points := row.points:
            changes.setdefault(row.task, points)
    if benchmarks and (mean := benchmarks.mean_points):
        changes[MEAN] = mean
    seen: dict[str, str] = {}
    for name, change, counted in _text_changes(generation):
        changes[name], seen[name] = change, counted
    return tuple(
        BudgetLine(name=name, allowed=allowed, change=changes.get(name), seen=seen.get(name, ""))
        for name, allowed in limits.items()
    )


def _text_changes(generation: GenerationComparison | None) -> Iterator[tuple[str, Estimate, str]]:
    """Yield what of the free text may have a budget, with its change in points and what was counted."""
    if generation is None or (found := generation.repetition) is None:
        return
    loops, seq_rep = found.loops, found.seq_rep_4
    shares = (f"{plain(100 * share, digits=1)} %" for share in (seq_rep.pruned, seq_rep.base))
    told = (
        (LOOPS, loops.change, f"{loops.pruned} of {loops.texts} texts end in one, {loops.base} of the base's"),
        (REPETITION, seq_rep.change, "seq-rep-4 {}, the base's {}".format(*shares)),
    )
    for name, change, seen in told:
        if generation.max_new_tokens >= TEXT_BUDGETS[name]:
            yield name, change.affine(times=100), seen


def check_budget(
    limits: Mapping[str, float], benchmarks: BenchmarkComparison | None, generation: GenerationComparison | None = None
) -> None:
    """Refuse a result that lost more than its recipe allows, or whose texts loop more.

    Raises:
        OverBudgetError: with the change, the interval and the allowance of everything that has a budget.
    """
    lines = budget_lines(limits, benchmarks, generation)
    if over := [line for line in lines if not line.kept]:
        worse = {False: "lost", True: "rose by"}
        told = (f"{', '.join(names)} {worse[n]}" for n in worse if (names := [o.name for o in over if o.of_texts is n]))
        raise OverBudgetError(
            f"Nothing was published: {', '.join(told)} more than max_loss allows. "
            f"{'; '.join(line.text for line in lines)}. (In points, with 95 % intervals; the change alone counts.)",
            hint="Drop less, or raise the budget: --max-loss, or evaluation.max_loss in the recipe.",
        )
