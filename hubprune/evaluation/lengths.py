"""Long prompts: what they are in tokens, whether a base has the positions and the memory for them, and what is cut off.

lm-eval cuts a prompt that is too long on its left and says nothing.  The examples of `long` are on the left, so that a
cut one would be another benchmark: those tasks are refused before anything is computed, with what fits.  Of others it
is counted which prompts were cut, and the results say so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hubprune.core.console import Reporter, quiet, size
from hubprune.core.errors import EvaluationError
from hubprune.core.memory import kv_bytes_per_layer
from hubprune.core.privacy import no_calls_elsewhere
from hubprune.core.recipe import EvaluationSpec, parse
from hubprune.evaluation.requests import Answer, Request
from hubprune.evaluation.tasks import load_tasks, own_tasks

NOTED = 256
"""Tokens from which on the length of a prompt is noted."""
LONG = 2048
"""Characters from which on the tokens of a context are kept, and tokens from which on logits may be too many."""
LOGIT_BYTES = 12
"""What lm-eval takes for one logit: in half precision, in float32, and its logarithm."""
ROOM = 8
"""Logits may take one part in so many of the free memory."""
STATES = 4
"""Times that the hidden states of a prompt are there: of base and pruned model, before and behind a layer."""
Encode = Callable[[str], list[int]]


@dataclass(frozen=True)
class Length:
    """How long a prompt is."""

    tokens: int
    """That are read of it with its longest answer, or would be with enough positions."""
    room: int
    """That the model has positions for; those before them are cut off."""


class Encoded:
    """What panels know of long prompts: their tokens, which cost more than a short model takes, and their lengths."""

    def __init__(self) -> None:
        self._contexts: dict[str, tuple[int, ...]] = {}
        self._endings: dict[tuple[str, str], list[int]] = {}
        self.lengths: dict[str, Length] = {}

    def pair(self, context: str, ending: str, *, encode: Encode) -> tuple[tuple[int, ...], list[int]] | None:
        """Return the tokens of a long context and an ending as lm-eval finds them; None where it has to.

        Thousands of requests may have the same context, whose tokens are there once.
        """
        if len(context) < LONG or not (bare := context.rstrip()):
            return None
        # The spaces at its end, which chat templates leave there, are read with the ending.
        context, ending = bare, context[len(bare) :] + ending
        if context not in self._contexts:
            self._contexts[context] = tuple(encode(context))
        tokens = self._contexts[context]
        if (context, ending) not in self._endings:
            self._endings[context, ending] = encode(context + ending)[len(tokens) :]
        return tokens, self._endings[context, ending]

    def note(self, requests: Iterable[tuple[Any, Sequence[int], Sequence[int]]], *, positions: int) -> None:
        """Keep how long requests are that lm-eval makes: strings, tokens of the context and of the ending."""
        for strings, context, ending in requests:
            if strings:
                self._note(strings[0], len(context) + len(ending) - 1, positions)

    def note_prompts(
        self, prompts: Iterable[tuple[str, Mapping[str, Any]]], *, encode: Encode, room: Callable[[Any], int]
    ) -> None:
        """Keep how long prompts are behind which a model writes, where `room` tokens of each are read."""
        for prompt in prompts:
            if len(prompt[0]) > min(NOTED, places := room(prompt)):  # no token has less than a character
                self._note(prompt[0], len(encode(prompt[0])), places)

    def _note(self, text: str, tokens: int, room: int) -> None:
        if tokens > min(NOTED, room):
            known = self.lengths.get(text)
            self.lengths[text] = Length(max(tokens, known.tokens if known else 0), room)

    def of_task(self, samples: Iterable[Mapping[str, Any]]) -> dict[str, int | None]:
        """Say of a row of a comparison how long its longest prompt is, where it is long, and how many were cut."""
        texts = {arguments[0] for sample in samples for arguments in sample.get("arguments", ())}
        found = [self.lengths[text] for text in texts if text in self.lengths]
        longest = max((length.tokens for length in found), default=None)
        return {"prompt_tokens": longest, "prompts_cut": sum(length.tokens > length.room for length in found)}


def write_samples(samples: Mapping[str, list[Mapping[str, Any]]], folder: Path) -> None:
    """Write what lm-eval says of each document of each task; a long prompt is written once, not with each answer."""
    from lm_eval.utils import handle_non_serializable

    folder.mkdir(parents=True, exist_ok=True)
    for task, rows in samples.items():
        fit_for_a_file = re.sub(r"[^\w.-]+", "_", task)
        path = folder / f"samples_{fit_for_a_file}.jsonl"
        unfinished = path.with_suffix(".tmp")
        with unfinished.open("w", encoding="utf-8") as file:
            for row in map(_prompt_once, rows):
                file.write(json.dumps(row, default=handle_non_serializable, sort_keys=True) + "\n")
        unfinished.replace(path)


def _prompt_once(sample: Mapping[str, Any]) -> Mapping[str, Any]:
    """Leave a long prompt out of the arguments of a sample behind the first ones."""
    first, *others = sample.get("arguments") or [("",)]
    if not others or len(first[0]) < LONG:
        return sample
    told = [first, *(("", *given[1:]) if given[0] == first[0] else given for given in others)]
    return {**sample, "arguments": told}


def has_many_logits(request: Request, model: Any, *, free: int) -> bool:
    """Tell whether the logits of all tokens of a request would take too much of the free memory."""
    needed = len(request) * int(model.config.get_text_config().vocab_size) * LOGIT_BYTES
    return len(request) > LONG and needed > free // ROOM


def score_alone(model: Any, request: Request) -> Answer:
    """Score a request by transformers' own pass over it alone, with logits of what it is scored on and no others."""
    import torch

    with torch.inference_mode():
        ids = torch.tensor([request.read], device=model.get_input_embeddings().weight.device)
        logits = model(ids, use_cache=False, logits_to_keep=request.scored).logits[0].float()  # [scored, vocabulary]
        likely = logits.log_softmax(-1).cpu()
    targets = torch.tensor(request.targets)
    nats = likely.gather(1, targets[:, None]).double().sum().item()
    return Answer(nats, bool((likely.argmax(-1) == targets).all()))


