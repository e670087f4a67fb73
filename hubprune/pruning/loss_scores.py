"""Scores that are losses: a base scored by what it loses without each of its sublayers, whole or round after round."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from hubprune.core.artifacts import LayerScores, Ranking, ScoreKind, SublayerKind
from hubprune.core.console import Advance
from hubprune.pruning.aggregation import aggregate
from hubprune.pruning.calibration import CalibrationSet
from hubprune.pruning.importance import Scoring
from hubprune.pruning.leave_one_out import LeaveOneOut
from hubprune.pruning.selection import Shape
from hubprune.pruning.variants import RANKED, Losses, scores_of, without_each


class LossScorer:
    """A base that is scored by the metric `loss` or `kl`, from any layer on, as `Scorer` does by the others.

    loss   rise of the loss without a sublayer; negative where the model is better off without it
    kl     KL(base || without it), where the base is the one that was opened, whatever is gone since

    Both are nats per token.  What is computed are the `kinds` alone, since each of them takes a run of its own.

    Raises:
        CheckpointError: the embedding does not have the tokens.
    """

    def __init__(
        self,
        folder: Path,
        calibration: CalibrationSet,
        scoring: Scoring,
        kinds: Collection[ScoreKind],
        *,
        shape: Shape,
        keeps_states: bool = False,
    ) -> None:
        """Open a base, whose shape says what it lacks already; no layer is read yet."""
        self._calibration, self._how, self._kinds = calibration, scoring, tuple(kinds)
        variants = without_each(kinds, shape.num_hidden_layers, absent=shape.absent)
        self.left_out = LeaveOneOut(
            folder, calibration, scoring, variants, in_rounds=keeps_states, to_whole=scoring.metric == "kl"
        )
        self._losses: Losses | None = None

    @property
    def layer_runs(self) -> float:
        """How often a layer was run so far, in runs over the whole calibration set."""
        return self.left_out.layer_runs

    def bypass(self, kind: SublayerKind, layer: int) -> None:
        """Let a sublayer be gone from now on."""
        self.left_out.bypass(kind, layer)

    def look_at(self, ranking: Ranking) -> None:
        """Compute only what a ranking looks at from now on."""
        self.left_out.choose(RANKED[ranking])

    def cost(self, start: int = 0) -> int:
        """Return how many batches pass a layer or the head in a run from the layer `start` on."""
        return self.left_out.cost(start)

    def run(self, advance: Advance, *, start: int = 0) -> None:
        """Compute all losses; what enters the layer `start` is as it was.

        Raises:
            ScoringError: a loss is not finite.
            CheckpointError: the weights do not fit the config.
            DiskSpaceError: the states of a single batch fit neither into memory nor into the temporary folder.
        """
        self._losses = self.left_out.run(advance, start=start)

    def scores(self) -> LayerScores:
        """Average what the last run has found.

        Raises:
            ScoringError: no document of a subset has a second token.
        """
        assert self._losses is not None
        how, documents = self._how, self._calibration.documents
        rows = scores_of(self._losses, how.metric, documents, kinds=self._kinds, layers=len(self.left_out.model))
        told = {"dtype": how.dtype, "device": how.device}
        return aggregate(rows, self._calibration.record, metric=how.metric, aggregation=how.aggregation, **told)
