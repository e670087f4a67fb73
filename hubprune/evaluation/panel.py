"""Several variants of a model that answer lm-eval's requests: from memory, together, or one by one.

Whatever is asked of one of them is computed for all that have not answered it yet, since that costs far less than to
compute it again later.  Before the first batch, a few requests go through lm-eval's own backend as well; where the two
differ by more than rounding, everything does.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from types import SimpleNamespace
from typing import Any, Protocol

import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs

from hubprune.core.artifacts import EvalBackend, SelfCheck
from hubprune.core.console import Advance, Reporter, log_level
from hubprune.core.devices import world_size
from hubprune.core.errors import EvaluationError
from hubprune.core.prompts import Message, unrenderable
from hubprune.evaluation.layer_tree import Variant, why_not
from hubprune.evaluation.lengths import Encoded, has_many_logits, score_alone
from hubprune.evaluation.models import free_bytes, input_device
from hubprune.evaluation.requests import Answer, Memo, Request, refuse_not_finite

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
PLAIN_ROWS = 8
"""Rows of a batch where lm-eval makes it and nobody said how large."""
ALL_WINDOWS = 2**31
"""A batch size that no document has as many windows as."""

Names = tuple[str, ...]
Prompt = tuple[str, Mapping[str, Any]]
"""A text to be continued, and lm-eval's arguments of generation."""
Scored = dict[str, dict[int, Answer]]
"""Answers by the name of a variant and the number of a request."""


def not_told(amount: int = 1, /) -> None:
    """Stand where nobody wants to know of progress."""


class Computing(Protocol):
    """What a panel computes with: the models of this process, or those of several processes."""

    variants: dict[str, Variant]
    language_models: dict[str, PanelLM]

    def score(self, names: Names, requests: Sequence[Request], advance: Advance = ...) -> Iterator[Scored]:
        """Yield the answers of some variants to all requests, batch by batch; `advance` is told the tokens."""

    def first(self, names: Names, requests: Sequence[Request]) -> Sequence[Request]:
        """Return those of some requests of which a few are compared with lm-eval's own backend."""

    def outlook(self, names: Names, requests: Sequence[Request]) -> str | None:
        """Say what scoring requests will take, where that is worth saying."""

    def plain(self, name: str, requests: Sequence[Request]) -> list[Answer]:
        """Return a variant's answers as lm-eval's own backend computes them."""

    def write(self, name: str, prompts: Sequence[Prompt]) -> list[str]:
        """Return what a variant writes after each prompt, by lm-eval's own backend."""

    def text_outlook(self, name: str, prompts: Sequence[Prompt]) -> str | None:
        """Say what writing texts will take, where that is worth saying."""

    def draw(self, name: str, prompts: Sequence[Prompt]) -> list[str]:
        """Return what a variant writes where it draws at random, which depends on what was drawn before."""

    def close(self) -> None:
        """Say that nothing more will be asked."""


