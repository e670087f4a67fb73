"""Compare two models by what each got on the same documents.  Pure: numbers in, numbers out.

Where a document is right or wrong, only those on which the models disagree tell them apart: `lost` ones, that the base
alone got right, and `won` ones.  Where it has a number, the differences per document do.  The rules:

- interval: 95 %; of Agresti and Min where documents are right or wrong, else of Student's t on the differences.
- test: exact McNemar where documents are right or wrong, else the paired t-test.  Perplexities are compared as mean
  log-likelihoods, and told as the exponential of their difference, which is the ratio of the perplexities.
- several metrics: p values are adjusted by Holm's method over the main metrics, and apart from these over all others.
- mark: `worse` or `better` where the adjusted p value is below 0.05; else `at chance` where the base is no better than
  guessing, so that the task could show no loss; else `not distinguishable`.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from hubprune.core.artifacts import Estimate, Mark, PairedComparison, TaskComparison, main_rows, perplexity_of
from hubprune.core.console import LARGEST
from hubprune.core.errors import EvaluationError

CONFIDENCE = 0.95
SIGNIFICANCE = 0.05
ROUNDING = 1e-9
"""Standard errors below this share of their value are what floating point leaves of differences that are all alike."""

Key = TypeVar("Key", bound=Hashable)
Value = float | tuple[float, float]
"""What a model got on a document, or a sum over its words or bytes and their number."""


@dataclass(frozen=True)
class Pairs:
    """What two models got on the same documents, in the same order."""

    base: Sequence[float]
    pruned: Sequence[float]
    weights: Sequence[float] | None = None
    """Words, bytes or tokens of each document that values are sums over; None where every document counts the same."""

    @property
    def right_or_wrong(self) -> bool:
        """Whether every answer is 0 or 1."""
        return self.weights is None and {*self.base, *self.pruned} <= {0, 1}


def pair(base: Mapping[Key, Value], pruned: Mapping[Key, Value], *, of: str) -> Pairs:
    """Line up what two models got on the documents of a task, by id and hash of the document.

    Raises:
        EvaluationError: there are no documents, they differ, or a value is not finite.
    """
    refuse_other_documents(base, pruned, of=of)
    if not base:
        raise EvaluationError(f"No document of {of} was answered.")
    (ours, lengths), (theirs, others) = (_columns([values[key] for key in base]) for values in (base, pruned))
    if lengths != others:
        raise EvaluationError(f"The documents of {of} have other lengths for the pruned model than for the base.")
    if not all(map(math.isfinite, (*ours, *theirs, *(lengths or ())))):
        raise EvaluationError(f"A document of {of} has a value that is no finite number.", hint="Try --dtype float32.")
    return Pairs(ours, theirs, lengths)


def refuse_other_documents(base: Mapping[Key, object], pruned: Mapping[Key, object], *, of: str) -> None:
    """Make sure that both models answered the same documents of a task.

    Raises:
        EvaluationError: they did not, with how many are only in one.
    """
    if base.keys() != pruned.keys():
        raise EvaluationError(
            f"Base and pruned answered different documents of {of}: {len(base.keys() - pruned.keys())} only by the "
            f"base, {len(pruned.keys() - base.keys())} only by the pruned model.",
            hint="Does the task draw its documents at random?",
        )


def _columns(values: Sequence[Value]) -> tuple[tuple[float, ...], tuple[float, ...] | None]:
    """Part sums from the lengths that they are over."""
    plain = tuple(v for v in values if not isinstance(v, tuple))
    if len(plain) == len(values):
        return plain, None
    sums = [v if isinstance(v, tuple) else (v, 1.0) for v in values]
    return tuple(v for v, _ in sums), tuple(length for _, length in sums)


def difference(pairs: Pairs) -> Estimate:
    """Estimate the mean of pruned minus base: per document, or per word, byte or token where there are weights.

    With weights w it is sum(d) / sum(w), and its error that of a ratio of sums: of the residuals d - w x mean (Cochran,
    Sampling Techniques, 1977, chapter 6).  Without weights this is the standard error of a mean.

    Of accuracies, the interval is Wald's with half a document added to each of the four outcomes (Agresti and Min,
    Statistics in Medicine 24, 2005): Wald's own has no width where the models never disagree, and is too narrow where
    they seldom do.
    """
    value, error, documents = _rate(pairs)
    if pairs.right_or_wrong:
        from scipy.special import ndtri

        lost, won = discordant(pairs)
        centre = (won - lost) / (documents + 2)
        spread = math.sqrt(won + lost + 1 - centre * (won - lost)) / (documents + 2)
        reach = float(ndtri((1 + CONFIDENCE) / 2)) * spread
        low, high = max(-1.0, centre - reach), min(1.0, centre + reach)
        return Estimate(value=value, standard_error=error, low=low, high=high)
    if not error:
        return Estimate(value=value, standard_error=error)
    from scipy.special import stdtrit

    reach = float(stdtrit(documents - 1, (1 + CONFIDENCE) / 2)) * error
    return Estimate(value=value, standard_error=error, low=value - reach, high=value + reach)


def share_of_loss(lost: Sequence[float], back: Sequence[float]) -> Estimate | None:
    """Estimate which share of a loss came back, from what every document lost and what came back of it.

    The interval is that of Fieller (Biometrics 10, 1954) for a ratio of two means of the same documents.  None where
    the loss is not clearly above 0: any share would do then.
    """
    from scipy.special import stdtrit

    count = len(lost)
    if count < 2:
        return None
    below, above = math.fsum(lost) / count, math.fsum(back) / count
    pairs = [(one - below, other - above) for one, other in zip(lost, back, strict=True)]
    scale = count * (count - 1)
    lost_error, back_error = (math.fsum(d[i] ** 2 for d in pairs) / scale for i in (0, 1))
    both = math.fsum(one * other for one, other in pairs) / scale
    reach = float(stdtrit(count - 1, (1 + CONFIDENCE) / 2)) ** 2
    rest = below**2 - reach * lost_error
    if below <= 0 or rest <= 0:
        return None
    # The ends are where (above - share x below)^2 is `reach` times its variance.
    centre = below * above - reach * both
    spread = math.sqrt(max(0.0, centre**2 - rest * (above**2 - reach * back_error)))
    return Estimate(value=above / below, low=(centre - spread) / rest, high=(centre + spread) / rest)


def _rate(pairs: Pairs) -> tuple[float, float | None, int]:
    """Return the mean difference, its standard error, and the number of documents."""
    changes = [pruned - base for base, pruned in zip(pairs.base, pairs.pruned, strict=True)]
    weights = pairs.weights or [1.0] * len(changes)
    count, total = len(changes), math.fsum(weights)
    value = math.fsum(changes) / total
    if count < 2:
        return value, None, count
    squares = math.fsum((change - value * weight) ** 2 for change, weight in zip(changes, weights, strict=True))
    error = math.sqrt(count / (count - 1) * squares) / total
    return value, error if error > ROUNDING * abs(value) else 0.0, count


def combine(estimates: Sequence[Estimate], weights: Sequence[float]) -> Estimate:
    """Estimate a weighted sum of quantities whose errors are independent of each other.

    Errors add in squares, and so do the distances from values to interval ends (the MOVER of Zou and Donner, Statistics
    in Medicine 27, 2008).  Of estimates without an error the sum has none.
    """
    parts = [estimate.affine(times=weight) for estimate, weight in zip(estimates, weights, strict=True)]
    value = math.fsum(part.value for part in parts)
    errors = [part.standard_error for part in parts if part.standard_error is not None]
    below = [part.value - part.low for part in parts if part.low is not None]
    above = [part.high - part.value for part in parts if part.high is not None]
    return Estimate(
        value=value,
        standard_error=math.hypot(*errors) if len(errors) == len(parts) else None,
        low=value - math.hypot(*below) if len(below) == len(parts) else None,
        high=value + math.hypot(*above) if len(above) == len(parts) else None,
    )


def as_ratio(nats: Estimate) -> Estimate:
    """Turn a difference of log perplexities into the ratio of the perplexities; the error is that of a product.

    A ratio beyond `LARGEST`, or below its inverse, is told as that.
    """
    ends = (nats.value, nats.low, nats.high)
    value, low, high = (None if n is None else perplexity_of(n) if n > 0 else 1 / perplexity_of(-n) for n in ends)
    value = value or 0.0
    bounded = value in (LARGEST, 1 / LARGEST)
    error = None if bounded or nats.standard_error is None else value * nats.standard_error
    return Estimate(value=value, standard_error=error, low=low, high=high)


def discordant(pairs: Pairs) -> tuple[int, int]:
    """Count the documents that the base alone got right, and those that the pruned model alone did."""
    outcomes = list(zip(pairs.base, pairs.pruned, strict=True))
    return outcomes.count((1, 0)), outcomes.count((0, 1))


def mcnemar(lost: int, won: int) -> float:
    """Return the p value of McNemar's exact two-sided test: a lost document is as likely as a won one."""
    from scipy.special import bdtr

    # Half and half is symmetric: both tails are alike, and where they meet, they are all there is.
    return min(1.0, 2 * float(bdtr(min(lost, won), lost + won, 0.5))) if lost + won else 1.0


