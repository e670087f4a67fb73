"""Artifacts of the evaluation room: benchmarks of base and pruned model, and what both write after the same prompts."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import ClassVar, Literal, Protocol, TypeVar

from hubprune.core.artifacts.base import Artifact
from hubprune.core.console import LARGEST

EvalBackend = Literal["shared", "layers", "hf"]
"""What computes log-likelihoods: one pass for all models, from memory or layer by layer from their files, or lm-eval's
own Hugging Face backend for each."""


def perplexity_of(nats: float) -> float:
    """Return the exponential of a mean negative log-likelihood, or `LARGEST` where it is larger."""
    return math.exp(nats) if nats < math.log(LARGEST) else LARGEST


SHARES = frozenset({
    "acc", "acc_norm", "exact_match", "f1", "mcc", "em", "contains",
    *(f"{level}_level_{how}_acc" for level in ("prompt", "inst") for how in ("strict", "loose")),
})  # fmt: skip
"""Metrics between 0 and 1, or -1 and 1, whose change is told in points; those of ifeval have long names."""


class Chat(Artifact):
    """That prompts went through the chat template of the base's tokenizer."""

    date: str | None = None
    """Day, as in 2026-12-31, that the template wrote into them; None where it asks for none."""


class MetricValue(Artifact):
    """A metric of one model on one task."""

    value: float
    """`LARGEST` stands for itself and for all that is larger."""
    standard_error: float | None = None

    @property
    def is_bound(self) -> bool:
        """True where the value itself is larger than can be told."""
        return abs(self.value) >= LARGEST


class OfTask(Protocol):
    """A row that belongs to a task."""

    @property
    def task(self) -> str:
        """Name of the task."""
        ...


Row = TypeVar("Row", bound=OfTask)


def main_rows(rows: Iterable[Row]) -> tuple[Row, ...]:
    """Return the first row of each task: that of its main metric."""
    seen: dict[str, Row] = {}
    for row in rows:
        seen.setdefault(row.task, row)
    return tuple(seen.values())


Mark = Literal["worse", "better", "not distinguishable", "at chance"]
"""What a comparison comes to; the rules are those of `hubprune.evaluation.compare`."""


class Estimate(Artifact):
    """A number with what is known of its error."""

    value: float
    standard_error: float | None = None
    """None where there is nothing to estimate it from: a single document, or no value per document."""
    low: float | None = None
    """Lower end of the 95 % interval."""
    high: float | None = None

    @property
    def ends(self) -> tuple[float, float] | None:
        """Both ends of the 95 % interval; None where there is none."""
        return None if self.low is None or self.high is None else (self.low, self.high)

    def affine(self, *, times: float, plus: float = 0.0) -> Estimate:
        """Return times x value + plus, with its error; `times` may be negative."""
        ends = [None if end is None else times * end + plus for end in (self.low, self.high)]
        low, high = ends if times >= 0 else reversed(ends)
        error = None if self.standard_error is None else abs(times) * self.standard_error
        return Estimate(value=times * self.value + plus, standard_error=error, low=low, high=high)


class PairedComparison(Artifact):
    """What the answers of both models to each document say about their difference."""

    difference: Estimate | None = None
    """Pruned minus base in the metric's own unit; None for perplexities, which are told as a ratio."""
    ratio: Estimate | None = None
    """Perplexity of the pruned model over the base's."""
    lost: int | None = None
    """Documents that the base got right and the pruned model wrong; None where answers are not right or wrong."""
    won: int | None = None
    """The reverse."""
    test: Literal["mcnemar", "t", "normal"]
    """Exact two-sided McNemar test, paired t-test, or a normal test of a mean over tasks of equal weight."""
    p_value: float | None
    """Of no difference, two-sided; None where the documents do not vary enough to test anything."""
    at_chance: tuple[Literal["base", "pruned"], ...] = ()
    """Whose accuracy is not above that of guessing."""
    holm_p_value: float | None = None
    """The p value after Holm's adjustment for the other metrics of its kind: main ones, or others."""
    mark: Mark | None = None
    """None where nothing could be tested."""

    @property
    def effect(self) -> float:
        """The difference, or the ratio minus one: negative where the metric went down."""
        if self.ratio is not None:
            return self.ratio.value - 1
        return self.difference.value if self.difference is not None else 0.0