class Panel:
    """Variants of one model with the memory of what they answered, in which `identities` stand for them."""

    def __init__(
        self, models: Computing, *, identities: Mapping[str, str], memo: Memo, backend: EvalBackend, reporter: Reporter
    ) -> None:
        self._models, self._variants, self._asked_backend = models, models.variants, backend
        self._identities, self._memo, self._reporter = identities, memo, reporter
        self.language_models = models.language_models
        """What `lm_eval.evaluate` takes, by name."""
        for model in self.language_models.values():
            model.panel = self
        self._checked: set[str] = set()
        self.encoded = Encoded()
        self._expected: dict[str, dict[bytes, Answer]] = {}
        """What lm-eval's own backend said, of variants that are to be compared with it."""
        reasons = ((name, why_not(v)) for name, v in self._variants.items() if backend == "shared")
        told = (f"the {name} model cannot be run layer by layer: {reason}" for name, reason in reasons if reason)
        self.fallback = next(told, None)
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

    @cached_property
    def _tolerance(self) -> float:
        dtypes = {str(variant.model.dtype) for variant in self._variants.values()}
        return EXACT if dtypes <= {"torch.float32", "torch.float64"} else COARSE

    def _model(self, name: str) -> str:
        """Return what a variant is called in the memory: two ways to compute agree within rounding only.

        Layers from memory and from files run the same batches.  A run that goes on with less memory, or more, takes
        what it finds.
        """
        return f"{self._identities[name]} {'hf' if self.backend == 'hf' else 'shared'}"

    def log_likelihoods(self, name: str, requests: Sequence[Request]) -> list[Answer]:
        """Return what a variant says of each request.

        Raises:
            EvaluationError: a single request does not fit into memory, or a log-likelihood is not finite.
        """
        keys = [request.key for request in requests]
        unique = dict(zip(keys, requests, strict=True))
        if self.backend != "hf":
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
        # A set has no order that a second run would find again.
        asked = [(tuple(names), [unique[key] for key in sorted(missing)]) for missing, names in groups.items()]
        if self.backend == "shared":
            self._check(list(unique.values()), tuple(sorted(name for names, _ in asked for name in names)))
        if self.fallback:
            return
        for names, requests in asked:
            if self.backend == "layers":  # a pass over the weights for two requests is more than it is worth
                self._expect(self._models.first(names, requests), names)
            if told := self._models.outlook(names, requests):
                self._reporter.note(told)
        total = sum(len(names) * tokens_of(requests) for names, requests in asked)
        named = " and ".join(sorted(self._variants)) if len(self._variants) <= 2 else f"{len(self._variants)} variants"
        with self._reporter.progress(f"Benchmarks, {named}", total=total, unit="tokens") as advance:
            for names, requests in asked:
                for scored in self._models.score(names, requests, advance):
                    for name, answers in scored.items():
                        found = {requests[n].key: answer for n, answer in answers.items()}
                        if not self.fallback and self._agrees(name, found):
                            self._memo.put_answers(self._model(name), found)
                        elif world_size() == 1:  # others go on to the end, and would wait for this one
                            return

    def _check(self, requests: Sequence[Request], names: Names) -> None:
        """Compare a few answers with those of lm-eval's own backend, and fall back to it where they differ."""
        chosen = self._expect(requests, names)
        if not self._expected:
            return
        new = tuple(self._expected)
        found: dict[str, dict[bytes, Answer]] = {name: {} for name in new}
        for scored in self._models.score(new, chosen):
            for name, answers in scored.items():
                found[name] |= {chosen[number].key: answer for number, answer in answers.items()}
        all(self._agrees(name, found[name]) for name in new)

    def _expect(self, requests: Sequence[Request], names: Names) -> Sequence[Request]:
        """Ask lm-eval's own backend a few requests, for variants that were not compared with it yet."""
        # From all over: pairs of neighbours in the order of their tokens.
        order = sorted(requests, key=lambda request: (request.context, request.targets))
        pairs = max(1, min(CHECKED_PAIRS, len(order) // (2 * CHECKED_SHARE)))
        starts = [len(order) * (2 * number + 1) // (2 * pairs) for number in range(pairs)]
        chosen = [order[place] for place in sorted({p for s in starts for p in (s, max(0, s - 1))})]
        for name in names:
            if name not in self._checked:
                answers = self._models.plain(name, chosen)
                self._expected[name] = {request.key: a for request, a in zip(chosen, answers, strict=True)}
        return chosen

    def _agrees(self, name: str, found: Mapping[bytes, Answer]) -> bool:
        """Compare what was found with what is expected of a variant, if anything is; False where they differ."""
        if not (expected := self._expected.pop(name, None)):
            return True
        pairs = ((found[key].log_likelihood, answer.log_likelihood) for key, answer in expected.items())
        difference = max(abs(ours - theirs) for ours, theirs in pairs)
        if not difference <= self._tolerance:
            differed = f"log-likelihoods of the {name} model differed by {difference:.2g} nats from lm-eval's own"
            self.fallback = f"{differed} in {len(expected)} requests, with {self._tolerance:g} allowed"
            self._reporter.warn(f"The shared evaluation is not used: {self.fallback}.")
            return False
        self._memo.put_check(self._model(name), len(expected), difference)
        self._checked.add(name)
        return True

    def _answer_plainly(self, name: str, unique: Mapping[bytes, Request]) -> None:
        missing = sorted(self._missing(name, unique), key=lambda key: (-len(unique[key].tokens), key))
        if not missing:
            return
        total = tokens_of(map(unique.__getitem__, missing))
        with self._reporter.progress(f"Benchmarks, {name}", total=total, unit="tokens") as advance:
            for start in range(0, len(missing), PIECE):
                keys = missing[start : start + PIECE]
                answers = self._models.plain(name, [unique[key] for key in keys])
                self._memo.put_answers(self._model(name), dict(zip(keys, answers, strict=True)))
                advance(tokens_of(map(unique.__getitem__, keys)))

    def texts(self, name: str, prompts: Sequence[Prompt]) -> list[str]:
        """Return what a variant writes after each prompt; texts that are drawn at random are never remembered.

        Raises:
            EvaluationError: the model has no positions for what is asked, or not even one text fits into memory.
        """
        if any(map(self.language_models[name].is_random, prompts)):
            return self._models.draw(name, prompts)
        keys = [hashlib.sha256(json.dumps(list(prompt), sort_keys=True).encode()).digest() for prompt in prompts]
        unique = dict(zip(keys, prompts, strict=True))
        known = self._memo.texts(self._model(name), list(unique))
        if not (missing := unique.keys() - known.keys()):
            return [known[key] for key in keys]
        model = self.language_models[name]
        with log_level("transformers.tokenization_utils_base", logging.ERROR):  # said below
            lengths = {key: len(model.tok_encode(unique[key][0])) for key in missing}
        if cut := sum(lengths[key] + model.new_tokens(unique[key]) > model.max_length for key in missing):
            self._reporter.warn(
                f"{cut} of {len(lengths)} prompts for answers in words leave no room for the answer in the {name}"
                f" model's {model.max_length} positions: their beginning is cut off, as lm-eval does it."
            )
        # Those of one length go together, the longest first.
        order = sorted(missing, key=lambda key: (json.dumps(unique[key][1], sort_keys=True), -lengths[key], key))
        at_once = TEXTS_AT_ONCE
        if told := self._models.text_outlook(name, [unique[key] for key in order]):
            self._reporter.note(told)
            at_once = len(order)
        with self._reporter.progress(f"Answers in words, {name}", total=len(order), unit="requests") as advance:
            for start in range(0, len(order), at_once):
                piece = order[start : start + at_once]
                texts = self._models.write(name, [unique[key] for key in piece])
                self._memo.put_texts(self._model(name), dict(zip(piece, texts, strict=True)))
                known |= dict(zip(piece, texts, strict=True))
                advance(len(piece))
        return [known[key] for key in keys]


def tokens_of(requests: Iterable[Request]) -> int:
    """Count what a model reads, which is what requests cost."""
    return sum(map(len, requests))


class PanelLM(HFLM):
    """One model of a panel, as `lm_eval.evaluate` takes it.

    Tokens, windows and metrics are lm-eval's own; `plain` and `write` are its own computation, too.
    """

    panel: Panel
    """Whom it hands its requests to; set by the panel itself."""

    def __init__(self, variant: Variant, tokenizer: Any, *, batch_size: int | None) -> None:
        # It warns that a model which is already loaded goes without its own loading options.
        with log_level("lm_eval.models.huggingface", logging.ERROR):
            super().__init__(
                pretrained=variant.model,
                tokenizer=tokenizer,
                backend="causal",
                batch_size=batch_size or PLAIN_ROWS,
                # In bfloat16, log-likelihoods around -100 come in steps of 0.5.
                softmax_dtype="float32",
            )
        self._variant = variant
        # lm-eval takes the device of the first weight, which may be on disk.
        self._device = torch.device(input_device(variant.model))

    def _loglikelihood_tokens(
        self, requests: Sequence[Any], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        try:
            asked = [Request.of(context, ending, max_length=self.max_length) for _, context, ending in requests]
        except ValueError as error:
            raise EvaluationError(f"A benchmark asks for what the model cannot be asked: {error}.") from error
        self.panel.encoded.note(requests, positions=self.max_length)
        answers = self.panel.log_likelihoods(self._variant.name, asked)
        return [(answer.log_likelihood, answer.is_greedy) for answer in answers]

    def _encode_pair(self, context: str, continuation: str) -> tuple[Any, list[int]]:
        """Find the tokens of context and ending; those of a long context are there once for all its endings."""
        known = self.panel.encoded.pair(context, continuation, encode=self.tok_encode)
        pair: tuple[Any, list[int]] = known or super()._encode_pair(context, continuation)
        return pair

    def apply_chat_template(self, chat_history: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """Render a conversation as lm-eval does: without its system message where the template takes none."""
        try:
            with log_level("lm_eval.models.huggingface", logging.ERROR):  # it tells of every document
                return str(super().apply_chat_template(chat_history, add_generation_prompt=add_generation_prompt))
        except Exception as error:  # whatever Jinja, its sandbox, or the template itself raises
            raise unrenderable(error) from error

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Sum the log-likelihoods of whole documents; all their windows come at once, so that they can be packed."""
        with self._rows(ALL_WINDOWS):
            found: list[float] = super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)
        return found

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Continue prompts."""
        prompts = [request.args for request in requests]
        self.panel.encoded.note_prompts(prompts, encode=self.tok_encode, room=self._room)
        return self.panel.texts(self._variant.name, prompts)

    def _room(self, prompt: Prompt) -> int:
        """Return how many tokens of a prompt lm-eval reads, behind which it writes."""
        positions: int = self.max_length
        return positions - self.new_tokens(prompt)

    def plain(self, requests: Sequence[Request], *, rows: int) -> list[Answer]:
        """Let lm-eval's backend itself score requests, with so many rows in a batch.

        Raises:
            EvaluationError: a log-likelihood is not finite, of which lm-eval would make an accuracy like any other.
        """
        # lm-eval makes logits of all tokens of a request, and there are gigabytes of them for a long one.
        model = self._variant.model
        large = {n for n, r in enumerate(requests) if has_many_logits(r, model, free=free_bytes(str(self._device)))}
        triples = [(None, list(r.context), list(r.targets)) for n, r in enumerate(requests) if n not in large]
        with self._variant.active(), self._rows(rows):
            found = iter(super()._loglikelihood_tokens(triples))
            answers = [score_alone(model, r) if n in large else Answer(*next(found)) for n, r in enumerate(requests)]
        refuse_not_finite((answer.log_likelihood for answer in answers), model=self._variant.name)
        return answers

    def write(self, prompts: Sequence[Prompt]) -> list[str]:
        """Let lm-eval's backend itself continue a batch of prompts."""
        cut = log_level("lm_eval.models.huggingface", logging.ERROR)  # it tells of every batch with one that is cut off
        with self._variant.active(), self._rows(len(prompts)), cut:
            texts: list[str] = super().generate_until([SimpleNamespace(args=prompt) for prompt in prompts])
        return texts

    def is_random(self, prompt: Prompt) -> bool:
        """Tell whether a prompt asks for a text that is drawn at random."""
        asked = normalize_gen_kwargs(dict(prompt[1]), self.max_gen_toks)
        return bool(asked.get("do_sample")) or float(asked.get("temperature") or 0.0) > 0

    def new_tokens(self, prompt: Prompt) -> int:
        """Return how many tokens a prompt asks for at most.

        Raises:
            EvaluationError: the model has no positions for them.
        """
        asked = int(normalize_gen_kwargs(dict(prompt[1]), self.max_gen_toks)["max_gen_toks"])
        if asked >= self.max_length:
            message = f"A benchmark lets the model write {asked} tokens, and it has {self.max_length} positions in all."
            hint = "Leave this benchmark out, or write a task file with fewer max_gen_toks."
            raise EvaluationError(message, hint=hint)
        return asked

    @contextmanager
    def _rows(self, number: int) -> Iterator[None]:
        """Set the batch size, which lm-eval reads here and there, while the block runs."""
        before: int = self.batch_size
        self.batch_size_per_gpu = number
        try:
            yield
        finally:
            self.batch_size_per_gpu = before
