"""What models are asked: how requests share a row, and the memory of what was answered.  Pure: no torch.

The endings of a multiple-choice question follow the same context, and questions may follow the same examples.  A row
holds whatever its requests begin with in common once, as a tree: position ids start again where one of them goes its
own way, and a token sees those alone that come before it in a request, so that each is read as if it stood alone.

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
from pathlib import Path
from typing import Any

from hubprune.core.errors import EvaluationError

LEAST_GAIN = 8
"""Tokens that a request has to save to join a row: a mask costs time as well."""
LONGEST_ROW = 1024
"""Tokens that a row of several requests has at most where it is read at once, since a mask has its length squared."""
LEAST_SHARED = 256
"""Tokens that a request begins with in common with the last one of a row to make it longer, and read in pieces."""
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
    """Tokens for a model to read, and those that it is scored on."""

    context: tuple[int, ...]
    """Many requests may have the same one, which then is there once."""
    targets: tuple[int, ...]
    """The tokens that are scored; the last one is never read."""

    @classmethod
    def of(cls, context: Sequence[int], ending: Sequence[int], *, max_length: int) -> Request:
        """Take context and ending, and cut off on the left what a model has no positions for, as lm-eval does.

        Raises:
            ValueError: the context or the ending is empty, or the ending alone is longer than `max_length`.
        """
        if not context or not 0 < len(ending) <= max_length:
            raise ValueError(f"{len(context)} tokens of context and {len(ending)} of {max_length} to score")
        too_many = max(0, len(context) + len(ending) - max_length - 1)
        return cls(tuple(context[too_many:]) if too_many else tuple(context), tuple(ending))

    @property
    def tokens(self) -> tuple[int, ...]:
        """Context and ending."""
        return self.context + self.targets

    @property
    def scored(self) -> int:
        """How many of the last tokens are scored."""
        return len(self.targets)

    @property
    def read(self) -> tuple[int, ...]:
        """The tokens that go into the model."""
        return self.context + self.targets[:-1]

    def __len__(self) -> int:
        """How many tokens go into the model."""
        return len(self.context) + len(self.targets) - 1

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
    """Tokens that are read together: a tree of requests, each branch before the next one."""

    tokens: tuple[int, ...]
    positions: tuple[int, ...]
    ends: tuple[int, ...]
    """For each token the place in the row up to which those behind it see it: the end of all that begins with it."""
    members: tuple[Member, ...]

    @property
    def is_plain(self) -> bool:
        """True for a row without branches, which an ordinary causal mask is right for."""
        return min(self.ends) == len(self.tokens)

    @property
    def is_long(self) -> bool:
        """True for a row with branches whose mask would be too large, so that it is read in pieces."""
        return len(self.tokens) > LONGEST_ROW and not self.is_plain

    def __len__(self) -> int:
        return len(self.tokens)


def make_rows(requests: Sequence[Request], *, most: int = LONGEST_ROW) -> list[Row]:
    """Pack requests into rows, the longest row first.

    Requests are sorted by their tokens, so that those that begin alike are neighbours, and join the row before them
    where that saves tokens.  A row that shares a long beginning may have up to `most` tokens.
    """
    order = sorted(range(len(requests)), key=lambda n: (requests[n].context, requests[n].targets))
    return sorted((_row(members, requests) for members in _groups(order, requests, most)), key=len, reverse=True)


def halved(row: Row, requests: Sequence[Request]) -> list[Row]:
    """Take a row of several requests apart into two, which both begin with what they share."""
    members = [member.request for member in row.members]
    middle = len(members) // 2
    return [_row(part, requests) for part in (members[:middle], members[middle:])]


def _groups(order: Iterable[int], requests: Sequence[Request], most: int) -> Iterator[list[int]]:
    """Yield the requests of each row."""
    members: list[int] = []
    total = 0  # tokens of the row
    for number in order:
        length = len(requests[number])
        if members:
            shared = in_common(requests[members[-1]], requests[number])
            after = total + length - shared
            longest = most if shared >= LEAST_SHARED else LONGEST_ROW
            if shared >= LEAST_GAIN and after <= max(longest, LONGEST_ROW):
                members, total = [*members, number], after
                continue
            yield members
        members, total = [number], length
    if members:
        yield members


def in_common(one: Request, other: Request) -> int:
    """Count the tokens that two requests begin with in common, of those that are read."""
    if one.context is other.context:
        return len(one.context) + _alike(one.targets[:-1], other.targets[:-1])
    return _alike(one.read, other.read)


def _alike(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """Count equal tokens from the left, by comparing halves, since thousands are compared as fast as one."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle - 1)
    return low


def _row(members: Sequence[int], requests: Sequence[Request]) -> Row:
    tokens, positions, ends, packed = list[int](), list[int](), list[int](), list[Member]()
    path: list[int] = []  # where in the row the tokens of the last request are
    last: Request | None = None
    for number in members:
        request = requests[number]
        shared = in_common(last, request) if last else 0
        for place in path[shared:]:
            ends[place] = len(tokens)
        new = request.read[shared:]
        path[shared:] = range(len(tokens), len(tokens) + len(new))
        tokens += new
        positions += range(shared, len(request))
        ends += [0] * len(new)
        packed.append(Member(number, tuple(path[len(request) - request.scored :]), request.targets))
        last = request
    for place in path:
        ends[place] = len(tokens)
    return Row(tuple(tokens), tuple(positions), tuple(ends), tuple(packed))


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