def t_test(pairs: Pairs) -> float | None:
    """Return the two-sided p value of a mean difference of zero; None where all differences are alike and not 0."""
    from scipy.special import stdtr

    value, error, documents = _rate(pairs)
    if not error:
        return 1.0 if value == 0 and error is not None else None
    return float(2 * stdtr(documents - 1, -abs(value / error)))


def normal_test(estimate: Estimate) -> float | None:
    """Return the two-sided p value of an estimate of zero by its standard error; None where it has none."""
    from scipy.special import ndtr

    if not estimate.standard_error:
        return 1.0 if estimate.value == 0 and estimate.standard_error is not None else None
    return float(2 * ndtr(-abs(estimate.value / estimate.standard_error)))


def at_chance(right: int, *, documents: int, chance: float) -> bool:
    """Tell whether an accuracy is not above that of guessing: exact one-sided binomial test at 5 %."""
    from scipy.special import bdtrc

    # bdtrc is the chance of more right answers than its first argument; of more than -1 it says nothing.
    return right == 0 or bool(bdtrc(right - 1, documents, chance) >= SIGNIFICANCE)


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Adjust p values so that the chance of any false alarm among them stays below the level (Holm, 1979)."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return tuple(adjusted)


Scale = Literal["mean", "perplexity", "bits"]
"""What the mean over documents becomes: itself, exp(-mean), or -mean in bits."""


