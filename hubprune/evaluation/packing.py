"""Put requests that begin alike into one row, and rows of similar length into one batch.  Pure: no torch.

The endings of a multiple-choice question follow the same context.  A row holds that context once and all endings after
it; position ids start again where an ending begins, and a mask keeps endings from seeing one another, so that every
ending is read as if it stood alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from operator import eq

from hubprune.evaluation.memo import Request

LEAST_GAIN = 8
"""Tokens that a request has to save to join a row: a mask costs time as well."""
LONGEST_ROW = 1024
"""Tokens that a row of several requests has at most, since a mask has its length squared."""
WORTHWHILE = 0.25
"""Share of the most slots from which on a batch is large enough to be closed rather than padded."""
WASTE = 0.03
"""Share of padding at which it then is."""


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
            in_common = sum(takewhile(bool, map(eq, reads[members[0]], read)))
            less = min(shared, in_common)
            before = total - (len(members) - 1) * shared
            after = total + len(read) - len(members) * less
            if after <= before + len(read) - LEAST_GAIN and after <= LONGEST_ROW:
                members, shared, total = [*members, number], less, total + len(read)
                continue
            yield members, shared
        members, shared, total = [number], len(read), len(read)
    if members:
        yield members, shared


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
