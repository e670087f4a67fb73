"""What the fresh process of a parity check does; `python -m hubprune.exporting.parity_process`, JSON in and out.

Both runtimes get the same tokens: transformers computes in float32, llama.cpp on the CPU without flash attention and
with its KV cache in float32, so that what is left to differ is the file.
"""

from __future__ import annotations

import gc
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from hubprune.core.neutral import load_causal_lm
from hubprune.exporting.artifact import ParityFigures

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Logits = NDArray[np.float32]

F32 = 0
"""`GGML_TYPE_F32`."""


class ParityRequest(BaseModel):
    """Compare a GGUF file with the checkpoint it was made of."""

    folder: str
    """The checkpoint, for transformers."""
    tokenizer_folder: str
    """Its tokenizer."""
    custom_code: bool
    """Whether it comes with a modeling file, which is one that hubprune rendered."""
    gguf: str
    texts: tuple[str, ...]
    """What both have to cut into the same tokens."""
    prompts: tuple[str, ...]
    """What both predict, and continue."""
    new_tokens: int
    context_length: int
    tolerance: float
    """Logits of transformers that are closer than this are a tie."""


class ParitySeen(BaseModel):
    """What the comparison saw."""

    figures: ParityFigures
    first_different_text: str | None
    """A text that was cut into other tokens."""
    transformers: str
    llama_cpp_python: str


@dataclass(frozen=True, kw_only=True)
class _Reference:
    """What transformers says."""

    tokens: list[list[int]]
    """Ids of every text."""
    rows: list[list[int]]
    """Ids of every prompt."""
    logits: list[Logits]
    """[positions, vocabulary] of every prompt."""
    greedy: list[list[int]]
    greedy_logits: list[Logits]
    """[new tokens, vocabulary]: what each new token was chosen by."""


def compare(request: ParityRequest) -> ParitySeen:
    """Run both on the prompts, one after the other, so that only one is in memory."""
    import llama_cpp
    import transformers

    reference = _ask_transformers(request)
    gc.collect()
    longest = max(len(row) for row in reference.rows) + request.new_tokens
    llama = llama_cpp.Llama(
        request.gguf,
        n_ctx=longest,
        n_batch=longest,
        n_ubatch=longest,
        n_gpu_layers=0,
        logits_all=True,
        flash_attn=False,
        type_k=F32,
        type_v=F32,
        verbose=True,  # the parent shows what it says if it fails
    )
    figures, different = _compare(request, reference, llama)
    return ParitySeen(
        figures=figures,
        first_different_text=different,
        transformers=transformers.__version__,
        llama_cpp_python=llama_cpp.__version__,
    )


def _ask_transformers(request: ParityRequest) -> _Reference:
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(request.tokenizer_folder, trust_remote_code=False)
    room = max(2, request.context_length)
    rows = [tokenizer(prompt).input_ids[:room] for prompt in request.prompts]
    model = load_causal_lm(request.folder, dtype=torch.float32, own_code=request.custom_code)
    with torch.inference_mode():
        logits = [model(torch.tensor([row])).logits[0].numpy() for row in rows]
        continued = [_greedy(model, _start(row, request), request.new_tokens, room) for row in rows]
    return _Reference(
        tokens=[tokenizer(text).input_ids for text in request.texts],
        rows=rows,
        logits=logits,
        greedy=[ids for ids, _ in continued],
        greedy_logits=[chosen_by for _, chosen_by in continued],
    )


def _start(row: list[int], request: ParityRequest) -> list[int]:
    """Return what of a prompt is continued: so much that the new tokens fit into the context."""
    return row[: max(1, min(len(row), request.context_length - request.new_tokens))]


def _greedy(model: Any, row: list[int], new_tokens: int, room: int) -> tuple[list[int], Logits]:
    import numpy as np
    import torch

    ids, cache, seen = list[int](), None, []
    fed = torch.tensor([row])
    for _ in range(min(new_tokens, room - len(row))):
        out = model(fed, past_key_values=cache, use_cache=True)
        cache, last = out.past_key_values, out.logits[0, -1]
        seen.append(last.numpy())
        ids.append(int(last.argmax()))
        fed = torch.tensor([ids[-1:]])
    return ids, np.stack(seen)


def _llama_logits(llama: Any, row: list[int]) -> Logits:
    llama.reset()
    llama.eval(row)
    found: Logits = llama.scores[: len(row)].copy()
    return found


def _llama_greedy(llama: Any, row: list[int], new_tokens: int) -> list[int]:
    ids: list[int] = []
    llama.reset()
    fed = row
    for _ in range(new_tokens):
        llama.eval(fed)
        ids.append(int(llama.scores[llama.n_tokens - 1].argmax()))
        fed = ids[-1:]
    return ids


def _compare(request: ParityRequest, reference: _Reference, llama: Any) -> tuple[ParityFigures, str | None]:
    import numpy as np

    theirs = np.concatenate(reference.logits)
    ours = np.concatenate([_llama_logits(llama, row) for row in reference.rows])
    greedy = [
        _llama_greedy(llama, _start(row, request), len(ids))
        for row, ids in zip(reference.rows, reference.greedy, strict=True)
    ]
    same_text = [
        _same_up_to_a_tie(*texts, tolerance=request.tolerance)
        for texts in zip(reference.greedy, greedy, reference.greedy_logits, strict=True)
    ]
    different = [
        text
        for text, ids in zip(request.texts, reference.tokens, strict=True)
        if llama.tokenize(text.encode(), add_bos=True, special=True) != ids
    ]
    best, named = theirs.argmax(axis=1), ours.argmax(axis=1)
    where = np.arange(len(best))
    close = theirs[where, best] - theirs[where, named] <= request.tolerance
    spread = float(np.sqrt(((theirs - theirs.mean(axis=1, keepdims=True)) ** 2).mean()))
    figures = ParityFigures(
        positions=len(best),
        agreed=int((best == named).sum()),
        undecided=int(((best != named) & close).sum()),
        max_logit_difference=float(np.abs(ours - theirs).max()),
        relative_difference=float(np.sqrt(((ours - theirs) ** 2).mean())) / max(spread, 1e-30),
        greedy_texts=len(same_text),
        equal_greedy_texts=sum(same_text),
        tokenized_texts=len(request.texts),
        equal_tokenized_texts=len(request.texts) - len(different),
    )
    return figures, different[0] if different else None


def _same_up_to_a_tie(theirs: list[int], ours: list[int], logits: Logits, *, tolerance: float) -> bool:
    """Tell whether two greedy texts are equal, or part where the reference hardly prefers one token."""
    for one, other, row in zip(theirs, ours, logits, strict=True):
        if one != other:
            return bool(row[one] - row[other] <= tolerance)
    return True


def main() -> None:
    """Read a request from stdin, write the answer as the last line of stdout."""
    print(compare(ParityRequest.model_validate_json(sys.stdin.read())).model_dump_json())


if __name__ == "__main__":
    main()
