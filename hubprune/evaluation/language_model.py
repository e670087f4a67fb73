"""lm-eval's Hugging Face backend, with its scoring handed over to a panel."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, Protocol

import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs

from hubprune.core.console import log_level
from hubprune.core.errors import EvaluationError
from hubprune.evaluation.layer_tree import Variant
from hubprune.evaluation.models import input_device
from hubprune.evaluation.packing import Answer, Request, refuse_not_finite

__all__ = ["PLAIN_ROWS", "PanelLM", "Prompt"]

PLAIN_ROWS = 8
"""Rows of a batch where lm-eval makes it and nobody said how large."""
ALL_WINDOWS = 2**31
"""A batch size that no document has as many windows as."""

Prompt = tuple[str, Mapping[str, Any]]
"""A text to be continued, and lm-eval's arguments of generation."""


class Panel(Protocol):
    """What answers for several models."""

    def log_likelihoods(self, name: str, requests: Sequence[Request]) -> list[Answer]:
        """Return what a model says of each request."""

    def texts(self, name: str, prompts: Sequence[Prompt]) -> list[str]:
        """Return what a model writes after each prompt."""


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
        asked = [self._request(context, ending) for _, context, ending in requests]
        answers = self.panel.log_likelihoods(self._variant.name, asked)
        return [(answer.log_likelihood, answer.is_greedy) for answer in answers]

    def _request(self, context: Sequence[int], ending: Sequence[int]) -> Request:
        try:
            return Request.of(context, ending, max_length=self.max_length)
        except ValueError as error:
            raise EvaluationError(f"A benchmark asks for what the model cannot be asked: {error}.") from error

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Sum the log-likelihoods of whole documents; all their windows come at once, so that they can be packed."""
        with self._rows(ALL_WINDOWS):
            found: list[float] = super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)
        return found

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Continue prompts."""
        return self.panel.texts(self._variant.name, [request.args for request in requests])

    def plain(self, requests: Sequence[Request], *, rows: int) -> list[Answer]:
        """Let lm-eval's backend itself score requests, with so many rows in a batch.

        Raises:
            EvaluationError: a log-likelihood is not finite, of which lm-eval would make an accuracy like any other.
        """
        triples = [(None, list(r.tokens[: -r.scored]), list(r.targets)) for r in requests]
        with self._variant.active(), self._rows(rows):
            answers = [Answer(value, greedy) for value, greedy in super()._loglikelihood_tokens(triples)]
        refuse_not_finite((answer.log_likelihood for answer in answers), model=self._variant.name)
        return answers

    def write(self, prompts: Sequence[Prompt]) -> list[str]:
        """Let lm-eval's backend itself continue a batch of prompts."""
        with self._variant.active(), self._rows(len(prompts)):
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
            raise EvaluationError(
                f"A benchmark lets the model write {asked} tokens, and it has {self.max_length} positions in all.",
                hint="Leave this benchmark out, or write a task file with fewer max_gen_toks.",
            )
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
