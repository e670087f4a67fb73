"""How far the next tokens of two models are from each other, by the states that left their last layers.

    KL(p || q) = sum over the vocabulary of p * (log p - log q), in nats, at every position that has a next token

The head is that of the checkpoint itself, which keeps its dtype; the model's own code is run behind the layers, since
some families scale or cap their logits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from hubprune.core.artifacts import Divergence
from hubprune.core.console import LARGEST
from hubprune.core.errors import ScoringError
from hubprune.core.neutral import ATTENTION, neutral_config
from hubprune.core.streaming import WeightReader, parameters_without_data, read_tensor
from hubprune.quantizing.layerwise import Batch, Source

LOGIT_BYTES = 2**27
"""Of logits in float32 at a time; there are a handful of such tables."""


class Head:
    """What makes logits of the hidden states that leave the last layer."""

    def __init__(self, source: Source) -> None:
        from transformers import AutoModelForCausalLM
        from transformers.modeling_outputs import BaseModelOutputWithPast

        class Handed(nn.Module):
            states = torch.empty(0)

            def forward(self, *_: Any, **__: Any) -> Any:
                return BaseModelOutputWithPast(last_hidden_state=self.states)

        dtype, config = getattr(torch, source.dtype), neutral_config(source.folder, own_code=source.own_code)
        with parameters_without_data():
            self._model = AutoModelForCausalLM.from_config(
                config, dtype=dtype, attn_implementation=ATTENTION, trust_remote_code=source.own_code
            )
        self._model.eval().requires_grad_(False)
        decoder, head = self._model.get_decoder(), self._model.get_output_embeddings()
        self._norm, self._handed, reader = decoder.norm, Handed(), WeightReader(source.folder, source.tensor_names)
        setattr(self._model, self._model.base_model_prefix, self._handed)
        family = source.architecture
        tied = bool(config.tie_word_embeddings) or family.head not in reader.names
        of = {f"{family.layers_prefix.removesuffix('layers.')}norm.": self._norm}
        of[family.embedding.removesuffix("weight") if tied else family.head.removesuffix("weight")] = head
        for prefix, module in of.items():
            for name, _ in list(module.named_parameters()):
                found = read_tensor(reader.place(f"{prefix}{name}")).to(source.device, dtype)
                setattr(module, name, nn.Parameter(found, requires_grad=False))

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """Return logits, float32 [tokens, vocabulary], of states [tokens, hidden_size]."""
        self._handed.states = self._norm(states)[None]
        found: torch.Tensor = self._model(inputs_embeds=self._handed.states, use_cache=False).logits[0]
        return found.float()


def compare_states(
    source: Source, batches: Sequence[Batch], before: Sequence[torch.Tensor], after: Sequence[torch.Tensor]
) -> Divergence:
    """Compare two models by the states that left their last layers, [texts, tokens, hidden_size] for each batch.

    Raises:
        ScoringError: a logit is not finite.
    """
    head, rows = Head(source), list[tuple[float, float, float, float, int]]()
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
