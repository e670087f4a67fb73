"""Perplexity of a loaded model on documents that it is handed as token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from hubprune.core.artifacts import PerplexityAnswers
from hubprune.core.errors import EvaluationError
from hubprune.evaluation.models import LoadedModel, memory_errors

__all__ = ["measure"]


def measure(model: LoadedModel, rows: Sequence[Sequence[int]], *, batch_size: int) -> PerplexityAnswers:
    """Sum the negative log-likelihood of every document, in nats and in float32.

    Args:
        model: what reads them.
        rows: token ids of the documents, two or more each.
        batch_size: documents at a time; those of similar length go together.

    Raises:
        EvaluationError: a likelihood is not finite, or the device's memory is too small.
    """
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    nats = [0.0] * len(rows)
    with torch.inference_mode(), memory_errors(f"at batch size {batch_size}", hint="Pass a smaller --batch-size."):
        for start in range(0, len(order), batch_size):
            members = order[start : start + batch_size]
            for i, value in zip(members, _nats(model, [rows[i] for i in members]), strict=True):
                nats[i] = value
    if not torch.tensor(nats).isfinite().all():
        raise EvaluationError("The likelihood of a document is not finite.", hint="Try --dtype float32.")
    return PerplexityAnswers(nats=tuple(nats), tokens=tuple(len(row) - 1 for row in rows))


def _nats(model: LoadedModel, rows: Sequence[Sequence[int]]) -> list[float]:
    """Return the nats of each document; rows are padded on the right, where causal attention never looks."""
    tensors = [torch.tensor(row) for row in rows]
    ids = nn.utils.rnn.pad_sequence(tensors, batch_first=True).to(model.device)  # [batch, tokens]
    targets = nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=-100)[:, 1:].to(model.device)
    logits: Any = model.model(ids, use_cache=False).logits[:, :-1]
    losses = nn.functional.cross_entropy(logits.float().transpose(1, 2), targets, reduction="none")
    found: list[float] = losses.double().sum(dim=1).tolist() if losses.device.type != "mps" else losses.sum(1).tolist()
    return found
