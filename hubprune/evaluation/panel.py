"""Several variants of a model that answer the same requests: from memory, together, or one by one.

Whatever is asked of one of them is computed for all that have not answered it yet, since that costs far less than to
compute it again later.  Before the first batch, a few requests go through lm-eval's own backend as well; where the two
differ by more than rounding, everything does.

Remember what each model answered, request by request, so that nothing is computed twice.

A request is known by the tokens that the model reads, after they were cut to its length.  So answers outlive another
limit, another list of tasks and a run that was killed, and a re-publish finds those of its base.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubprune.core.artifacts import EvalBackend, SelfCheck
from hubprune.core.console import Advance, Reporter
from hubprune.core.errors import EvaluationError
from hubprune.evaluation.language_model import Prompt
from hubprune.evaluation.layer_tree import why_not
from hubprune.evaluation.packing import Answer, Request

if TYPE_CHECKING:
    from hubprune.evaluation.computing import Computing, Names

__all__ = ["Memo", "Panel"]


# ---- panel ---------------------------------------------------------------------------------------------------------


CHECKED_PAIRS = 4
"""Neighbours in the order of their tokens that are compared with lm-eval's backend: two that often share a row."""
CHECKED_SHARE = 100
"""At most one in so many requests is compared, but two in any case."""
EXACT, COARSE = 1e-3, 0.5
"""Largest difference of a log-likelihood in nats, in float32 and in half precision.  In half precision lm-eval's own
backend differs from itself by 0.2 between batch sizes."""
PIECE = 256
"""Requests after which what lm-eval's backend computed is kept."""
TEXTS_AT_ONCE = 64
"""Texts after which what was written is kept."""


