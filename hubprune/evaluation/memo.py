"""What models are asked, what they answered, and the memory of it, so that nothing is computed twice.  Pure: no torch.

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
        raise EvaluationError(
            f"A log-likelihood of the {model} model is not finite.",
            hint="Try --dtype float32; if it computed in that, its logits overflow and nothing can be measured.",
        )


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
            raise EvaluationError(
                f"Cannot use the memory of answers in {self._path}: {error}.",
                hint="Delete the file, or set HUBPRUNE_HOME.",
            ) from error
