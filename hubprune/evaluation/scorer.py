"""Log-likelihoods of endings for several variants at once, in batches that fit into memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import torch

from hubprune.core.errors import EvaluationError
from hubprune.evaluation.layer_tree import Batch, LayerTree, Variant, collate, head_alone
from hubprune.evaluation.models import is_memory_error, release_memory
from hubprune.evaluation.packing import Answer, Request, Row, alone, batches, make_rows, refuse_not_finite, slots

__all__ = ["Scored", "Scorer"]

CPU_SLOTS = 1024
"""Tokens of a batch on a CPU, whose caches larger ones do not fit into."""
GPU_SLOTS = 32768
"""Tokens that a batch begins with elsewhere; it is halved until it fits."""
CPU_LOGIT_BYTES, GPU_LOGIT_BYTES = 2**24, 2**28
"""Memory that logits in float32 take at a time; on a CPU they are to stay in its cache."""


Scored = dict[str, dict[int, Answer]]
"""Answers by the name of a variant and the number of a request."""


class Scorer:
    """Scores requests for variants of one model.

    Args:
        variants: models that share weights where they are the same.
        most_rows: rows of a batch at most; None for as many as fit.
    """

    def __init__(self, variants: Sequence[Variant], *, most_rows: int | None = None) -> None:
        self._tree = LayerTree(variants)
        self._device = next(variants[0].model.parameters()).device
        self._most_rows = most_rows
        self._most_slots = CPU_SLOTS if self._device.type == "cpu" else GPU_SLOTS

    @property
    def layer_calls(self) -> int:
        """Layers that were run so far, each for all variants that share it."""
        return self._tree.calls

    def plan(self, requests: Sequence[Request]) -> list[list[Row]]:
        """Divide requests into batches, the largest first; the same ones for the same requests."""
        return list(batches(make_rows(requests), most_slots=self._most_slots, most_rows=self._most_rows))

    @torch.inference_mode()
    def answer(self, rows: Sequence[Row], requests: Sequence[Request]) -> Scored:
        """Return the answers of all variants to a batch, which is divided where it does not fit into memory.

        Args:
            rows: a batch of the plan.
            requests: those that were planned.

        Raises:
            EvaluationError: a single request does not fit, or a log-likelihood is not finite.
        """
        answers: Scored = {variant.name: {} for variant in self._tree.variants}
        parts = deque([list(rows)])
        while parts:
            part = parts.popleft()
            if len(part) > 1 and slots(part) > self._most_slots:
                parts.extendleft(reversed(_halves(part)))
                continue
            if (found := self._forward_or_none(part)) is None:
                release_memory()
                parts.extendleft(reversed(self._smaller(part, requests)))
                continue
            for name, some in found.items():
                answers[name] |= some
        return answers

    def _forward_or_none(self, rows: Sequence[Row]) -> Scored | None:
        """Answer a batch; None where memory ran out, and by then nothing holds on to its tensors."""
        try:
            return self._forward(rows)
        except RuntimeError as error:
            if not is_memory_error(error):
                raise
            return None

    def _smaller(self, part: list[Row], requests: Sequence[Request]) -> list[list[Row]]:
        """Divide a batch that did not fit, and make all that follow smaller."""
        if len(part) > 1:
            self._most_slots = slots(part) // 2
            return _halves(part)
        if len(part[0].members) > 1:
            return [[row] for row in alone(part[0], requests)]
        raise EvaluationError(
            f"The device ran out of memory over a single request of {len(part[0])} tokens.",
            hint="Pass --dtype bfloat16, or --device cpu.",
        )

    def _forward(self, rows: Sequence[Row]) -> Scored:
        batch = collate(rows, self._device)
        return {variant.name: _answers(variant, states, batch) for variant, states in self._tree.hidden_states(batch)}


def _halves(rows: list[Row]) -> list[list[Row]]:
    middle = len(rows) // 2
    return [rows[:middle], rows[middle:]]


def _answers(variant: Variant, states: torch.Tensor, batch: Batch) -> dict[int, Answer]:
    """Add up the log-likelihoods of each request's targets, in float64, from logits in float32."""
    nats: dict[int, float] = {}
    greedy: dict[int, bool] = {}
    found, right = _target_log_probabilities(variant, states, batch.targets)
    for request, value, best in zip(batch.owners, found, right, strict=True):
        nats[request] = nats.get(request, 0.0) + value
        greedy[request] = greedy.get(request, True) and best
    refuse_not_finite(nats.values(), model=variant.name)
    return {request: Answer(value, greedy[request]) for request, value in nats.items()}


def _target_log_probabilities(
    variant: Variant, states: torch.Tensor, targets: torch.Tensor
) -> tuple[list[float], list[bool]]:
    """Return the log-probability of each target, and whether it is the most likely token."""
    found: list[float] = []
    right: list[bool] = []
    logit_bytes = CPU_LOGIT_BYTES if states.device.type == "cpu" else GPU_LOGIT_BYTES
    step = max(1, logit_bytes // (4 * variant.model.config.get_text_config().vocab_size))
    with head_alone(variant) as logits_of:
        for part, wanted in zip(states.split(step), targets.split(step), strict=True):
            logits = logits_of(part).float()  # [n, vocabulary]
            values = logits.gather(1, wanted[:, None])[:, 0] - logits.logsumexp(-1)
            found += values.tolist()
            right += (logits.argmax(-1) == wanted).tolist()
    return found, right