class Panel:
    """Variants of one model with the memory of what they answered.

    Args:
        models: what computes.
        identities: what stands for each variant in the memory, by name.
        memo: the memory.
        backend: what is to compute log-likelihoods.
        reporter: told of progress.
    """

    def __init__(
        self,
        models: Computing,
        *,
        identities: Mapping[str, str],
        memo: Memo,
        backend: EvalBackend,
        reporter: Reporter,
    ) -> None:
        self._models, self._variants, self._asked_backend = models, models.variants, backend
        self._identities, self._memo, self._reporter = identities, memo, reporter
        self.language_models = models.language_models
        """What `lm_eval.evaluate` takes, by name."""
        for model in self.language_models.values():
            model.panel = self
        self._checked: set[str] = set()
        self.fallback = self._refusal() if backend == "shared" else None
        """Why lm-eval's own backend computes although it was not asked for; None where it does not."""

    @property
    def backend(self) -> EvalBackend:
        """What computes log-likelihoods."""
        return "hf" if self.fallback else self._asked_backend

    @property
    def self_check(self) -> SelfCheck | None:
        """How far the answers are from lm-eval's own; None where those were taken, or nothing was asked."""
        found = [seen for name in self._variants if (seen := self._memo.check(self._model(name)))]
        if self.backend == "hf" or len(found) < len(self._variants):
            return None
        return SelfCheck(
            requests=min(requests for requests, _ in found),
            largest_difference=max(difference for _, difference in found),
            tolerance=self._tolerance,
        )

    def _refusal(self) -> str | None:
        reasons = {name: reason for name, variant in self._variants.items() if (reason := why_not(variant))}
        return next((f"the {name} model cannot be run layer by layer: {reasons[name]}" for name in reasons), None)

    @cached_property
    def _tolerance(self) -> float:
        dtypes = {str(variant.model.dtype) for variant in self._variants.values()}
        return EXACT if dtypes <= {"torch.float32", "torch.float64"} else COARSE

    def _model(self, name: str) -> str:
        """Return what a variant is called in the memory: two ways to compute agree within rounding only."""
        return f"{self._identities[name]} {self.backend}"

    # ---- log-likelihoods ---------------------------------------------------------------------------------------

    def log_likelihoods(self, name: str, requests: Sequence[Request]) -> list[Answer]:
        """Return what a variant says of each request.

        Raises:
            EvaluationError: a single request does not fit into memory, or a log-likelihood is not finite.
        """
        keys = [request.key for request in requests]
        unique = dict(zip(keys, requests, strict=True))
        if self.backend == "shared":
            self._answer_together(unique)
        if self.backend == "hf":  # from the start, or since the comparison failed
            self._answer_plainly(name, unique)
        known = self._memo.answers(self._model(name), list(unique))
        return [known[key] for key in keys]

    def _missing(self, name: str, unique: Mapping[bytes, Request]) -> frozenset[bytes]:
        return frozenset(unique.keys() - self._memo.answers(self._model(name), list(unique)).keys())

    def _answer_together(self, unique: Mapping[bytes, Request]) -> None:
        """Compute what variants have not answered yet, at once for those that lack the same."""
        groups: dict[frozenset[bytes], list[str]] = {}
        for name in self._variants:
            if missing := self._missing(name, unique):
                groups.setdefault(missing, []).append(name)
        if not groups:
            return
        self._check(list(unique.values()), {name for names in groups.values() for name in names})
        if self.fallback:
            return
        total = sum(len(missing) * len(names) for missing, names in groups.items())
        named = " and ".join(sorted(self._variants)) if len(self._variants) <= 2 else f"{len(self._variants)} variants"
        with self._reporter.progress(f"Benchmarks, {named}", total=total, unit="requests") as advance:
            for missing, names in groups.items():
                # A set has no order that a second run would find again.
                self._score(tuple(names), [unique[key] for key in sorted(missing)], advance)

    def _score(self, names: Names, requests: Sequence[Request], advance: Advance) -> None:
        for scored in self._models.score(names, requests):
            for name, answers in scored.items():
                self._memo.put_answers(self._model(name), {requests[n].key: a for n, a in answers.items()})
                advance(len(answers))

    # ---- the comparison with lm-eval ---------------------------------------------------------------------------

    def _check(self, requests: Sequence[Request], names: set[str]) -> None:
        """Compare a few answers with those of lm-eval's own backend, and fall back to it where they differ."""
        new = tuple(sorted(names - self._checked))
        if not new:
            return
        chosen = _spread(requests)
        expected = {name: self._models.plain(name, chosen) for name in new}
        self._models.share_weights()
        found: dict[str, dict[int, Answer]] = {name: {} for name in new}
        for scored in self._models.score(new, chosen):
            for name, answers in scored.items():
                found[name] |= answers
        differences = {name: _largest(found[name], expected[name]) for name in new}
        for name, difference in differences.items():
            if not difference <= self._tolerance:
                self._models.put_weights_back()
                self._fall_back(name, difference, len(chosen))
                return
            self._memo.put_check(self._model(name), len(chosen), difference)
        self._models.let_own_weights_go()
        self._checked |= names

    def _fall_back(self, name: str, difference: float, requests: int) -> None:
        self.fallback = (
            f"log-likelihoods of the {name} model differed by {difference:.2g} nats from lm-eval's own in {requests}"
            f" requests, with {self._tolerance:g} allowed"
        )
        self._reporter.warn(f"The shared evaluation is not used: {self.fallback}.")

    # ---- lm-eval's own backend ---------------------------------------------------------------------------------

    def _answer_plainly(self, name: str, unique: Mapping[bytes, Request]) -> None:
        missing = sorted(self._missing(name, unique), key=lambda key: (-len(unique[key].tokens), key))
        if not missing:
            return
        with self._reporter.progress(f"Benchmarks, {name}", total=len(missing), unit="requests") as advance:
            for start in range(0, len(missing), PIECE):
                keys = missing[start : start + PIECE]
                answers = self._models.plain(name, [unique[key] for key in keys])
                self._memo.put_answers(self._model(name), dict(zip(keys, answers, strict=True)))
                advance(len(keys))

    # ---- texts -------------------------------------------------------------------------------------------------

    def texts(self, name: str, prompts: Sequence[Prompt]) -> list[str]:
        """Return what a variant writes after each prompt; texts that are drawn at random are never remembered.

        Raises:
            EvaluationError: the model has no positions for what is asked, or not even one text fits into memory.
        """
        if any(map(self.language_models[name].is_random, prompts)):
            return self._models.draw(name, prompts)
        keys = [_prompt_key(prompt) for prompt in prompts]
        unique = dict(zip(keys, prompts, strict=True))
        known = self._memo.texts(self._model(name), list(unique))
        if missing := {key: prompt for key, prompt in unique.items() if key not in known}:
            for piece, texts in self._pieces(name, missing):
                self._memo.put_texts(self._model(name), dict(zip(piece, texts, strict=True)))
                known |= dict(zip(piece, texts, strict=True))
        return [known[key] for key in keys]

    def _pieces(self, name: str, prompts: Mapping[bytes, Prompt]) -> Iterator[tuple[list[bytes], list[str]]]:
        """Continue prompts batch by batch, those of one length together and the longest first."""
        lengths = {key: len(self.language_models[name].tok_encode(text)) for key, (text, _) in prompts.items()}
        order = sorted(prompts, key=lambda key: (json.dumps(prompts[key][1], sort_keys=True), -lengths[key], key))
        with self._reporter.progress(f"Answers in words, {name}", total=len(order), unit="requests") as advance:
            for start in range(0, len(order), TEXTS_AT_ONCE):
                piece = order[start : start + TEXTS_AT_ONCE]
                yield piece, self._models.write(name, [prompts[key] for key in piece])
                advance(len(piece))


def _spread(requests: Sequence[Request]) -> list[Request]:
    """Choose a few requests from all over: pairs of neighbours in the order of their tokens."""
    order = sorted(requests, key=lambda request: request.tokens)
    pairs = max(1, min(CHECKED_PAIRS, len(order) // (2 * CHECKED_SHARE)))
    starts = [len(order) * (2 * number + 1) // (2 * pairs) for number in range(pairs)]
    return [order[place] for place in sorted({p for s in starts for p in (s, max(0, s - 1))})]


def _largest(found: Mapping[int, Answer], expected: Sequence[Answer]) -> float:
    return max(abs(found[n].log_likelihood - answer.log_likelihood) for n, answer in enumerate(expected))


def _prompt_key(prompt: Prompt) -> bytes:
    return hashlib.sha256(json.dumps([prompt[0], prompt[1]], sort_keys=True).encode()).digest()


# ---- memo ----------------------------------------------------------------------------------------------------------


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
