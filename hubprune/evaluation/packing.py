"""Put requests that begin alike into one row, and rows of similar length into one batch.  Pure: no torch.

The endings of a multiple-choice question follow the same context.  A row holds that context once and all endings after
it; position ids start again where an ending begins, and a mask keeps endings from seeing one another, so that every
ending is read as if it stood alone.

Run a model over rows in batches that fit into memory, however little of it there is.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from operator import eq
from typing import TypeVar

from hubprune.core.errors import EvaluationError
from hubprune.evaluation.models import is_memory_error, release_memory

__all__ = [
    "Answer", "Batches", "Member", "Request", "Row", "alone", "batches", "make_rows", "refuse_not_finite",
    "run_batches", "similar_length", "slots",
]  # fmt: skip


# ---- packing -------------------------------------------------------------------------------------------------------


LEAST_GAIN = 8
"""Tokens that a request has to save to join a row: a mask costs time as well."""
LONGEST_ROW = 1024
"""Tokens that a row of several requests has at most, since a mask has its length squared."""
WORTHWHILE = 0.25
"""Share of the most slots from which on a batch is large enough to be closed rather than padded."""
WASTE = 0.03
"""Share of padding at which it then is."""


@dataclass(frozen=True)
class Request:
    """Tokens for a model to read, and how many of the last ones it is scored on."""

    tokens: tuple[int, ...]
    """Context and ending; the last token is scored and never read."""
    scored: int

    @classmethod
    def of(cls, context: Sequence[int], ending: Sequence[int], *, max_length: int) -> Request:
        """Join context and ending, and cut off on the left what a model has no positions for, as lm-eval does.

        Raises:
            ValueError: the context or the ending is empty, or the ending alone is longer than `max_length`.
        """
        if not context or not 0 < len(ending) <= max_length:
            raise ValueError(f"{len(context)} tokens of context and {len(ending)} of {max_length} to score")
        return cls((*context, *ending)[-(max_length + 1) :], len(ending))

    @property
    def read(self) -> tuple[int, ...]:
        """The tokens that go into the model."""
        return self.tokens[:-1]

    @property
    def targets(self) -> tuple[int, ...]:
        """The tokens that are scored."""
        return self.tokens[-self.scored :]

    @property
    def key(self) -> bytes:
        """SHA-256 of what the model reads and is scored on."""
        return hashlib.sha256(struct.pack(f"<I{len(self.tokens)}I", self.scored, *self.tokens)).digest()


@dataclass(frozen=True)
class Answer:
    """What one model says of one request."""

    log_likelihood: float
    """Of all targets together, in nats."""
    is_greedy: bool
    """Whether each target is the most likely token."""


def refuse_not_finite(log_likelihoods: Iterable[float], *, model: str) -> None:
    """Raise EvaluationError where a log-likelihood is NaN or infinite; very small ones are results."""
    if not all(map(math.isfinite, log_likelihoods)):
        raise EvaluationError(
            f"A log-likelihood of the {model} model is not finite.",
            hint="Try --dtype float32; if it computed in that, its logits overflow and nothing can be measured.",
        )


@dataclass(frozen=True)
class Member:
    """One request of a row."""

    request: int
    """Its number in the list that was packed."""
    places: tuple[int, ...]
    """Where in the row the hidden states are that predict its targets."""
    targets: tuple[int, ...]


@dataclass(frozen=True)
class Row:
    """Tokens that are read together."""

    tokens: tuple[int, ...]
    positions: tuple[int, ...]
    branches: tuple[int, ...]
    """0 for the shared beginning, n for the n-th ending, which sees the beginning and itself."""
    members: tuple[Member, ...]

    @property
    def is_plain(self) -> bool:
        """True for a row without endings apart, which an ordinary causal mask is right for."""
        return not self.branches[-1]

    def __len__(self) -> int:
        return len(self.tokens)


def make_rows(requests: Sequence[Request]) -> list[Row]:
    """Pack requests into rows, the longest row first.

    Requests are sorted by their tokens, so that those that begin alike are neighbours, and join the row before them
    where that saves tokens.
    """
    reads = [request.read for request in requests]
    order = sorted(range(len(requests)), key=reads.__getitem__)
    rows = [_row(members, shared, reads, requests) for members, shared in _groups(order, reads)]
    return sorted(rows, key=len, reverse=True)


def alone(row: Row, requests: Sequence[Request]) -> list[Row]:
    """Take a row apart into one for each request."""
    reads = [request.read for request in requests]
    return [_row([member.request], len(reads[member.request]), reads, requests) for member in row.members]


def _groups(order: Iterable[int], reads: Sequence[tuple[int, ...]]) -> Iterator[tuple[list[int], int]]:
    """Yield lists of requests with the number of tokens that all of them begin with."""
    members: list[int] = []
    shared = total = 0  # tokens in common, and tokens of all members together
    for number in order:
        read = reads[number]
        if members:
            less = min(shared, _common(reads[members[0]], read))
            before = total - (len(members) - 1) * shared
            after = total + len(read) - len(members) * less
            if after <= before + len(read) - LEAST_GAIN and after <= LONGEST_ROW:
                members, shared, total = [*members, number], less, total + len(read)
                continue
            yield members, shared
        members, shared, total = [number], len(read), len(read)
    if members:
        yield members, shared


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Count the tokens that two sequences begin with."""
    return sum(takewhile(bool, map(eq, one, other)))


