"""What the fresh process of a verification does; `python -m hubprune.pruning.loading ACTION`, JSON in and out.

It loads as a reader would, with `trust_remote_code=True` where the checkpoint ships a modeling file, which is one that
hubprune rendered; so is that of a base that was pruned before.  What the files only wish for, attention and settings of
generation, is the same for both: see `hubprune.core.neutral`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel

from hubprune.core import devices
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


def _tell(word: Word) -> None:
    print(word.model_dump_json(exclude_defaults=True), flush=True)


_ACTIONS: Mapping[str, tuple[type[BaseModel], Callable[[Any], BaseModel]]] = {
    "compare": (CompareRequest, lambda request: compare(request, _tell)),
    "load": (LoadRequest, load),
}


def main() -> None:
    """Read a request from stdin, write words on stdout, and the answer as the last line."""
    devices.spare()
    kind, act = _ACTIONS[sys.argv[1]]
    print(act(kind.model_validate_json(sys.stdin.read())).model_dump_json())


if __name__ == "__main__":
    main()
