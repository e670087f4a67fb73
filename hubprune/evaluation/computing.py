"""What computes answers: models that are loaded in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

from hubprune.evaluation.language_model import PLAIN_ROWS, PanelLM, Prompt
from hubprune.evaluation.layer_tree import Variant
from hubprune.evaluation.models import memory_errors
from hubprune.evaluation.packing import Answer, Batches, Request, Row, run_batches, similar_length
from hubprune.evaluation.scorer import Scored, Scorer

__all__ = ["Computing", "Models", "Names"]

TEXT_SLOTS = 16384
"""Tokens of a batch of texts that are written at once, those to come included."""
TEXT_ROWS = 64
Names = tuple[str, ...]
Result = TypeVar("Result")


class Computing(Protocol):
    """What a panel computes with: the models of this process, or those of several processes."""

    variants: dict[str, Variant]
    language_models: dict[str, PanelLM]

    def score(self, names: Names, requests: Sequence[Request]) -> Iterator[Scored]:
        """Yield the answers of some variants to all requests, batch by batch."""

    def plain(self, name: str, requests: Sequence[Request]) -> list[Answer]:
        """Return a variant's answers as lm-eval's own backend computes them."""

    def write(self, name: str, prompts: Sequence[Prompt]) -> list[str]:
        """Return what a variant writes after each prompt, by lm-eval's own backend."""

    def share_weights(self) -> None:
        """Let the variants use one another's equal weights."""

    def put_weights_back(self) -> None:
        """Undo that."""

    def let_own_weights_go(self) -> None:
        """Give the memory back that is kept to undo it."""

    def draw(self, name: str, prompts: Sequence[Prompt]) -> list[str]:
        """Return what a variant writes where it draws at random, which depends on what was drawn before."""

    def close(self) -> None:
        """Say that nothing more will be asked."""


class Models:
    """Variants of one model in this process.

    Args:
        variants: the models.
        tokenizer: of all of them.
        batch_size: rows of a batch; None for as many as fit.
        share: lets the variants use one another's equal weights, and returns what undoes that.
    """

    def __init__(
        self,
        variants: Sequence[Variant],
        tokenizer: Any,
        *,
        batch_size: int | None,
        share: Callable[[], Callable[[], None]] | None = None,
    ) -> None:
        self.variants = {variant.name: variant for variant in variants}
        self.language_models = {v.name: PanelLM(v, tokenizer, batch_size=batch_size) for v in variants}
        """What `lm_eval.evaluate` takes, by name."""
        self._batch_size, self._share = batch_size, share
        self._put_back: Callable[[], None] | None = None
        self._scorers: dict[Names, Scorer] = {}

    def score(self, names: Names, requests: Sequence[Request]) -> Iterator[Scored]:
        """Yield the answers of some variants to all requests, batch by batch.

        Raises:
            EvaluationError: a single request does not fit into memory, or a log-likelihood is not finite.
        """
        for rows in self.plan(names, requests):
            yield self.answer(names, rows, requests)

    def plan(self, names: Names, requests: Sequence[Request]) -> list[list[Row]]:
        """Divide requests into batches; every process that holds these models divides them alike."""
        return self._scorer(names).plan(requests)

    def answer(self, names: Names, rows: Sequence[Row], requests: Sequence[Request]) -> Scored:
        """Return the answers of some variants to a batch of the plan."""
        found: Scored = self._scorer(names).answer(rows, requests)
        return found

    def layer_calls(self, names: Names) -> int:
        """Return how many layers were run so far for some variants together."""
        return self._scorer(names).layer_calls

    def _scorer(self, names: Names) -> Scorer:
        if names not in self._scorers:
            self._scorers[names] = Scorer([self.variants[name] for name in names], most_rows=self._batch_size)
        return self._scorers[names]

    def plain(self, name: str, requests: Sequence[Request]) -> list[Answer]:
        """Return a variant's answers as lm-eval's own backend computes them.

        Raises:
            EvaluationError: memory ran out with a single row.
        """
        model, rows = self.language_models[name], self._batch_size or PLAIN_ROWS
        # All go in at once, since lm-eval reads a context once for all endings of a single token.
        whole = (tuple(range(len(requests))),)
        return _run(whole, lambda batch: model.plain([requests[i] for i in batch], rows=min(rows, len(batch))))

    def write(self, name: str, prompts: Sequence[Prompt]) -> list[str]:
        """Return what a variant writes after each prompt, by lm-eval's own backend.

        Raises:
            EvaluationError: the model has no positions for what is asked, or memory ran out with a single row.
        """
        model = self.language_models[name]
        lengths = [len(model.tok_encode(prompt[0])) + model.new_tokens(prompt) for prompt in prompts]
        tokens = None if self._batch_size else TEXT_SLOTS
        batches = similar_length(lengths, tokens=tokens, rows=self._batch_size or TEXT_ROWS)
        return _run(batches, lambda batch: model.write([prompts[i] for i in batch]))

    def share_weights(self) -> None:
        """Let the variants use one another's equal weights."""
        if self._share and not self._put_back:
            self._put_back = self._share()
            self._scorers.clear()

    def put_weights_back(self) -> None:
        """Undo that."""
        if self._put_back:
            self._put_back()
            self._put_back = None
            self._scorers.clear()

    def let_own_weights_go(self) -> None:
        """Give the memory back that is kept to undo it."""
        self._put_back = _nothing

    def draw(self, name: str, prompts: Sequence[Prompt]) -> list[str]:
        """Return what a variant writes where it draws at random, which depends on what was drawn before."""
        return self.write(name, prompts)

    def close(self) -> None:
        """Do nothing: nobody else waits."""


def _nothing() -> None:
    """Undo nothing."""


def _run(batches: Batches, work: Callable[[tuple[int, ...]], list[Result]]) -> list[Result]:
    with memory_errors("over a single row", hint="Pass --dtype bfloat16, or --device cpu."):
        return run_batches(batches, work, on_split=lambda rows: None)[0]