class TaskComparison(Artifact):
    """One metric of one task, for both models, on the same documents."""

    task: str
    metric: str
    """As lm-eval writes it, without the filter: `acc_norm`."""
    filter: str | None = None
    """lm-eval's name for how an answer is read from a text, `strict-match`; None where it takes the answer as it is."""
    higher_is_better: bool
    documents: int
    documents_available: int
    num_fewshot: int
    requests: int | None = None
    """What each model was asked in all documents; None in older files."""
    new_tokens: int | None = None
    """Tokens that a model might write for a document; None where answers that are given are scored, and in older
    files."""
    prompt_tokens: int | None = None
    """Tokens that are read of the longest prompt with its longest answer; None where all have
    fewer than 256, and in older files."""
    prompts_cut: int = 0
    """Prompts that the model has no positions for, and whose beginning lm-eval cut off."""
    version: str
    """Task version from lm-eval."""
    dataset: str | None
    """Data set id from lm-eval's own task config."""
    dataset_config: str | None
    dataset_commit: str | None
    split: str | None
    base: MetricValue
    pruned: MetricValue
    chance: float | None = None
    """Accuracy of guessing, 1 / number of choices (k / number where k are right) averaged over the documents; None
    where there is nothing to choose from."""
    paired: PairedComparison | None = None
    """None where the metric has no value for a single document, and in older files."""

    @property
    def points(self) -> Estimate | None:
        """Pruned minus base in percentage points, with its error where it is known; None for other metrics."""
        if not self.is_share:
            return None
        if self.paired and self.paired.difference:
            return self.paired.difference.affine(times=100)
        return Estimate(value=100 * (self.pruned.value - self.base.value))

    @property
    def percent(self) -> Estimate | None:
        """Pruned over base minus one in percent, for perplexities with an interval; None where the base is 0."""
        if self.paired and self.paired.ratio:
            return self.paired.ratio.affine(times=100, plus=-100)
        if not self.base.value or self.base.is_bound or self.pruned.is_bound:
            return None
        change = 100 * (self.pruned.value / self.base.value - 1)
        return Estimate(value=change) if math.isfinite(change) else None

    @property
    def is_share(self) -> bool:
        """True for metrics between 0 and 1, whose change is told in points."""
        return self.metric in SHARES

    @property
    def is_written(self) -> bool | None:
        """Whether the models write their answers, rather than being asked how likely a given one is; None for not
        known."""
        return None if self.requests is None else self.new_tokens is not None


class SelfCheck(Artifact):
    """How far log-likelihoods of the shared evaluation are from those of lm-eval's own backend."""

    requests: int
    """Requests that went through both, for each model."""
    largest_difference: float
    """In nats."""
    tolerance: float
    """Difference from which on lm-eval's own backend is used instead."""


class BenchmarkComparison(Artifact):
    """The benchmarks of base and pruned, measured in one run."""

    tasks: tuple[TaskComparison, ...]
    """The first metric of each task is its main one."""
    limit: int | None
    """Documents per task at most; None for all."""
    chat: Chat | None = None
    """None where prompts were taken as the tasks write them, and in older files."""
    backend: EvalBackend = "hf"
    fallback: str | None = None
    """Why the shared evaluation was not used although it was asked for."""
    self_check: SelfCheck | None = None
    batch_size: int | None
    """Rows of a batch; None for as many as fit into memory."""
    dtype: str
    device: str
    seed: int
    lm_eval: str
    """Version of lm-eval."""
    seconds: float
    """Wall-clock time for both models, from loading them to the last metric; what was known before takes none."""
    mean_change: Estimate | None = None
    """Of the main metrics that are shares, in points, with its paired error; None in older files."""
    mean_written: Estimate | None = None
    """The same over the tasks whose answers are written; None where there is none, and in older files."""
    mean_scored: Estimate | None = None
    """The same over the tasks whose given answers are scored by their likelihood."""
    left_out: tuple[str, ...] = ()
    """A sentence for each metric that is no finite number for one of the models."""

    def main_metrics(self) -> tuple[TaskComparison, ...]:
        """The first metric of each task."""
        return main_rows(self.tasks)

    def shares(self, *, written: bool) -> tuple[TaskComparison, ...]:
        """The main metrics that are shares, of tasks whose answers are written, or are not."""
        return tuple(row for row in self.main_metrics() if row.is_share and row.is_written is written)

    @property
    def mean_points(self) -> Estimate | None:
        """Mean change in points over the tasks whose main metric is a share, with its error where it is known."""
        changes = [points.value for task in self.main_metrics() if (points := task.points)]
        if self.mean_change is not None or not changes:
            return self.mean_change
        return Estimate(value=sum(changes) / len(changes))


