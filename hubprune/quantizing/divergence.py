"""How far the next tokens of two models are from each other, by the states that left their last layers.

    KL(p || q) = sum over the vocabulary of p * (log p - log q), in nats, at every position that has a next token

The head is that of the checkpoint itself, which keeps its dtype.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from hubprune.core.artifacts import Divergence
from hubprune.core.console import LARGEST
from hubprune.core.errors import ScoringError
from hubprune.core.head import LOGIT_BYTES, Head
from hubprune.quantizing.layerwise import Batch, Source


def compare_states(
    source: Source, batches: Sequence[Batch], before: Sequence[torch.Tensor], after: Sequence[torch.Tensor]
) -> Divergence:
    """Compare two models by the states that left their last layers, [texts, tokens, hidden_size] for each batch.

    Raises:
        ScoringError: a logit is not finite.
    """
    head = Head(
        source.folder, architecture=source.architecture, dtype=source.dtype, device=source.device,
        own_code=source.own_code, tensor_names=source.tensor_names,
    )  # fmt: skip
    rows = list[tuple[float, float, float, float, int]]()
    with torch.inference_mode():
        for batch, one, other in zip(batches, before, after, strict=True):
            for ids, mask, first, second in zip(batch.ids, batch.mask, one, other, strict=True):
                length = int(mask.sum())
                if length > 1:
                    rows.append(_of_text(head, ids[:length], first[:length], second[:length], source.device))
    if not rows:
        raise ScoringError("No held-out text has two tokens.", hint="Take another mix with --calibration.")
    kl, agreed, nll, quantized_nll = (math.fsum(row[column] for row in rows) for column in range(4))
    tokens = sum(row[4] for row in rows)
    if not math.isfinite(kl + nll + quantized_nll):
        raise ScoringError("A logit is not finite.", hint="The weights are broken, or overflow: try --dtype float32.")
    mean, count = kl / tokens, len(rows)
    # Of a ratio of sums over texts, since longer ones have more positions.
    squares = math.fsum((row[0] - mean * row[4]) ** 2 for row in rows)
    error = math.sqrt(squares * count / (count - 1)) / tokens if count > 1 else 0.0
    return Divergence(
        kl=mean, kl_error=error, top1=agreed / tokens, perplexity=min(LARGEST, math.exp(min(nll / tokens, 345))),
        quantized_perplexity=min(LARGEST, math.exp(min(quantized_nll / tokens, 345))), documents=count, tokens=tokens,
    )  # fmt: skip


def _of_text(
    head: Head, ids: torch.Tensor, first: torch.Tensor, second: torch.Tensor, device: str
) -> tuple[float, float, float, float, int]:
    """Return sums over the positions of a text: KL, equal first choices, both negative log-likelihoods, positions."""
    targets, sums = ids[1:].to(device), torch.zeros(4, dtype=torch.float64)
    step = 64
    start = 0
    while start < len(targets):
        some = slice(start, min(start + step, len(targets)))
        p, q = (head.logits(states[some].to(device)).log_softmax(-1) for states in (first, second))
        chosen = targets[some, None]
        sums += torch.stack(
            [
                (p.exp() * (p - q)).sum(-1).double().sum().cpu(), (p.argmax(-1) == q.argmax(-1)).sum().double().cpu(),
                -p.gather(1, chosen).double().sum().cpu(), -q.gather(1, chosen).double().sum().cpu(),
            ]
        )  # fmt: skip
        start = some.stop
        step = max(1, LOGIT_BYTES // (4 * p.shape[1]))
    return (*sums.tolist(), len(targets))
