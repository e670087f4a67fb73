"""Artifacts of a sweep: what every number of drops costs and gains."""

from __future__ import annotations

from typing import Literal

from hubprune.core.artifacts.artifact import Artifact, Metric, Ranking, SublayerKind
from hubprune.core.artifacts.environment import Environment
from hubprune.core.artifacts.evaluation import Estimate, MetricValue, perplexity_of
from hubprune.core.artifacts.pruning import DroppedSublayer
from hubprune.core.artifacts.speed import Sdr, SpeedMeasured
from hubprune.core.console import LARGEST

# ---- what one model measured -------------------------------------------------------------------------------------


class TaskAnswers(Artifact):
    """One metric of one task for one model, with its value for every document."""

    task: str
    metric: str
    is_share: bool
    """True for metrics between 0 and 1, which are told in points."""
    higher_is_better: bool
    chance: float | None
    result: MetricValue
    documents: tuple[str, ...] = ()
    """Hashes of the documents."""
    answers: tuple[float, ...] = ()
    """The metric for each document; empty where it has no value for one document alone."""


class BenchmarkAnswers(Artifact):
    """What one model answered in the benchmarks."""

    tasks: tuple[TaskAnswers, ...]
    """The first metric of each task is its main one."""
    lm_eval: str
    """Version of lm-eval."""
    device: str
    dtype: str


class PerplexityAnswers(Artifact):
    """How surprised one model was by each document."""

    nats: tuple[float, ...]
    """Negative log-likelihood of a document's tokens after the first, summed."""
    tokens: tuple[int, ...]
    """Tokens of a document after the first."""

    @property
    def nats_per_token(self) -> float:
        """Mean over all tokens of all documents."""
        return sum(self.nats) / sum(self.tokens)

    @property
    def perplexity(self) -> float | None:
        """Its exponential; None where that is too large to write down."""
        found = perplexity_of(self.nats_per_token)
        return found if found < LARGEST else None


class HeldOutDocuments(Artifact):
    """What perplexity is measured on, as token ids."""

    name: str
    """Of the mix or file."""
    documents: tuple[tuple[int, ...], ...]
    left_out: int
    """Documents that were drawn and are not used, since the base was scored on them."""
    sha256: str
    """Over all token ids."""


# ---- the sweep ---------------------------------------------------------------------------------------------------


class SweepTask(Artifact):
    """The main metric of one task at one point."""

    task: str
    metric: str
    value: float
    change_points: Estimate | None
    """None for metrics that are not shares."""


class SweepPoint(Artifact):
    """What so many drops of one method cost and gain."""

    method: Ranking
    count: int
    dropped: tuple[tuple[SublayerKind, int], ...]
    """Kind and original number of everything that goes, in a fixed order."""
    parameters: int
    """That are left."""
    mean: float | None
    """Mean of the tasks' main metrics that are shares, in percent."""
    mean_change: Estimate | None
    """Its difference to the base in points."""
    tasks: tuple[SweepTask, ...]
    perplexity: float | None
    perplexity_change: Estimate | None
    """Perplexity over the base's minus one, in percent."""
    speed: SpeedMeasured | None

    @property
    def sdr(self) -> Sdr | None:
        """Speedup degradation ratio of decoding; None where no speed-up is resolved, or no benchmarks were run."""
        if not self.speed or not self.mean_change:
            return None
        change = self.mean_change
        return self.speed.sdr(change.value, standard_error=change.standard_error, ends=change.ends)


class SweepOrder(Artifact):
    """In which order a method drops; every point takes a beginning of it."""

    method: Ranking
    dropped: tuple[DroppedSublayer, ...]
    """The first to go first; a layer that goes whole is two entries of the same rank."""


class Recommendation(Artifact):
    """The count that the rule of a sweep picks for a method."""

    method: Ranking
    count: int
    """0 where no count keeps to the rule."""
    reason: str
    """The rule with the numbers that decided."""
    command: str | None
    """What to run next; None where nothing is to be dropped."""


class SweepReport(Artifact):
    """A whole sweep."""

    schema_version: Literal[1] = 1
    base: str
    commit: str | None
    base_parameters: int
    num_hidden_layers: int
    absent: tuple[tuple[SublayerKind, int], ...]
    """Sublayers that the base lacks already."""
    metric: Metric
    """What was ranked by."""
    seed: int
    mix: str | None
    """Name of the calibration mix; None where no scores were needed."""
    tasks: tuple[str, ...]
    limit: int | None
    """Documents per task at most."""
    chance: float | None
    """Mean of guessing over the tasks in percent, where all of them have it."""
    perplexity_on: str | None
    """What the perplexity was measured on."""
    orders: tuple[SweepOrder, ...]
    points: tuple[SweepPoint, ...]
    rule: str
    recommendations: tuple[Recommendation, ...]
    environment: Environment
    device: str
    dtype: str
    note: str = (
        "Measured on the base in memory with its sublayers bypassed: numbers to choose by. "
        "Those of a published card come from the written and reloaded folder."
    )