def compare_pairs(tasks: Sequence[Pairs], *, scale: Scale, chance: float | None = None) -> PairedComparison:
    """Compare what two models got on the documents of a task, or of a group whose metric is the mean over its tasks.

    `scale` is that of the metric, `chance` the accuracy of guessing where documents are right or wrong; None for none.
    """
    if len(tasks) > 1:
        even = combine([difference(pairs) for pairs in tasks], [1 / len(tasks)] * len(tasks))
        return PairedComparison(difference=even, test="normal", p_value=normal_test(even))
    (pairs,) = tasks
    if scale == "mean" and pairs.right_or_wrong:
        lost, won = discordant(pairs)
        guessing = tuple(
            name
            for name, answers in (("base", pairs.base), ("pruned", pairs.pruned))
            if chance is not None and at_chance(round(sum(answers)), documents=len(answers), chance=chance)
        )
        row = {"lost": lost, "won": won, "test": "mcnemar", "p_value": mcnemar(lost, won), "at_chance": guessing}
        return PairedComparison.model_validate(row | {"difference": difference(pairs)})
    found, p_value = difference(pairs), t_test(pairs)
    if scale == "perplexity":
        return PairedComparison(ratio=as_ratio(found.affine(times=-1)), test="t", p_value=p_value)
    own = found if scale == "mean" else found.affine(times=-1 / math.log(2))
    return PairedComparison(difference=own, test="t", p_value=p_value)


def judge(rows: Sequence[TaskComparison]) -> tuple[TaskComparison, ...]:
    """Adjust the p values of all rows for their number, and mark each row; the first row of a task is its main one."""
    main = main_rows(rows)
    adjusted: dict[tuple[str, str], float] = {}
    for family in (main, [row for row in rows if row not in main]):
        tested = {(row.task, row.metric): p for row in family if row.paired and (p := row.paired.p_value) is not None}
        adjusted |= zip(tested, holm(list(tested.values())), strict=True)
    judged = []
    for row in rows:
        p_value = adjusted.get((row.task, row.metric))
        if row.paired and p_value is not None:
            mark: Mark = "at chance" if "base" in row.paired.at_chance else "not distinguishable"
            if p_value < SIGNIFICANCE:
                mark = "better" if (row.paired.effect > 0) == row.higher_is_better else "worse"
            paired = row.paired.model_copy(update={"holm_p_value": p_value, "mark": mark})
            judged.append(row.model_copy(update={"paired": paired}))
        else:
            judged.append(row)
    return tuple(judged)


def mean_change(rows: Sequence[TaskComparison]) -> Estimate | None:
    """Estimate the mean change in points over the main metrics that are shares, every task counting the same.

    Tasks count as independent of each other.  Where a task has no value per document, the mean has no error.
    """
    changes = [
        row.paired.difference.affine(times=100)
        if row.paired and row.paired.difference
        else Estimate(value=100 * (row.pruned.value - row.base.value))
        for row in main_rows(rows)
        if row.is_share
    ]
    return combine(changes, [1 / len(changes)] * len(changes)) if changes else None
