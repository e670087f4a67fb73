"""Artifacts of timing, how fast one model is against its base, and of a sweep: what every number of drops costs."""

from __future__ import annotations

from typing import Literal

from hubprune.core.artifacts.base import Artifact, Environment, Metric, Ranking, SublayerKind
from hubprune.core.artifacts.evaluation import Chat, Estimate, MetricValue, perplexity_of
from hubprune.core.artifacts.pruning import DroppedSublayer
from hubprune.core.console import LARGEST

Measure = Literal["prefill", "first-token", "decode", "generation"]
"""Reading the prompt; the same until the first new token is chosen; writing new tokens; prompt and new tokens."""
Verdict = Literal["faster", "slower", "not resolved", "control failed"]
TWO_SIDED_95 = 1.96
"""Standard errors on either side of a mean that a 95 % interval takes in."""


class Interval(Artifact):
    """A median with a 95 % bootstrap interval."""

    median: float
    low: float
    high: float

    @property
    def holds_one(self) -> bool:
        """True where a ratio's interval contains 1.0."""
        return self.low <= 1.0 <= self.high


class Sdr(Artifact):
    """Speedup degradation ratio: points lost per percent of speed-up (equation 7 of arXiv 2406.15786)."""

    value: float
    low: float
    high: float


class SpeedMeasured(Artifact):
    """How fast one model is against the base in one measure, in paired rounds of one process."""

    measure: Measure = "decode"
    ratio: Interval
    """The base's seconds over the model's, round by round: above 1 the model is faster."""
    control: Interval
    """The same for the base against itself."""
    seconds: float
    """Median."""
    base_seconds: float
    tokens_per_second: float | None
    """Over the whole batch; None for the time to the first token."""
    base_tokens_per_second: float | None
    depth: int
    """Tokens in the KV cache when decoding starts, which is the length of the prompt."""
    new_tokens: int
    batch_size: int
    round_seconds: tuple[tuple[float, float, float], ...]
    """Seconds of base, base again and model in every round."""

    @property
    def rounds(self) -> int:
        """Number of rounds."""
        return len(self.round_seconds)

    @property
    def verdict(self) -> Verdict:
        """What can be said: nothing where the base differs from itself, or the ratio's interval contains 1.0."""
        if not self.control.holds_one:
            return "control failed"
        if self.ratio.holds_one:
            return "not resolved"
        return "faster" if self.ratio.median > 1 else "slower"

    @property
    def speedup_percent(self) -> float:
        """Speed-up in percent."""
        return 100 * (self.ratio.median - 1)

    def sdr(
        self, change_points: float, *, standard_error: float | None, ends: tuple[float, float] | None = None
    ) -> Sdr | None:
        """Return the speedup degradation ratio; None where no speed-up is resolved.

        Its interval spans all that the 95 % intervals of the change and of the speed-up allow together, and so covers
        at least as much.

        Args:
            change_points: mean change of the benchmarks in points.
            standard_error: of that change; with None, the interval is that of the speed-up alone.
            ends: of the change's own 95 % interval, where it has one that is not made of the standard error.
        """
        if self.verdict != "faster":
            return None
        spread = TWO_SIDED_95 * (standard_error or 0.0)
        low, high = ends or (change_points - spread, change_points + spread)
        losses = (-high, -low)
        corners = [loss / (100 * (gain - 1)) for loss in losses for gain in (self.ratio.low, self.ratio.high)]
        return Sdr(value=-change_points / self.speedup_percent, low=min(corners), high=max(corners))


# ---- what a base and its pruned checkpoint take ------------------------------------------------------------------


class KvCacheMeasured(Artifact):
    """Bytes of one sequence's KV cache, counted in the cache object and computed from config.json."""

    tokens: int
    """In the sequence."""
    base: int
    pruned: int
    base_computed: int
    pruned_computed: int

    @property
    def as_computed(self) -> bool:
        """True where both caches take what their config.json says."""
        return (self.base, self.pruned) == (self.base_computed, self.pruned_computed)


class PeakMemory(Artifact):
    """The most bytes that each of the two took, alone, for one batch of prompts and their new tokens."""

    how: Literal["allocator", "resident"]
    """`allocator`: weights and what the GPU's allocator held beside them.  `resident`: resident memory of a fresh
    process on the CPU, with libraries and loading."""
    base: int
    pruned: int
    depth: int
    new_tokens: int
    batch_size: int


class LargestBatch(Artifact):
    """The largest batches that fit, each model alone on the device; 0 where not one sequence does."""

    base: int
    pruned: int
    depth: int
    new_tokens: int
    limit: int
    """Where the search ended: a batch of this size may not be the largest."""


class BenchmarkChange(Artifact):
    """What the benchmarks lost, as the checkpoint's manifest tells it."""

    points: float
    """Mean change of the tasks' main metrics that are shares."""
    standard_error: float | None
    low: float | None = None
    """Lower end of the 95 % interval, in points."""
    high: float | None = None
    tasks: tuple[str, ...]

    @property
    def ends(self) -> tuple[float, float] | None:
        """Both ends of the interval; None where there is none."""
        return None if self.low is None or self.high is None else (self.low, self.high)


class SpeedRow(Artifact):
    """One measure at one depth, with what follows from it."""

    measured: SpeedMeasured
    verdict: Verdict
    sdr: Sdr | None
    """None where no speed-up is resolved, or no benchmarks are known."""


class SpeedReport(Artifact):
    """A base and its pruned checkpoint, timed against each other."""

    schema_version: Literal[1] = 1
    base: str
    base_commit: str | None
    pruned: str
    pruned_commit: str | None
    dropped: tuple[tuple[SublayerKind, int], ...]
    """Kind and number in the base of everything that went, in a fixed order."""
    rows: tuple[SpeedRow, ...]
    kv_cache: KvCacheMeasured
    peak_memory: PeakMemory | None
    """None where this machine does not tell."""
    largest_batch: LargestBatch | None
    """None where it was not asked for."""
    benchmarks: BenchmarkChange | None
    """None where the manifest tells of none."""
    environment: Environment
    device: str
    dtype: str
    threads: int
    """That torch computes with on the CPU."""
    attention: str
    """Attention implementation of transformers: `sdpa`, `eager`, ..."""
    seed: int
    """Of the order within a round, and of the bootstrap."""
    notes: tuple[str, ...] = ()


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
    at_chance: bool = False
    """Whether it is not above guessing, where answers are right or wrong."""


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
    takes: str | None = None
    """What the smallest count that was measured would take, where not even that keeps to the rule."""


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
    chat: Chat | None = None
    """How benchmarks were asked through the base's chat template; None where they were not."""
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
