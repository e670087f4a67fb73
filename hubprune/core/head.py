"""What makes logits of the hidden states that leave a model's last layer, read from its files by itself.

The model's own code is run behind the layers, since some families scale or cap their logits.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hubprune.core.architectures import Architecture
from hubprune.core.neutral import ATTENTION, neutral_config
from hubprune.core.streaming import WeightReader, parameters_without_data, read_tensor

LOGIT_BYTES = 2**27
"""Of logits in float32 at a time; there are a handful of such tables."""


class Head:
    """The last norm and the head of a checkpoint, in whatever dtype is asked for."""

    def __init__(
        self,
        folder: Path,
        *,
        architecture: Architecture,
        dtype: str,
        device: str,
        own_code: bool = False,
        tensor_names: Mapping[str, str | None] | None = None,
    ) -> None:
        """Read both; the arguments are those of `StreamedModel`.

        Raises:
            CheckpointError: a tensor is not there.
        """
        from transformers import AutoModelForCausalLM
        from transformers.modeling_outputs import BaseModelOutputWithPast

        class Handed(nn.Module):
            states = torch.empty(0)

            def forward(self, *_: Any, **__: Any) -> Any:
                return BaseModelOutputWithPast(last_hidden_state=self.states)

        wanted, config = getattr(torch, dtype), neutral_config(folder, own_code=own_code)
        with parameters_without_data():
            self._model = AutoModelForCausalLM.from_config(
                config, dtype=wanted, attn_implementation=ATTENTION, trust_remote_code=own_code
            )
        self._model.eval().requires_grad_(False)
        decoder, head = self._model.get_decoder(), self._model.get_output_embeddings()
        self._norm, self._handed, reader = decoder.norm, Handed(), WeightReader(folder, tensor_names or {})
        setattr(self._model, self._model.base_model_prefix, self._handed)
        tied = bool(config.tie_word_embeddings) or architecture.head not in reader.names
        of = {f"{architecture.layers_prefix.removesuffix('layers.')}norm.": self._norm}
        of[architecture.embedding.removesuffix("weight") if tied else architecture.head.removesuffix("weight")] = head
        for prefix, module in of.items():
            for name, _ in list(module.named_parameters()):
                found = read_tensor(reader.place(f"{prefix}{name}")).to(device, wanted)
                setattr(module, name, nn.Parameter(found, requires_grad=False))
        self.vocabulary: int = head.weight.shape[0]
        """Columns of what `logits` returns."""

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """Return logits, float32 [tokens, vocabulary], of states [tokens, hidden_size] that no norm has seen."""
        self._handed.states = self._norm(states)[None]
        found: torch.Tensor = self._model(inputs_embeds=self._handed.states, use_cache=False).logits[0]
        return found.float()
