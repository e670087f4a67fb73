"""What models are asked: how requests share a row, and the memory of what was answered.  Pure: no torch.

The endings of a multiple-choice question follow the same context.  A row holds that context once and all endings after
it; position ids start again where an ending begins, and a mask keeps endings from seeing one another, so that every
ending is read as if it stood alone.

A request is known by the tokens that the model reads, after they were cut to its length.  So answers outlive another
limit, another list of tasks and a run that was killed, and a re-publish finds those of its base.
"""

from __future__ import annotations

import hashlib
import math
import sqlite3
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from operator import eq
from pathlib import Path
from typing import Any

from hubprune.core.errors import EvaluationError

LEAST_GAIN = 8
"""Tokens that a request has to save to join a row: a mask costs time as well."""
LONGEST_ROW = 1024
"""Tokens that a row of several requests has at most, since a mask has its length squared."""
WORTHWHILE = 0.25
"""Share of the most slots from which on a batch is large enough to be closed rather than padded."""
WASTE = 0.03
"""Share of padding at which it then is."""
SCHEMA = """
create table if not exists answers(
    model text, request blob, nats real, greedy int, primary key(model, request)) without rowid;
create table if not exists texts(
    model text, request blob, text text, primary key(model, request)) without rowid;
create table if not exists checks(
    model text primary key, requests int, difference real) without rowid;
"""
AT_ONCE = 500
"""Keys that one query asks for."""
BUSY_SECONDS = 60.0
"""Time that another run may take to write."""


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
        hint = "Try --dtype float32; if it computed in that, its logits overflow and nothing can be measured."
        raise EvaluationError(f"A log-likelihood of the {model} model is not finite.", hint=hint)


@dataclass(frozen=True)
class Member:
    """One request of a row."""

    request: int
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


# ---- the memory -----------------------------------------------------------------------------------------------------


class Memo:
    """Answers by model and request, in a file that several runs may use at once.

    `model` is whatever tells apart models that may answer differently: weights, dtype, machine, versions.

    Raises:
        EvaluationError: the file cannot be written, or is none of ours.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        with self._told():
            if path:
                path.parent.mkdir(parents=True, exist_ok=True)
            # Each statement is its own transaction: what was put is there after the process is killed.
            self._db = sqlite3.connect(path or ":memory:", timeout=BUSY_SECONDS, isolation_level=None)
            self._db.execute("pragma journal_mode = wal")
            self._db.execute("pragma synchronous = normal")
            self._db.executescript(SCHEMA)

    def answers(self, model: str, requests: Sequence[bytes]) -> dict[bytes, Answer]:
        """Return the known answers of a model, by the keys of their requests."""
        rows = self._rows("select request, nats, greedy from answers", model, requests)
        return {bytes(key): Answer(nats, bool(greedy)) for key, nats, greedy in rows}

    def put_answers(self, model: str, answers: Mapping[bytes, Answer]) -> None:
        """Keep answers of a model."""
        rows = [(model, key, answer.log_likelihood, answer.is_greedy) for key, answer in answers.items()]
        self._insert("insert or replace into answers values(?, ?, ?, ?)", rows)

    def texts(self, model: str, requests: Sequence[bytes]) -> dict[bytes, str]:
        """Return what a model is known to have written, by the keys of the requests."""
        return {bytes(key): text for key, text in self._rows("select request, text from texts", model, requests)}

    def put_texts(self, model: str, texts: Mapping[bytes, str]) -> None:
        """Keep what a model wrote."""
        self._insert("insert or replace into texts values(?, ?, ?)", [(model, k, text) for k, text in texts.items()])

    def check(self, model: str) -> tuple[int, float] | None:
        """Return how many answers of a model were compared with lm-eval's own, and how far they differed."""
        with self._told():
            found = self._db.execute("select requests, difference from checks where model = ?", [model]).fetchone()
        return (int(found[0]), float(found[1])) if found else None

    def put_check(self, model: str, requests: int, difference: float) -> None:
        """Keep the outcome of such a comparison."""
        self._insert("insert or replace into checks values(?, ?, ?)", [(model, requests, difference)])

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    def _rows(self, query: str, model: str, requests: Sequence[bytes]) -> Iterator[tuple[Any, ...]]:
        for start in range(0, len(requests), AT_ONCE):
            keys = requests[start : start + AT_ONCE]
            marks = ", ".join("?" * len(keys))
            with self._told():
                yield from self._db.execute(f"{query} where model = ? and request in ({marks})", [model, *keys])

    def _insert(self, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
        with self._told():
            self._db.execute("begin")
            try:
                self._db.executemany(statement, rows)
            except BaseException:
                self._db.execute("rollback")
                raise
            self._db.execute("commit")

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Tell of a file that broke, on a full disk for example."""
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            message = f"Cannot use the memory of answers in {self._path}: {error}."
            raise EvaluationError(message, hint="Delete the file, or set HUBPRUNE_HOME.") from error
