"""Several variants of a model that answer the same requests: from memory, together, or one by one.

Whatever is asked of one of them is computed for all that have not answered it yet, since that costs far less than to
compute it again later.  Before the first batch, a few requests go through lm-eval's own backend as well; where the two
differ by more than rounding, everything does.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from hubprune.artifacts import EvalBackend, SelfCheck
from hubprune.console import Advance, Reporter
from hubprune.evaluation.language_model import PLAIN_ROWS, PanelLM, Prompt
from hubprune.evaluation.layer_tree import Variant, why_not
from hubprune.evaluation.memo import Memo
from hubprune.evaluation.models import shrinking
from hubprune.evaluation.packing import Answer, Request
from hubprune.evaluation.scorer import Scorer

__all__ = ["Panel", "PanelSettings"]

CHECKED_PAIRS = 4
"""Neighbours in the order of their tokens that are compared with lm-eval's backend: two that often share a row."""
CHECKED_SHARE = 50
"""At most one in so many requests is compared, but two in any case."""
EXACT, COARSE = 1e-3, 0.5
"""Largest difference of a log-likelihood in nats, in float32 and in half precision.  In half precision lm-eval's own
backend differs from itself by 0.2 between batch sizes."""
PIECE = 256
"""Requests after which what lm-eval's backend computed is kept."""
TEXT_SLOTS = 16384
"""Tokens of a batch of texts that are written at once, those to come included."""
TEXT_ROWS = 64

Names = tuple[str, ...]


@dataclass(frozen=True)
class PanelSettings:
    """How a panel computes."""

    backend: EvalBackend = "shared"
    batch_size: int | None = None
    """Rows of a batch; None for as many as fit."""


class Panel:
    """Variants of one model with the memory of what they answered.

    Args:
        variants: the models.
        tokenizer: of all of them.
        identities: what stands for each variant in the memory, by name.
        memo: the memory.
        settings: how to compute.
        reporter: told of progress.
        share: lets the variants use one another's equal weights, and returns what undoes that; called before the first
            batch, after lm-eval's own answers were taken.
    """

    def __init__(
        self,
        variants: Sequence[Variant],
        tokenizer: Any,
        *,
        identities: Mapping[str, str],
        memo: Memo,
        settings: PanelSettings,
        reporter: Reporter,
        share: Callable[[], Callable[[], None]] = lambda: lambda: None,
    ) -> None:
        self._variants = {variant.name: variant for variant in variants}
        self._identities, self._memo, self._settings = identities, memo, settings
        self._reporter, self._share = reporter, share
        self.models = {v.name: PanelLM(v, tokenizer, self, batch_size=settings.batch_size) for v in variants}
        """What `lm_eval.evaluate` takes, by name."""
        self._checked: set[str] = set()
        self._scorers: dict[Names, Scorer] = {}
        self.fallback = self._refusal() if settings.backend == "shared" else None
        """Why lm-eval's own backend computes although it was not asked for; None where it does not."""

    @property
    def backend(self) -> EvalBackend:
        """What computes log-likelihoods."""
        return "hf" if self.fallback else self._settings.backend

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
        scorer = self._scorer(names)
        for rows in scorer.plan(requests):
            for name, answers in scorer.answer(rows, requests).items():
                self._memo.put_answers(self._model(name), {requests[n].key: a for n, a in answers.items()})
                advance(len(answers))

    def _scorer(self, names: Names) -> Scorer:
        if names not in self._scorers:
            variants = [self._variants[name] for name in names]
            self._scorers[names] = Scorer(variants, most_rows=self._settings.batch_size)
        return self._scorers[names]

    # ---- the comparison with lm-eval ---------------------------------------------------------------------------

    def _check(self, requests: Sequence[Request], names: set[str]) -> None:
        """Compare a few answers with those of lm-eval's own backend, and fall back to it where they differ."""
        new = tuple(sorted(names - self._checked))
        if not new:
            return
        chosen = _spread(requests)
        expected = {name: self._plain(name, chosen) for name in new}
        put_back = self._share()
        found: dict[str, dict[int, Answer]] = {name: {} for name in new}
        scorer = self._scorer(new)
        for rows in scorer.plan(chosen):
            for name, answers in scorer.answer(rows, chosen).items():
                found[name] |= answers
        differences = {name: _largest(found[name], expected[name]) for name in new}
        for name, difference in differences.items():
            if difference > self._tolerance:
                put_back()
                self._scorers.clear()
                self._fall_back(name, difference, len(chosen))
                return
            self._memo.put_check(self._model(name), len(chosen), difference)
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
                answers = self._plain(name, [unique[key] for key in keys])
                self._memo.put_answers(self._model(name), dict(zip(keys, answers, strict=True)))
                advance(len(keys))

    def _plain(self, name: str, requests: Sequence[Request]) -> list[Answer]:
        model = self.models[name]
        return shrinking(lambda rows: model.plain(requests, rows=rows), self._settings.batch_size or PLAIN_ROWS)

    # ---- texts -------------------------------------------------------------------------------------------------

    def texts(self, name: str, prompts: Sequence[Prompt]) -> list[str]:
        """Return what a variant writes after each prompt; texts that are drawn at random are never remembered.

        Raises:
            EvaluationError: the model has no positions for what is asked, or not even one text fits into memory.
        """
        if any(map(self.models[name].is_random, prompts)):
            return self._write(name, prompts)
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
        model = self.models[name]
        lengths = {key: len(model.tok_encode(text)) for key, (text, _) in prompts.items()}
        order = sorted(prompts, key=lambda key: (json.dumps(prompts[key][1], sort_keys=True), -lengths[key], key))
        with self._reporter.progress(f"Answers in words, {name}", total=len(order), unit="requests") as advance:
            while order:
                tokens = lengths[order[0]] + model.new_tokens(prompts[order[0]])
                rows = self._settings.batch_size or max(1, min(TEXT_ROWS, TEXT_SLOTS // tokens))
                piece, order = order[:rows], order[rows:]
                yield piece, self._write(name, [prompts[key] for key in piece])
                advance(len(piece))

    def _write(self, name: str, prompts: Sequence[Prompt]) -> list[str]:
        model = self.models[name]
        for prompt in prompts:
            model.new_tokens(prompt)
        rows = self._settings.batch_size or min(TEXT_ROWS, len(prompts))
        return shrinking(lambda number: model.write(prompts, rows=number), rows)


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