def _row(members: Sequence[int], shared: int, reads: Sequence[tuple[int, ...]], requests: Sequence[Request]) -> Row:
    tokens, positions = [*reads[members[0]][:shared]], [*range(shared)]
    branches = [0] * shared
    starts: dict[tuple[int, ...], int] = {}
    packed = []
    for number in members:
        read, scored = reads[number], requests[number].scored
        tail = read[shared:]
        if tail and tail not in starts:
            starts[tail] = len(tokens)
            tokens += tail
            positions += range(shared, len(read))
            branches += [len(starts)] * len(tail)
        offset = starts.get(tail, shared) - shared
        places = (p if p < shared else p + offset for p in range(len(read) - scored, len(read)))
        packed.append(Member(number, tuple(places), requests[number].targets))
    return Row(tuple(tokens), tuple(positions), tuple(branches), tuple(packed))


def slots(rows: Sequence[Row]) -> int:
    """Count the tokens of a batch with its padding."""
    return len(rows) * max(map(len, rows), default=0)


def batches(rows: Iterable[Row], *, most_slots: int, most_rows: int | None = None) -> Iterator[list[Row]]:
    """Yield batches of rows that come longest first.

    A batch ends where it would have more than `most_slots` tokens, or more than `most_rows` rows, or where it is worth
    its while already and would be padded by more than WASTE.  A longer row is a batch of its own.
    """
    batch: list[Row] = []
    real = 0
    for row in rows:
        if batch:
            padded = (len(batch) + 1) * len(batch[0])
            full = padded > most_slots or len(batch) == most_rows
            wasteful = slots(batch) >= WORTHWHILE * most_slots and padded > (real + len(row)) * (1 + WASTE)
            if full or wasteful:
                yield batch
                batch, real = [], 0
        batch.append(row)
        real += len(row)
    if batch:
        yield batch


# ---- batching ------------------------------------------------------------------------------------------------------


Result = TypeVar("Result")
Batch = tuple[int, ...]
"""Indices of rows that are run together."""
Batches = tuple[Batch, ...]


def similar_length(lengths: Sequence[int], *, tokens: int | None = None, rows: int | None = None) -> Batches:
    """Put rows of similar length together, so that little of a batch is padding; the longest come first.

    A batch has one row, or as many as take at most `tokens` tokens once all are padded to the longest of them, and
    `rows` at most.
    Where memory is too small, the longest rows tell at once.
    """
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        members = len(batches[-1]) if batches else 0
        if members and members != rows and (tokens is None or (members + 1) * lengths[batches[-1][0]] <= tokens):
            batches[-1].append(i)
        else:
            batches.append([i])
    return tuple(map(tuple, batches))


def run_batches(
    batches: Batches, work: Callable[[Batch], Sequence[Result]], *, on_split: Callable[[int], None]
) -> tuple[list[Result], Batches]:
    """Run all batches, with fewer rows at a time from where memory ran out on.

    Args:
        batches: every row from 0 on in exactly one of them.
        work: returns one result per row of a batch.
        on_split: told the number of rows that a batch has from now on at most.

    Returns:
        The results in the order of the rows, and the batches that they come from.

    Raises:
        RuntimeError: whatever `work` raises; that memory ran out only where it did for a single row.
    """
    waiting, done = list(batches), []
    results: dict[int, Result] = {}
    while waiting:
        found = _attempt(work, waiting[0])
        if found is None:
            rows = (len(waiting[0]) + 1) // 2
            waiting = list(_split(waiting, rows=rows))
            on_split(rows)
            continue
        results.update(zip(waiting[0], found, strict=True))
        done.append(waiting.pop(0))
    return [results[i] for i in range(len(results))], tuple(done)


def _attempt(work: Callable[[Batch], Sequence[Result]], batch: Batch) -> Sequence[Result] | None:
    """Run a batch; None where memory ran out, and what it held is free again."""
    try:
        return work(batch)
    except RuntimeError as error:
        if len(batch) == 1 or not is_memory_error(error):
            raise
    # Here the error is gone, and with its traceback the tensors of the frames that it came through.
    release_memory()
    return None


def _split(batches: Iterable[Batch], *, rows: int) -> Iterable[Batch]:
    for batch in batches:
        yield from (batch[start : start + rows] for start in range(0, len(batch), rows))
