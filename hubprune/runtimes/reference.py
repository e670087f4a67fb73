"""What transformers makes of token ids, in a fresh process: `python -m hubprune.runtimes.reference`, JSON in and out.

It goes along the texts that other runtimes wrote and notes, token by token, how probable it holds what they chose and
which token it would have chosen.  So one pass over a text compares all of it, also behind a place where two tokens tie.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from hubprune.core import devices, fresh
from hubprune.core.devices import last_words, run_to_end
from hubprune.core.errors import VerificationError
from hubprune.core.files import scratch_folder
from hubprune.core.neutral import load_causal_lm


class Text(BaseModel, frozen=True):
    """A prompt and what follows it, as token ids."""

    prompt: tuple[int, ...]
    ids: tuple[int, ...]


class ReferenceRequest(BaseModel):
    """Cut texts into tokens, and go along others."""

    folder: str
    own_code: bool
    """Whether it comes with a modeling file, which is ours or trusted."""
    dtype: str = "float32"
    """To compute in; `auto` for that of config.json."""
    words: tuple[str, ...] = ()
    """Texts to cut into tokens."""
    texts: tuple[Text, ...] = ()
    """Texts to go along; without any, no model is loaded."""


class Row(BaseModel):
    """What transformers says of each token that follows a prompt."""

    logprobs: tuple[float, ...]
    """Natural logarithm of the probability of the token that is there."""
    best: tuple[int, ...]
    """The token that it would have chosen."""
    best_logprobs: tuple[float, ...]


class Reference(BaseModel):
    """What transformers says."""

    transformers: str
    dtype: str
    tokens: tuple[tuple[int, ...], ...]
    """Of each of the words."""
    rows: tuple[Row, ...]
    """Of each text."""


def ask_transformers(request: ReferenceRequest) -> Reference:
    """Let transformers answer in a fresh process.

    Raises:
        VerificationError: it does not load the folder.
    """
    with scratch_folder(name="hubprune-reference") as work:
        link = work / "folder"
        link.symlink_to(Path(request.folder).resolve(), target_is_directory=True)
        variables = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(work / "modules")}
        asked = request.model_copy(update={"folder": str(link)}).model_dump_json()
        command = fresh.python(["-m", "hubprune.runtimes.reference"], variables)
        done = run_to_end(command, input=asked, env=variables, capture_output=True, text=True, errors="replace")
    try:
        return Reference.model_validate_json(done.stdout.splitlines()[-1])
    except (IndexError, ValidationError) as error:
        killed = f"it was killed by signal {-done.returncode}" if done.returncode < 0 else last_words(done.stderr)
        raise VerificationError(f"transformers could not run the checkpoint: {killed}") from error


def answer(request: ReferenceRequest) -> Reference:
    """Load the folder and answer; what is computed is float32 in the end, whatever the model computes in."""
    import torch
    import transformers

    tokens = list[tuple[int, ...]]()
    if request.words:
        tokenizer = transformers.AutoTokenizer.from_pretrained(request.folder, trust_remote_code=False)
        tokens = [tuple(tokenizer(text).input_ids) for text in request.words]
    rows, dtype = list[Row](), request.dtype
    if request.texts:
        wanted = request.dtype if request.dtype == "auto" else getattr(torch, request.dtype)
        model = load_causal_lm(request.folder, dtype=wanted, own_code=request.own_code)
        dtype = str(model.dtype).removeprefix("torch.")
        rows = [_go_along(model, text.prompt, text.ids) for text in request.texts]
    return Reference(transformers=transformers.__version__, dtype=dtype, tokens=tuple(tokens), rows=tuple(rows))


def _go_along(model: Any, prompt: Sequence[int], ids: Sequence[int]) -> Row:
    import torch

    with torch.inference_mode():
        logits = model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
    probable = logits.float().log_softmax(-1)
    top, best = probable.max(-1)
    chosen = probable.gather(-1, torch.tensor(ids)[:, None])[:, 0]
    return Row(logprobs=chosen.tolist(), best=best.tolist(), best_logprobs=top.tolist())


def main() -> None:
    """Read a request from stdin, write the answer as the last line of stdout."""
    devices.spare()
    print(answer(ReferenceRequest.model_validate_json(sys.stdin.read())).model_dump_json())


if __name__ == "__main__":
    main()