# ---- beforehand ------------------------------------------------------------------------------------------------------


def long_tasks(spec: EvaluationSpec) -> tuple[str, ...]:
    """Name the tasks of a spec whose prompts are long by intention."""
    return tuple(name for name in spec.tasks if name in own_tasks())


def check(
    spec: EvaluationSpec, *, tokenizer: Any, config: Mapping[str, Any], itemsize: int, free: int, reporter: Reporter
) -> dict[str, int]:
    """Make sure that a base has positions and memory for the tasks of `long` that a spec has.

    Args:
        spec: what is measured.
        tokenizer: the base's own.
        config: its config.json.
        itemsize: bytes of a number of its states.
        free: bytes of the memory that is computed in.
        reporter: is told how long the prompts are, and of a sliding window that is shorter.

    Returns:
        Tokens of the longest prompt of each task.

    Raises:
        EvaluationError: one does not fit, with the most examples that do; or its data set cannot be loaded.
    """
    asked = long_tasks(spec)
    text = config.get("text_config") or config
    positions = int(text.get("max_position_embeddings") or min(tokenizer.model_max_length, 2**31))
    each = itemsize * STATES * int(text["hidden_size"]) + 4 * kv_bytes_per_layer(dict(config))
    found = {name: _longest(name, spec, tokenizer) for name in asked}

    def fits(tokens: int) -> bool:
        return tokens <= positions and 2 * tokens * each <= free

    if bad := next((name for name in asked if not fits(found[name])), None):
        fitting = [name for name in sorted(own_tasks()) if fits(found.get(name) or _longest(name, spec, tokenizer))]
        message = f"The benchmark {bad} has prompts of {found[bad]:,} tokens, and "
        if found[bad] > positions:
            message += f"the base has {positions:,} positions."
        else:
            message += f"the states, keys and values of one take {size(2 * found[bad] * each)}; {size(free)} are free."
        hint = f"What fits: --tasks {','.join(fitting)}." if fitting else "Leave the suite out: nothing of it fits."
        raise EvaluationError(message, hint=hint)
    told = ", ".join(f"{name} {tokens:,}" for name, tokens in found.items())
    reporter.note(f"tokens of the longest prompt: {told}; the base has {positions:,} positions")
    window = text.get("sliding_window") if text.get("use_sliding_window", True) else None
    if window and max(found.values()) > int(window):
        reporter.note(f"layers with a sliding window see the last {int(window):,} tokens of a prompt")
    return found


def _longest(name: str, spec: EvaluationSpec, tokenizer: Any) -> int:
    """Count the tokens that are read of the longest prompt of a task with its longest answer."""
    shots = {name: spec.num_fewshot[name]} if name in spec.num_fewshot else {}
    own = parse(EvaluationSpec, {"tasks": [name], "num_fewshot": shots})
    with quiet(), no_calls_elsewhere():
        task = load_tasks(own).tasks[name]
        documents = list(task.eval_docs)[: spec.limit]
        # All follow the same examples, which take lm-eval seconds to write for each of them.
        task.build_all_requests(limit=1)
        first, _ = task.instances[0].args
        examples = first.removesuffix(task.doc_to_text(documents[0]))
        more = _added(task, first, tokenizer) if spec.apply_chat_template else 0
        # In a chat, an answer begins where the template left off.
        delimiter = "" if spec.apply_chat_template else task.config.target_delimiter
        endings = [f"{delimiter}{answer}" for answer in task.doc_to_choice(documents[0])]
        texts = [f"{examples}{task.doc_to_text(document)}{max(endings, key=len)}" for document in documents]
        return max(len(ids) for ids in tokenizer(texts)["input_ids"]) - 1 + more


def _added(task: Any, plain: str, tokenizer: Any) -> int:
    """Count the tokens that the chat template puts around the turns of a prompt, of which all have as many."""
    from lm_eval.models.huggingface import HFLM

    rules = SimpleNamespace(tokenizer=tokenizer, chat_template_args={})
    task.build_all_requests(
        limit=1, apply_chat_template=True, fewshot_as_multiturn=True,
        chat_template=partial(HFLM.apply_chat_template, rules),
    )  # fmt: skip
    asked, _ = task.instances[0].args
    begins = bool(tokenizer.bos_token) and asked.startswith(tokenizer.bos_token)  # which lm-eval then does not add
    ids = tokenizer(asked, add_special_tokens=not begins)["input_ids"]
    return len(ids) - len(tokenizer(plain)["input_ids"])
