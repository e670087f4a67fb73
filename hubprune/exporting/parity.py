"""Compare a written GGUF file with its checkpoint in transformers.

Both run in one fresh process: `python -m hubprune.exporting.parity`, JSON in and out.  They get the same tokens:
transformers computes in float32, llama.cpp on the CPU without flash attention and with its KV cache in float32, so that
what is left to differ is the file.

Code of the checkpoint is never run: where a stock class cannot load it, transformers gets the modeling file that this
version of hubprune renders, whatever the folder itself ships.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import sys
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from hubprune.core.artifacts import ParityFigures
from hubprune.core.config import Structure, stock_config, write_json
from hubprune.core.console import size
from hubprune.core.devices import run_to_end
from hubprune.core.errors import VerificationError
from hubprune.core.extras import install
from hubprune.core.files import scratch_folder
from hubprune.core.fresh import SAFE_PATH
from hubprune.core.memory import available_bytes
from hubprune.core.neutral import load_causal_lm
from hubprune.core.privacy import is_carried
from hubprune.core.templates import link_model
from hubprune.core.weights import open_weights
from hubprune.exporting.writing import GgufContent

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Logits = NDArray[np.float32]


F32_TOLERANCE = 1e-3
"""Largest allowed difference of a logit where the file holds float32."""
F32 = 0
"""`GGML_TYPE_F32`."""
NEW_TOKENS = 24
TOKENIZER = "tokenizer"
"""Subfolder of the tokenizer, whose config.json is one of the family: nothing is trusted to read it."""
PROMPTS = (
    "Paris is the capital of",
    "One day, a little girl named Lily found a needle in her room. She knew it was difficult to play with it",
    "The river was high, and the bridge had been closed since the morning. People stood in small groups and waited",
    "def add(a, b):\n    return a + b\n\n\nprint(add(1, 2))",
)
TEXTS = (
    *PROMPTS,
    "Hello world",
    "It's 2024, isn't it? They'll say WE'RE late; I'D not.",
    "tabs\tand\nnewlines\r\n\r\nand   three spaces   \n  at both ends",
    "Zażółć gęślą jaźń — naïve café, Straße, Ελληνικά, русский, 日本語, 한국어, العربية",
    "emoji 🙂🙃 👩‍👩‍👧, flags 🇪🇺, math ∑∀∂ and e\u0301",
    "1234567890 3.14159 1,000,000 0x1F $9.99 50%",
    "x=[{'a':1}];//**!!??...___---  <tag> </tag> <|x|> & \\n @user #1",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa bbbb  cccc",
)


class ParityRequest(BaseModel):
    """Compare a GGUF file with the checkpoint it was made of."""

    folder: str
    tokenizer_folder: str
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
    normalizes: bool
    """Whether texts are brought into the form NFC first, which llama.cpp never does."""
    rows: list[list[int]]
    logits: list[Logits]
    """[positions, vocabulary] of every prompt."""
    greedy: list[list[int]]
    greedy_logits: list[Logits]
    """[new tokens, vocabulary]: what each new token was chosen by."""


def obstacle(folder: Path) -> str | None:
    """Say why a comparison is impossible here, or None."""
    if importlib.util.find_spec("llama_cpp") is None:
        return f"llama-cpp-python is not installed ({install('gguf')})"
    needed, there = 4 * open_weights(folder).parameters(), available_bytes()
    if needed > 0.8 * there:
        return f"transformers would need {size(needed)} of memory in float32, and {size(there)} are free"
    return None


def measure(
    file: Path, content: GgufContent, *, folder: Path, config: Mapping[str, Any], structure: Structure
) -> ParitySeen:
    """Run a file in llama.cpp and its checkpoint in transformers, both in one fresh process.

    Raises:
        VerificationError: one of the two does not load or run.
    """
    with _reference_folder(folder, config, structure) as reference:
        request = ParityRequest(
            folder=str(reference), tokenizer_folder=str(reference / TOKENIZER),
            custom_code=structure.layout != "stock", gguf=str(file.resolve()), texts=TEXTS, prompts=PROMPTS,
            new_tokens=max(1, min(NEW_TOKENS, content.sizes.context_length // 2)),
            context_length=content.sizes.context_length, tolerance=F32_TOLERANCE,
        )  # fmt: skip
        with scratch_folder(name="hubprune-modules") as modules:
            # transformers copies the modeling file into a cache of modules before it imports it; ours is thrown away.
            command = [sys.executable, SAFE_PATH, "-m", "hubprune.exporting.parity"]
            there = {**os.environ, "HF_MODULES_CACHE": str(modules)}
            asked = request.model_dump_json()
            done = run_to_end(command, input=asked, capture_output=True, text=True, errors="replace", env=there)
    if done.returncode == -9:
        message = "The fresh process that compares the export was killed."
        raise VerificationError(message, hint="Most likely the memory was too small.")
    try:
        return ParitySeen.model_validate_json(done.stdout.splitlines()[-1])
    except (IndexError, ValidationError) as error:
        raise VerificationError(f"The export could not be compared: {_reason(done.stderr)}") from error


@contextmanager
def _reference_folder(folder: Path, config: Mapping[str, Any], structure: Structure) -> Iterator[Path]:
    """Yield a folder with links to the weights and with code that is ours, if any; a subfolder has the tokenizer."""
    with scratch_folder(name="hubprune-parity") as made:
        model = made / "model"
        tokenizer = model / TOKENIZER
        tokenizer.mkdir(parents=True)
        link_model(config, structure, folder, model)
        write_json(stock_config(config, structure), tokenizer)
        for path in filter(Path.is_file, folder.iterdir()):
            if is_carried(path.name):
                (tokenizer / path.name).symlink_to(path.resolve())
        yield model


def _reason(text: str) -> str:
    """Return the line of a log that says most: llama.cpp's error, else the last one."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if "error" in line.lower() or "GGML_ASSERT" in line]
    loading = [line for line in telling if "error loading model" in line or "GGML_ASSERT" in line]
    return (loading or telling[-1:] or lines[-1:] or ["it ended without a word."])[0]


