"""Free text: what base and pruned write after the same prompts, decoded greedily and without penalties."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from hubprune.core.artifacts import Chat, GenerationComparison, ModelText, ModelTexts
from hubprune.core.console import Advance, Reporter, duration, quiet
from hubprune.core.errors import EvaluationError
from hubprune.core.neutral import fresh_generation
from hubprune.core.prompts import chat_ids
from hubprune.evaluation import models
from hubprune.evaluation.pair import Pair
from hubprune.evaluation.repetition import pair_texts

BATCH_TOKENS = 8192
"""Tokens of prompts and texts that are in memory at once, at most; the 32 shipped prompts are one batch."""
OFFLOADED_SECONDS, FEW_TOKENS = 1200, 16
"""Time that the texts of a model may take which is read from disk for every token, and tokens that they have anyway."""
MEMORY_HINT = "Set fewer max_new_tokens or shorter prompts in the recipe, or pass --device cpu."


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a model is asked to write."""

    prompts: tuple[str, ...]
    max_new_tokens: int
    rendered: tuple[str, ...] | None = None
    """What a chat template makes of each prompt, special tokens included; None where they are continued as they are."""
    chat: Chat | None = None
    """Told of the template, where there is one."""

    def ids(self, tokenizer: Any) -> list[list[int]]:
        """Return the token ids of every prompt."""
        if self.rendered is None:
            return [list(tokenizer(prompt)["input_ids"]) for prompt in self.prompts]
        return [chat_ids(tokenizer, text) for text in self.rendered]


def compare(
    pair: Pair, request: Request, *, base_texts: ModelTexts | None = None, reporter: Reporter
) -> GenerationComparison:
    """Let both models of a pair continue, or answer, the same prompts, one after the other, in the same batches.

    `base_texts` are what the base wrote before; None lets it write now.

    Raises:
        EvaluationError: a prompt leaves no room for a single new token, or the memory is too small for one prompt.
        RecipeError: this machine has no such device.
    """
    write_base = partial(write, pair, "base", reporter=reporter)
    write_pruned = partial(write, pair, "pruned", reporter=reporter)
    base = base_texts or write_base(request)
    # The limit that the base came to holds for both, so that the texts can be compared.
    request = replace(request, max_new_tokens=base.max_new_tokens)
    pruned = write_pruned(request, batches=base.batches)
    # In half precision a near tie can fall otherwise in another batch.  Where the second model had less memory, the
    # first writes again; batches only ever get smaller, so that this ends.
    while base.batches != pruned.batches:
        base = write_base(request, batches=pruned.batches)
        if base.batches != pruned.batches:
            pruned = write_pruned(request, batches=base.batches)
    return pair_texts(request.prompts, base, pruned).model_copy(update={"chat": request.chat})


def write(
    pair: Pair, name: str, request: Request, *, batches: models.Batches | None = None, reporter: Reporter
) -> ModelTexts:
    """Let one model of a pair continue all prompts.

    Decoding is greedy whatever the folder's generation_config.json says.  Where a prompt and `max_new_tokens` do not
    fit into the model's positions, all texts get shorter and a note says so; the result holds the number used.  So do
    those of a model that is read from disk for every token, where it would take too long.  Where memory runs out, fewer
    prompts are continued at once.  `batches` are the prompts that are continued together, and then nothing is cut for
    the time that it takes; None for those of similar length.

    Raises:
        EvaluationError: a prompt leaves no room for a single new token, or the memory is too small for one prompt.
        RecipeError: this machine has no such device.
    """
    with quiet():
        return _write(pair.load(name), request, name=name, batches=batches, reporter=reporter)


def _write(
    model: models.LoadedModel, request: Request, *, name: str, batches: models.Batches | None, reporter: Reporter
) -> ModelTexts:
    rows = request.ids(model.tokenizer)
    new_tokens = _room(model, rows, request, reporter)
    if batches is None:
        new_tokens = _in_time(model, rows, new_tokens, reporter)
        batches = _batches(model, rows, new_tokens)
    config = _greedy(model, max_new_tokens=new_tokens)

    def tell(number: int) -> None:
        reporter.note(f"memory ran out: going on with {'1 prompt' if number == 1 else f'{number} prompts'} at once")

    with (
        models.memory_errors("while it continued a single prompt", hint=MEMORY_HINT),
        reporter.progress(f"Free text, {name}", total=len(rows) * new_tokens, unit="tokens") as advance,
    ):
        texts, batches = models.run_batches(
            batches,
            lambda batch: _continue(model, [rows[i] for i in batch], config, advance),
            on_split=tell,
        )
    return ModelTexts(
        texts=tuple(texts), batches=batches, max_new_tokens=new_tokens, dtype=model.dtype, device=model.device
    )


