"""Run a checkpoint in mlx-lm, without code of ours, and compare it with transformers.

mlx-lm knows the nemotron-nas layout by itself.  Where it is installed, a checkpoint in that layout is run there too.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from hubprune.core.artifacts import Check
from hubprune.core.neutral import load_causal_lm

TOLERANCE = 1e-3
"""Largest allowed difference of a logit in float32; mlx-lm sums in another order."""


class MlxRequest(BaseModel):
    """Compare a checkpoint in mlx-lm with itself in transformers."""

    folder: str
    prompts: tuple[str, ...]


class MlxComparison(BaseModel):
    """What the comparison saw."""

    version: str
    max_logit_difference: float
    argmax_equal: bool
    positions: int

    @property
    def check(self) -> Check:
        """The comparison as one check of the verification."""
        return Check(
            name="logits in mlx-lm equal those in transformers",
            passed=self.argmax_equal and self.max_logit_difference <= TOLERANCE,
            detail=f"mlx-lm {self.version}, largest difference {self.max_logit_difference:.2e} in float32",
        )


def is_installed() -> bool:
    """Tell whether mlx-lm can be imported."""
    return importlib.util.find_spec("mlx_lm") is not None


def compare(request: MlxRequest) -> MlxComparison:
    """Run both on the prompts in float32; transformers first, so that only one model is in memory."""
    from importlib.metadata import version

    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(request.folder, trust_remote_code=False)
    rows = [tokenizer(prompt).input_ids for prompt in request.prompts]
    reference = _transformers_logits(request.folder, rows)
    pairs = list(zip(reference, _mlx_logits(Path(request.folder), rows), strict=True))
    return MlxComparison(
        version=version("mlx-lm"),
        max_logit_difference=max(float((one - other).abs().max()) for one, other in pairs),
        argmax_equal=all(bool(b.isfinite().all()) and torch.equal(a.argmax(-1), b.argmax(-1)) for a, b in pairs),
        positions=sum(map(len, rows)),
    )


def _transformers_logits(folder: str, rows: Sequence[Sequence[int]]) -> list[Any]:
    import torch

    model = load_causal_lm(folder, dtype=torch.float32, own_code=True)
    with torch.inference_mode():
        return [model(torch.tensor([row])).logits[0] for row in rows]


def _mlx_logits(folder: Path, rows: Sequence[Sequence[int]]) -> list[Any]:
    import mlx.core as mx
    import torch
    from mlx_lm.utils import load_model

    model, _ = load_model(folder, strict=True)
    model.set_dtype(mx.float32)
    return [torch.tensor(model(mx.array([row])).tolist())[0] for row in rows]