def compare(request: ParityRequest) -> ParitySeen:
    """Run both on the prompts, one after the other, so that only one is in memory."""
    import llama_cpp
    import transformers

    reference = _ask_transformers(request)
    gc.collect()
    longest = max(len(row) for row in reference.rows) + request.new_tokens
    llama = llama_cpp.Llama(
        request.gguf, n_ctx=longest, n_batch=longest, n_ubatch=longest, n_gpu_layers=0, logits_all=True,
        flash_attn=False, type_k=F32, type_v=F32,
        verbose=True,  # the parent shows what it says if it fails
    )  # fmt: skip
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
        normalizes=type(getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)).__name__ == "NFC",
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
    seen = []
    for row in reference.rows:
        llama.reset()
        llama.eval(row)
        seen.append(llama.scores[: len(row)].copy())
    ours = np.concatenate(seen)
    known = zip(reference.rows, reference.greedy, strict=True)
    greedy = [_llama_greedy(llama, _start(row, request), len(ids)) for row, ids in known]
    same_text = [
        _same_up_to_a_tie(*texts, tolerance=request.tolerance)
        for texts in zip(reference.greedy, greedy, reference.greedy_logits, strict=True)
    ]
    texts = [unicodedata.normalize("NFC", text) if reference.normalizes else text for text in request.texts]
    different = [
        text
        for text, ids in zip(texts, reference.tokens, strict=True)
        if llama.tokenize(text.encode(), add_bos=True, special=True) != ids
    ]
    best, named = theirs.argmax(axis=1), ours.argmax(axis=1)
    where = np.arange(len(best))
    close = theirs[where, best] - theirs[where, named] <= request.tolerance
    spread = float(np.sqrt(((theirs - theirs.mean(axis=1, keepdims=True)) ** 2).mean()))
    figures = ParityFigures(
        positions=len(best), agreed=int((best == named).sum()), undecided=int(((best != named) & close).sum()),
        max_logit_difference=float(np.abs(ours - theirs).max()),
        relative_difference=float(np.sqrt(((ours - theirs) ** 2).mean())) / max(spread, 1e-30),
        kl_divergence=_kl_divergence(theirs, ours),
        greedy_texts=len(same_text), equal_greedy_texts=sum(same_text), tokenized_texts=len(request.texts),
        equal_tokenized_texts=len(request.texts) - len(different),
    )  # fmt: skip
    return figures, different[0] if different else None


def _kl_divergence(theirs: Logits, ours: Logits) -> float:
    """Return the mean Kullback-Leibler divergence of next tokens, in nats."""
    import numpy as np

    def log_softmax(logits: Logits) -> Any:
        shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))

    p, q = log_softmax(theirs), log_softmax(ours)
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


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
