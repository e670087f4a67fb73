"""Free text: what base and pruned write after the same prompts, decoded greedily and without penalties."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from hubprune.artifacts import Continuation, GenerationComparison
from hubprune.console import Reporter
from hubprune.errors import EvaluationError
from hubprune.evaluation.libraries import quiet
from hubprune.evaluation.models import LoadedModel, load_model, memory_errors, release_memory

__all__ = ["compare"]

BATCH_SIZE = 8
"""Prompts that are continued at once, the same ones for both models."""
MEMORY_HINT = "Set fewer max_new_tokens or shorter prompts in the recipe, or pass --device cpu."


def compare(
    base_folder: Path,
    pruned_folder: Path,
    *,
    base_code: bool = False,
    prompts: tuple[str, ...],
    max_new_tokens: int,
    device: str,
    dtype: str,
    reporter: Reporter,
) -> GenerationComparison:
    """Let two model folders continue the same prompts, one model after the other.

    Decoding is greedy whatever the folders' generation_config.json says.  Code in a folder is run for the pruned one,
    and for the base where `base_code` says that this package rendered it.  Where a prompt and `max_new_tokens` do not
    fit into the base's positions, all texts get shorter and a note says so; the result holds the number used.

    Raises:
        EvaluationError: a prompt leaves no room for a single new token, or the device's memory is too small.
        RecipeError: this machine has no such device.
    """
    with quiet():
        request = _Request(prompts, max_new_tokens, device, dtype, reporter)
        base = _write(request, base_folder, name="base", trust_remote_code=base_code)
        # The limit that the base came to holds for both, so that the texts can be compared.
        request = replace(request, max_new_tokens=base.max_new_tokens)
        pruned = _write(request, pruned_folder, name="pruned", trust_remote_code=True)
    return GenerationComparison(
        continuations=tuple(map(_pair, prompts, base.texts, pruned.texts)),
        max_new_tokens=base.max_new_tokens,
        dtype=base.dtype,
        device=base.device,
    )


@dataclass(frozen=True)
class _Request:
    """What both models are asked for."""

    prompts: tuple[str, ...]
    max_new_tokens: int
    device: str
    dtype: str
    reporter: Reporter


@dataclass(frozen=True)
class _Text:
    """One continuation, without its prompt."""

    text: str
    tokens: int


@dataclass(frozen=True)
class _Written:
    """What one model wrote."""

    texts: tuple[_Text, ...]
    max_new_tokens: int
    device: str
    dtype: str


def _pair(prompt: str, base: _Text, pruned: _Text) -> Continuation:
    return Continuation(
        prompt=prompt, base=base.text, pruned=pruned.text, base_tokens=base.tokens, pruned_tokens=pruned.tokens
    )


def _write(request: _Request, folder: Path, *, name: str, trust_remote_code: bool) -> _Written:
    model = load_model(folder, device=request.device, dtype=request.dtype, trust_remote_code=trust_remote_code)
    rows = [list(model.tokenizer(prompt)["input_ids"]) for prompt in request.prompts]
    config = _greedy(model, max_new_tokens=_room(model, rows, request))
    texts: list[_Text] = []
    with request.reporter.progress(f"Free text, {name}", total=len(rows), unit="prompts") as advance:
        for start in range(0, len(rows), BATCH_SIZE):
            batch = rows[start : start + BATCH_SIZE]
            with memory_errors(f"while it continued {len(batch)} prompts at once", hint=MEMORY_HINT):
                texts += _continue(model, batch, config)
            advance(len(batch))
    written = _Written(tuple(texts), config.max_new_tokens, model.device, model.dtype)
    del model
    release_memory()
    return written


def _room(model: LoadedModel, rows: Sequence[Sequence[int]], request: _Request) -> int:
    """Cut the number of new tokens down to what the model has positions for, after the longest prompt."""
    longest = max(range(len(rows)), key=lambda i: len(rows[i]))
    room = request.max_new_tokens if model.max_positions is None else model.max_positions - len(rows[longest])
    if room < 1:
        prompt, tokens = request.prompts[longest][:60], len(rows[longest])
        message = f"The prompt {prompt!r}... takes {tokens} of the model's {model.max_positions} positions."
        raise EvaluationError(message, hint="Shorten the prompt.")
    if room < request.max_new_tokens:
        request.reporter.note(
            f"Texts end after {room} new tokens instead of {request.max_new_tokens}: "
            f"the longest prompt takes {len(rows[longest])} of the model's {model.max_positions} positions."
        )
    return min(room, request.max_new_tokens)


def _greedy(model: LoadedModel, *, max_new_tokens: int) -> Any:
    """Make the one way of decoding that both models get, and forget what the checkpoint would have liked."""
    ends = _end_tokens(model)
    config = GenerationConfig(
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        max_new_tokens=max_new_tokens,
        eos_token_id=ends or None,
        pad_token_id=_pad_token(model, ends),
    )
    # `generate` fills whatever its config leaves open from this one, penalties and beams included.
    model.model.generation_config = config
    return config


def _end_tokens(model: LoadedModel) -> list[int]:
    """List the tokens that end a text: the checkpoint's generation_config.json names them, or else its tokenizer."""
    ends = model.model.generation_config.eos_token_id
    ends = model.tokenizer.eos_token_id if ends is None else ends
    return [] if ends is None else [int(e) for e in (ends if isinstance(ends, list) else [ends])]


def _pad_token(model: LoadedModel, ends: list[int]) -> int:
    """Pick a token to fill rows with; masked on the left and cut off on the right, it is never seen."""
    pad = model.tokenizer.pad_token_id
    return int(pad) if pad is not None else next(iter(ends), 0)


def _continue(model: LoadedModel, rows: Sequence[list[int]], config: Any) -> list[_Text]:
    width = max(map(len, rows))
    ids = torch.tensor([[config.pad_token_id] * (width - len(row)) + row for row in rows])  # [batch, width]
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])  # [batch, width]
    output = model.model.generate(ids.to(model.device), attention_mask=mask.to(model.device), generation_config=config)
    ends = set(config.eos_token_id or ())
    return [_text(model, row, _cut(new, ends)) for row, new in zip(rows, output[:, width:].tolist(), strict=True)]


def _cut(tokens: list[int], ends: set[int]) -> list[int]:
    """Keep tokens up to the first that ends the text, that one included; padding comes after it."""
    return next((tokens[: i + 1] for i, token in enumerate(tokens) if token in ends), tokens)


def _text(model: LoadedModel, prompt: list[int], new: list[int]) -> _Text:
    """Decode new tokens as they stand after the prompt: alone, a SentencePiece word would lose its leading space."""
    before, whole, alone = (_decode(model, tokens) for tokens in (prompt, prompt + new, new))
    return _Text(whole.removeprefix(before) if whole.startswith(before) else alone, len(new))


def _decode(model: LoadedModel, tokens: list[int]) -> str:
    return str(model.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))