def _room(model: models.LoadedModel, rows: Sequence[Sequence[int]], request: Request, reporter: Reporter) -> int:
    """Cut the number of new tokens down to what the model has positions for, after the longest prompt."""
    longest = max(range(len(rows)), key=lambda i: len(rows[i]))
    room = request.max_new_tokens if model.max_positions is None else model.max_positions - len(rows[longest])
    if room < 1:
        prompt, tokens = request.prompts[longest][:60], len(rows[longest])
        message = f"The prompt {prompt!r}... takes {tokens} of the model's {model.max_positions} positions."
        raise EvaluationError(message, hint="Shorten the prompt.")
    if room < request.max_new_tokens:
        reporter.note(
            f"Texts end after {room} new tokens instead of {request.max_new_tokens}: "
            f"the longest prompt takes {len(rows[longest])} of the model's {model.max_positions} positions."
        )
    return min(room, request.max_new_tokens)


def _in_time(model: models.LoadedModel, rows: Sequence[list[int]], new_tokens: int, reporter: Reporter) -> int:
    """Halve the number of new tokens until a model that is partly on disk writes them in time."""
    if not models.is_on_disk(model.model):
        return new_tokens
    each, cut = models.pass_seconds(model.model), new_tokens
    # All texts of a batch get their next token in one pass, most of which is reading.
    while (at_once := each * len(_batches(model, rows, cut))) * cut > OFFLOADED_SECONDS and cut > FEW_TOKENS:
        cut = max(FEW_TOKENS, cut // 2)
    instead = f" instead of {new_tokens}" if cut < new_tokens else ""
    took = f"{models.placed_on(model.model)} hold the model, and one token of all texts takes {duration(at_once)}"
    reporter.note(f"{took}: writing {cut} new tokens{instead}, in about {duration(cut * at_once)}")
    return cut


def _batches(model: models.LoadedModel, rows: Sequence[Sequence[int]], new_tokens: int) -> models.Batches:
    return models.similar_length(
        [len(row) + new_tokens for row in rows], tokens=models.text_tokens(model.model, most=BATCH_TOKENS)
    )


def _greedy(model: models.LoadedModel, *, max_new_tokens: int) -> Any:
    named = model.model.generation_config.eos_token_id  # else the tokenizer names the tokens that end a text
    named = model.tokenizer.eos_token_id if named is None else named
    ends = [] if named is None else [int(e) for e in (named if isinstance(named, list) else [named])]
    pad = model.tokenizer.pad_token_id  # masked on the left and cut off on the right, it is never seen
    pad = int(pad) if pad is not None else next(iter(ends), 0)
    return fresh_generation(ends, max_new_tokens=max_new_tokens, pad_token_id=pad)


class _Steps(StoppingCriteria):
    """Stops no text; tells of every token that is added to all texts of a batch."""

    def __init__(self, advance: Advance) -> None:
        self.done = 0
        self._advance = advance

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        self.tell(len(input_ids))
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    def tell(self, tokens: int) -> None:
        self.done += tokens
        self._advance(tokens)


def _continue(model: models.LoadedModel, rows: Sequence[list[int]], config: Any, advance: Advance) -> list[ModelText]:
    width = max(map(len, rows))
    ids = torch.tensor([[config.pad_token_id] * (width - len(row)) + row for row in rows])  # [batch, width]
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])  # [batch, width]
    steps, expected = _Steps(advance), len(rows) * config.max_new_tokens
    try:
        output = model.model.generate(
            ids.to(model.device),
            attention_mask=mask.to(model.device),
            generation_config=config,
            stopping_criteria=StoppingCriteriaList([steps]),
        )
    except RuntimeError:
        steps.tell(-steps.done)  # tried again in smaller batches, or it does not matter any more
        raise
    steps.tell(expected - steps.done)  # where all texts ended early
    ends = set(config.eos_token_id or ())
    decode = partial(model.tokenizer.decode, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    texts = []
    for prompt, padded in zip(rows, output[:, width:].tolist(), strict=True):
        new = next((padded[: i + 1] for i, token in enumerate(padded) if token in ends), padded)
        # Decoded as they stand after the prompt: alone, a SentencePiece word would lose its leading space.
        before, whole, alone = (str(decode(tokens)) for tokens in (prompt, prompt + new, new))
        text = whole.removeprefix(before) if whole.startswith(before) else alone
        ids = tuple(token for token in new if token not in ends)
        texts.append(ModelText(text=text, tokens=len(new), token_ids=ids))
    return texts
