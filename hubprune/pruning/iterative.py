"""Drop one thing after the other, with new scores in between.

In every round the first of a ranking goes, and the base is scored again without it: from the layer on that lost
something, since what enters that layer is as before.  So the states that enter every layer are kept, and the weights of
the layers below are not read again.  Where attentions and MLPs are both asked for, all attentions go first.

Every round is a stage of its own, whose key holds the rounds before it: a run that was stopped goes on with the round
that it was in, after one pass to make the states anew, and one that asks for more rounds takes over what is done.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from hubprune.core.amounts import count_of
from hubprune.core.artifacts import Artifact, DroppedSublayer, DropPlan, LayerScores, Margin, Ranking
from hubprune.core.console import Reporter, duration
from hubprune.core.errors import DiskSpaceError, PlanError
from hubprune.core.files import StageStore, key_of
from hubprune.core.specs import DropSpec
from hubprune.pruning.selection import OWN, Shape, by_hand, check_request, droppable, finish, margin, ranked, rows_of

if TYPE_CHECKING:
    from hubprune.pruning.importance import Scorer
    from hubprune.pruning.loss_scores import LossScorer

    OpenScorer = Callable[[], Scorer | LossScorer]


class Round(Artifact):
    """What one round takes away, by scores that know of all rounds before it."""

    dropped: tuple[DroppedSublayer, ...]
    margin: Margin | None = None
    """To the first that this round keeps; None where nothing is left to keep."""


def drop_in_rounds(
    drop: DropSpec, shape: Shape, *, open_scorer: OpenScorer, store: StageStore, key: str, reporter: Reporter
) -> tuple[LayerScores, DropPlan]:
    """Select what goes, one round after the other.

    The first scores, those of the whole base, are kept in the store under the key, and so is every round.  The scorer
    has to keep its states, and reads weights when it is asked to run only.

    Returns:
        The scores of the whole base, and the plan.

    Raises:
        PlanError: the request does not fit the base, or the rounds leave no attention or no MLP.
        DiskSpaceError: there is no room for the states that enter every layer.
    """
    check_request(drop, shape)
    iteration = Iteration(drop, shape, open_scorer=open_scorer, reporter=reporter)
    first = store.run("scores", key, LayerScores, iteration.scores)
    named = by_hand(drop, first, shape)
    iteration.take(named)
    rounds_key = key_of(key, drop.by_hand, drop.protect, shape.absent, shape.saved and sorted(shape.saved.items()))
    # What each round takes its first from, attentions before MLPs.
    counts = {ranking: count_of(amount, of=shape.count(ranking)) for ranking, amount in drop.amounts.items()}
    order = [ranking for ranking, count in counts.items() for _ in range(count)]
    dropped, margins, seconds = list(named), dict[Ranking, Margin | None](), 0.0
    for number, ranking in enumerate(order, start=1):
        find = partial(iteration.next_round, ranking, number=number, of=len(order))
        step = store.run("rounds", key_of(rounds_key, order[:number]), Round, find)
        iteration.take(step.dropped)
        for row in step.dropped:
            reporter.note(f"round {number}: the {OWN[row.kind]} of layer {row.layer} goes, S = {row.score:.6f}")
        dropped += step.dropped
        margins[step.dropped[0].ranking] = step.margin  # the last one of every ranking counts
        seconds += store.seconds["rounds"]
    store.seconds["rounds"] = round(seconds, 2)
    plan = finish(drop, dropped, shape, margins=[m for m in margins.values() if m is not None], metric=first.metric)
    return first, plan.model_copy(update={"schedule": "iterative"})


class Iteration:
    """A base on its way down: what is gone already, and the scores of what is left."""

    def __init__(self, drop: DropSpec, shape: Shape, *, open_scorer: OpenScorer, reporter: Reporter) -> None:
        """Begin with the whole base; the scorer, which has to keep its states, is opened when scores are asked for."""
        self._drop, self._shape, self._open, self._reporter = drop, shape, open_scorer, reporter
        self._scorer: Scorer | LossScorer | None = None
        self._gone: list[DroppedSublayer] = []
        self._stale_from: int | None = 0
        self._seconds: list[float] = []

    def scores(self, what: str = "scoring", ranking: Ranking | None = None) -> LayerScores:
        """Score what is left, for one ranking or for all; only layers that a change can have reached are run again.

        Raises:
            ScoringError: a score is not finite.
            DiskSpaceError: there is no room for the states that enter every layer.
        """
        if self._scorer is None:
            try:
                self._scorer = self._open()
            except DiskSpaceError as error:
                raise DiskSpaceError(
                    f"{error.message} An iterative schedule keeps those that enter every layer.",
                    hint="Set TMPDIR to a folder with more room, lower --num-samples, or pass --schedule one-shot.",
                ) from error
            for row in self._gone:
                self._scorer.bypass(row.kind, row.layer)
            self._stale_from = 0
        if ranking:
            self._scorer.look_at(ranking)
        if self._stale_from is not None:
            start, begun = self._stale_from, time.monotonic()
            with self._reporter.progress(what, total=self._scorer.cost(start), unit="batches") as advance:
                self._scorer.run(advance, start=start)
            self._stale_from = None
            self._seconds.append(time.monotonic() - begun)
        return self._scorer.scores()

    def next_round(self, ranking: Ranking, *, number: int, of: int) -> Round:
        """Find what goes in a round, counted from 1.

        Raises:
            PlanError: nothing is left that may go.
        """
        spent, rounds = self._seconds, of - number + 1
        left_for_all = f", {duration(rounds * sum(spent) / len(spent))} left for all" if spent else ""
        scores = self.scores(f"round {number} of {of}{left_for_all}", ranking)
        gone = tuple((row.kind, row.layer) for row in self._gone)
        left = replace(self._shape, absent=(*self._shape.absent, *gone))
        order = [candidate for candidate in ranked(ranking, left, scores) if candidate.kinds]
        if not (free := droppable(order, self._drop, left)):
            raise PlanError(
                f"After {number - 1} of {of} rounds nothing is left of {self._shape.name} that may go.",
                hint="Drop less, or protect less.",
            )
        rows = rows_of(free[0], scores, rank=order.index(free[0]) + 1, in_round=number)
        return Round(dropped=tuple(rows), margin=margin(scores, *free[:2], shape=left) if len(free) > 1 else None)

    def take(self, dropped: Sequence[DroppedSublayer]) -> None:
        """Let sublayers be gone from now on.

        Raises:
            PlanError: no attention or no MLP would be left.
        """
        self._gone += dropped
        finish(self._drop, self._gone, self._shape)
        if self._scorer is None:
            return
        for row in dropped:
            self._scorer.bypass(row.kind, row.layer)
            self._stale_from = row.layer if self._stale_from is None else min(row.layer, self._stale_from)


def in_rounds(plan: DropPlan) -> DropPlan:
    """Number the rounds of a plan whose order no score can change, as with `reverse-order` and `random`."""
    steps = dict.fromkeys((row.ranking, row.rank) for row in plan.dropped if row.rank)
    numbers: dict[tuple[Ranking, int | None], int] = {step: n for n, step in enumerate(steps, start=1)}
    rows = [row.model_copy(update={"round": numbers.get((row.ranking, row.rank))}) for row in plan.dropped]
    return plan.model_copy(update={"schedule": "iterative", "dropped": tuple(rows)})