# ---- one text ----------------------------------------------------------------------------------------------------


class Loop(Artifact):
    """The tail of a text that is one span of tokens over and over."""

    MIN_COPIES: ClassVar[int] = 2
    MIN_TOKENS: ClassVar[int] = 16
    """Of all copies together: a refrain of a few words is no loop."""

    period: int
    """Tokens of one copy."""
    covered: int
    """Tokens of the whole tail; the copy that it begins with may lack its first tokens."""
    start: int
    """Tokens of the text before the tail."""


class Repetition(Artifact):
    """How much one text repeats itself, by its tokens; the prompt and the end-of-text token are no part of it."""

    tokens: int
    seq_rep_4: float
    """Share of 4-token sequences that occurred before, 0 to 1."""
    diversity: float
    """Product of the shares of sequences of 2, 3 and 4 tokens that did not, 0 to 1."""
    longest_repeat: int
    """Tokens of the longest span that occurs twice; both occurrences may overlap."""
    loop: Loop | None
    """None where the text does not end in one."""


class ModelText(Artifact):
    """What one model wrote after one prompt."""

    text: str
    tokens: int
    """New tokens, the end-of-text token included."""
    token_ids: tuple[int, ...]
    """New tokens without the end-of-text token."""


class ModelTexts(Artifact):
    """What one model wrote after all prompts."""

    texts: tuple[ModelText, ...]
    """In the order of the prompts."""
    batches: tuple[tuple[int, ...], ...]
    """Which prompts, counted from 0, were continued together."""
    max_new_tokens: int
    dtype: str
    device: str


# ---- two models --------------------------------------------------------------------------------------------------


class Continuation(Artifact):
    """What both models wrote after one prompt."""

    prompt: str
    base: str
    pruned: str
    base_tokens: int
    """New tokens, the end-of-text token included."""
    pruned_tokens: int
    base_repetition: Repetition | None = None
    """None in files that were written before it was measured."""
    pruned_repetition: Repetition | None = None


class PairedNumber(Artifact):
    """A number of both models over the same prompts."""

    base: float
    pruned: float
    change: Estimate
    """Pruned minus base, its interval taken from the differences at the same prompt."""


class PairedLoops(Artifact):
    """How many texts end in a loop."""

    texts: int
    """Of each model."""
    base: int
    pruned: int
    both: int
    """Prompts after which the texts of both models do."""
    change: Estimate
    """Of the share, -1 to 1, its interval taken from the prompts after which one text does and the other does not."""


class RepetitionComparison(Artifact):
    """How much both models repeat themselves: means over the prompts."""

    tokens: PairedNumber
    """Length of a text, without the end-of-text token."""
    seq_rep_4: PairedNumber
    diversity: PairedNumber
    longest_repeat: PairedNumber
    distinct_2: PairedNumber
    """Share of different ones among the 2-token sequences of all texts taken together, which has no interval."""
    loops: PairedLoops


class GenerationComparison(Artifact):
    """Free text of base and pruned on the same prompts."""

    continuations: tuple[Continuation, ...]
    max_new_tokens: int
    chat: Chat | None = None
    """None where prompts were continued as they are, and in older files."""
    decoding: Literal["greedy"] = "greedy"
    dtype: str
    device: str
    batch_size: int | None = None
    """Prompts at once, at most; None in files that were written before it was kept."""
    repetition: RepetitionComparison | None = None
    """None in files that were written before it was measured."""
