"""What the fresh process of a verification does; `python -m hubprune.pruning.loading ACTION`, JSON in and out.

It loads as a reader would, with `trust_remote_code=True` where the checkpoint ships a modeling file, which is one that
hubprune rendered; so is that of a base that was pruned before.  What the files only wish for, attention and settings of
generation, is the same for both: see `hubprune.core.neutral`.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from hubprune.core import devices
from hubprune.core.artifacts import Check
from hubprune.core.neutral import load_causal_lm
from hubprune.pruning.comparing import CompareRequest, Word, compare, generate
from hubprune.pruning.tokenizer_files import load_tokenizer


class LoadRequest(BaseModel):
    """Load a commit from a Hub and let it write."""

    repo_id: str
    commit: str
    prompt: str
    new_tokens: int
    custom_code: bool


class Loaded(BaseModel):
    """What a model that was loaded from a Hub wrote."""

    text: str
    """The prompt and its continuation."""
    parameters: int


def load(request: LoadRequest) -> Loaded:
    """Load a published commit and write a greedy continuation."""
    import torch

    tokenizer = load_tokenizer(request.repo_id, revision=request.commit)
    model = load_causal_lm(request.repo_id, dtype="auto", own_code=request.custom_code, revision=request.commit)
    ids = tokenizer(request.prompt, return_tensors="pt").input_ids
    with torch.inference_mode():
        [new] = generate(model, ids, new_tokens=request.new_tokens)
    # Decoded together: alone, a first token loses the space before it in some tokenizers.
    text = tokenizer.decode([*ids[0].tolist(), *new], skip_special_tokens=True)
    return Loaded(text=text, parameters=model.num_parameters())


MLX_TOLERANCE = 1e-3
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
            passed=self.argmax_equal and self.max_logit_difference <= MLX_TOLERANCE,
            detail=f"mlx-lm {self.version}, largest difference {self.max_logit_difference:.2e} in float32",
        )


def mlx_is_installed() -> bool:
    """Tell whether mlx-lm can be imported."""
    return importlib.util.find_spec("mlx_lm") is not None


def compare_in_mlx(request: MlxRequest) -> MlxComparison:
    """Run both on the prompts in float32; transformers first, so that only one model is in memory."""
    from importlib.metadata import version

    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(request.folder, trust_remote_code=False)
    rows = [tokenizer(prompt).input_ids for prompt in request.prompts]
    model = load_causal_lm(request.folder, dtype=torch.float32, own_code=True)
    with torch.inference_mode():
        reference = [model(torch.tensor([row])).logits[0] for row in rows]
    del model
    pairs = list(zip(reference, _mlx_logits(Path(request.folder), rows), strict=True))
    return MlxComparison(
        version=version("mlx-lm"),
        max_logit_difference=max(float((one - other).abs().max()) for one, other in pairs),
        argmax_equal=all(bool(b.isfinite().all()) and torch.equal(a.argmax(-1), b.argmax(-1)) for a, b in pairs),
        positions=sum(map(len, rows)),
    )


def _mlx_logits(folder: Path, rows: Sequence[Sequence[int]]) -> list[Any]:
    import mlx.core as mx
    import torch
    from mlx_lm.utils import load_model

    model, _ = load_model(folder, strict=True)
    model.set_dtype(mx.float32)
    return [torch.tensor(model(mx.array([row])).tolist())[0] for row in rows]


def _tell(word: Word) -> None:
    print(word.model_dump_json(exclude_defaults=True), flush=True)


_ACTIONS: Mapping[str, tuple[type[BaseModel], Callable[[Any], BaseModel]]] = {
    "compare": (CompareRequest, lambda request: compare(request, _tell)),
    "load": (LoadRequest, load),
    "mlx": (MlxRequest, compare_in_mlx),
}


def main() -> None:
    """Read a request from stdin, write words on stdout, and the answer as the last line."""
    devices.spare()
    kind, act = _ACTIONS[sys.argv[1]]
    print(act(kind.model_validate_json(sys.stdin.read())).model_dump_json())


if __name__ == "__main__":
    main()
