"""What computes answers: the models of this process, or those of several, which are a team.

Log-likelihoods of endings come for several variants at once, in batches that fit into memory; what lm-eval's own
backend is asked for goes through it one variant at a time.

Of several processes, as `torchrun` and `accelerate launch` start them, the first one runs lm-eval and decides what is
computed.  It tells the others, each computes its share of the same batches, and the first one gathers the answers: so
the numbers are those of a single process, whatever their number.  Only ids, texts and numbers go from one process to
the other, over gloo, which is there on every machine.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist

from hubprune.core.console import Advance, duration
from hubprune.core.devices import rank, world_size
from hubprune.core.errors import EvaluationError
from hubprune.core.memory import at_most, told_limit
from hubprune.evaluation import models
from hubprune.evaluation.batch import Batch, collate, piece_size
from hubprune.evaluation.layer_tree import LayerTree, Tally, Variant, head_alone
from hubprune.evaluation.panel import PLAIN_ROWS, Computing, Names, PanelLM, Prompt, Scored, not_told, tokens_of
from hubprune.evaluation.requests import Answer, Request, Row, batches, halved, make_rows, slots

CPU_SLOTS = 1024
"""Tokens of a batch on a CPU, whose caches larger ones do not fit into."""
GPU_SLOTS = 32768
"""Tokens that a batch begins with elsewhere; it is halved until it fits."""
TEXT_SLOTS, GPU_TEXT_SLOTS = 16384, 131072
"""Tokens of a batch of texts that are written at once, those to come included; memory may allow fewer.  A GPU reads all
weights for every token, of however many texts."""
TEXT_ROWS = 64
STATES_ROOM = 4
"""Hidden states of a long row may take one part in so many of the free memory."""
PATIENCE = timedelta(weeks=4)
"""How long followers wait, for instance while the first process scores, prunes and verifies."""
OVER = "over"
"""What the first process tells at the end of a run, whatever the others are doing."""


class Scoring(Protocol):
    """What scores requests for some variants."""

    def plan(self, requests: Sequence[Request]) -> list[list[Row]]:
        """Divide requests into what is answered together."""

    def answer(self, rows: Sequence[Row], requests: Sequence[Request]) -> Scored:
        """Return the answers of all variants to a part of the plan."""


class Models:
    """Variants of one model in this process, and the tokenizer of all of them.

    A batch has `batch_size` rows; None for as many as fit.
    """

    def __init__(self, variants: Sequence[Variant], tokenizer: Any, *, batch_size: int | None) -> None:
        self.variants = {variant.name: variant for variant in variants}
        self.language_models = {v.name: PanelLM(v, tokenizer, batch_size=batch_size) for v in variants}
        """What `lm_eval.evaluate` takes, by name."""
        self._batch_size = batch_size
        self._scorers: dict[Names, Scoring] = {}

    def score(self, names: Names, requests: Sequence[Request], advance: Advance = not_told) -> Iterator[Scored]:
        """Yield the answers of some variants to all requests, batch by batch; `advance` is told the tokens.

        Raises:
            EvaluationError: a single request does not fit into memory, or a log-likelihood is not finite.
        """
        scorer = self.scorer(names)
        for rows in scorer.plan(requests):
            yield scorer.answer(rows, requests)
            advance(len(names) * tokens_of(requests[m.request] for row in rows for m in row.members))

    def first(self, names: Names, requests: Sequence[Request]) -> Sequence[Request]:
        """Return those of some requests of which a few are compared with lm-eval's own backend."""
        return requests

    def outlook(self, names: Names, requests: Sequence[Request]) -> str | None:
        """Say what scoring requests will take, where that is worth saying."""
        return None

    def scorer(self, names: Names) -> Scoring:
        """Return what scores requests for some variants."""
        if names not in self._scorers:
            self._scorers[names] = Scorer([self.variants[name] for name in names], most_rows=self._batch_size)
        return self._scorers[names]

    def plain(self, name: str, requests: Sequence[Request]) -> list[Answer]:
        """Return a variant's answers as lm-eval's own backend computes them.

        Raises:
            EvaluationError: memory ran out with a single row.
        """
        model, rows = self.language_models[name], self._batch_size or PLAIN_ROWS
        # All go in at once, since lm-eval reads a context once for all endings of a single token.
        whole = (tuple(range(len(requests))),)
        return _run(whole, lambda batch: model.plain([requests[i] for i in batch], rows=min(rows, len(batch))))

    def write(self, name: str, prompts: Sequence[Prompt]) -> list[str]:
        """Return what a variant writes after each prompt, by lm-eval's own backend.

        Raises:
            EvaluationError: the model has no positions for what is asked, or memory ran out with a single row.
        """
        model = self.language_models[name]
        return _run(self.text_batches(name, prompts), lambda batch: model.write([prompts[i] for i in batch]))

    def text_batches(self, name: str, prompts: Sequence[Prompt]) -> models.Batches:
        """Put prompts together; from disk weights are read for every token, whatever the number of texts.

        Raises:
            EvaluationError: the model has no positions for what is asked.
        """
        asked, model = self.language_models[name], self.variants[name].model
        # What does not fit into a model's positions is cut off.
        lengths = [
            min(len(asked.tok_encode(prompt[0])) + asked.new_tokens(prompt), asked.max_length) for prompt in prompts
        ]
        most = TEXT_SLOTS if models.input_device(model) in ("cpu", "disk") else GPU_TEXT_SLOTS
        tokens = None if self._batch_size else models.text_tokens(model, most=most)
        rows = self._batch_size or (None if models.is_on_disk(model) else TEXT_ROWS)
        return models.similar_length(lengths, tokens=tokens, rows=rows)

    def text_outlook(self, name: str, prompts: Sequence[Prompt]) -> str | None:
        """Say what writing texts will take, where that is worth saying."""
        model = self.variants[name].model
        if not models.is_on_disk(model):
            return None
        batches, seconds = self.text_batches(name, prompts), models.pass_seconds(model)
        longest = (max(self.language_models[name].new_tokens(prompts[i]) for i in batch) for batch in batches)
        count, left = sum(longest), "" if len(batches) == 1 else f" in {len(batches)} batches"
        return (
            f"{len(prompts)} texts{left}: the {name} model is read from disk up to {count:,} times, {duration(seconds)}"
            f" each, {duration(count * seconds)} at most"
        )

    def draw(self, name: str, prompts: Sequence[Prompt]) -> list[str]:
        """Return what a variant writes where it draws at random, which depends on what was drawn before."""
        return self.write(name, prompts)

    def close(self) -> None:
        """Do nothing: nobody else waits."""


def _run(batches: models.Batches, work: Callable[[tuple[int, ...]], list[models.Result]]) -> list[models.Result]:
    with models.memory_errors("over a single row", hint="Pass --dtype bfloat16, or --device cpu."):
        return models.run_batches(batches, work, on_split=lambda rows: None)[0]


class Share:
    """Tells a bar of so many tokens, as shares of the work on them are done."""

    def __init__(self, tokens: int, advance: Advance) -> None:
        self._tokens, self._advance, self._done, self._told = tokens, advance, 0.0, 0

    def __call__(self, share: float) -> None:
        """Tell of a share of the work."""
        self._done += share
        self._tell(int(self._done * self._tokens))

    def told_all(self) -> None:
        """Make up for what rounding left out."""
        self._tell(self._tokens)

    def _tell(self, tokens: int) -> None:
        self._advance(tokens - self._told)
        self._told = tokens


class Scorer:
    """Scores requests for variants of one model, with so many rows in a batch at most, or as many as fit."""

    def __init__(self, variants: Sequence[Variant], *, most_rows: int | None = None) -> None:
        self.tree = LayerTree(variants)
        self._device = next(variants[0].model.parameters()).device
        self._most_rows = most_rows
        self._most_slots = CPU_SLOTS if self._device.type == "cpu" else GPU_SLOTS

    def plan(self, requests: Sequence[Request]) -> list[list[Row]]:
        """Divide requests into batches, the largest first."""
        rows = make_rows(requests, most=self._longest())
        return list(batches(rows, most_slots=self._most_slots, most_rows=self._most_rows))

    def _longest(self) -> int:
        """Count the tokens of which the states, before and behind a layer, take a part of the free memory."""
        return self._free() // (STATES_ROOM * (len(self.tree.variants) + 2) * self._width)

    def _free(self) -> int:
        return models.free_bytes(str(self._device))

    @property
    def _width(self) -> int:
        model = self.tree.variants[0].model
        return int(model.config.get_text_config().hidden_size) * int(model.dtype.itemsize)

    @torch.inference_mode()
    def answer(self, rows: Sequence[Row], requests: Sequence[Request]) -> Scored:
        """Return the answers of all variants to a batch of the plan, divided where it does not fit into memory.

        Raises:
            EvaluationError: a single request does not fit, or a log-likelihood is not finite.
        """
        answers: Scored = {variant.name: {} for variant in self.tree.variants}
        parts = deque([list(rows)])
        while parts:
            part = parts.popleft()
            likely = len(part) == 1 or slots(part) <= self._most_slots
            if likely and (found := self._forward_or_none(part)) is not None:
                for name, some in found.items():
                    answers[name] |= some
                continue
            if likely:
                models.release_memory()
                self._most_slots = slots(part) // 2 if len(part) > 1 else self._most_slots
            middle = len(part) // 2
            if not middle and len(part[0].members) == 1:
                message = f"The device ran out of memory over a single request of {len(part[0])} tokens."
                raise EvaluationError(message, hint="Pass --dtype bfloat16, or --device cpu.")
            smaller = [part[:middle], part[middle:]] if middle else [[row] for row in halved(part[0], requests)]
            parts.extendleft(reversed(smaller))
        return answers

    def _forward_or_none(self, rows: Sequence[Row]) -> Scored | None:
        """Answer a batch; None where memory ran out, and by then nothing holds on to its tensors."""
        try:
            batch = collate(rows, self._device, piece=self._piece(rows))
            return {v.name: _answers(v, states, batch) for v, states in self.tree.hidden_states(batch)}
        except RuntimeError as error:
            if not models.is_memory_error(error):
                raise
            return None

    def _piece(self, rows: Sequence[Row]) -> int:
        variant, on_cpu = self.tree.variants[0], self._device.type == "cpu"
        itemsize = int(variant.model.dtype.itemsize)
        return piece_size(variant.decoder.config, rows, itemsize=itemsize, on_cpu=on_cpu, free=self._free())


def _answers(variant: Variant, states: torch.Tensor, batch: Batch) -> dict[int, Answer]:
    tally = Tally(states, torch.arange(len(states), device=states.device), batch.targets)
    with head_alone(variant) as logits_of:
        tally.read((0, variant.model.config.get_text_config().vocab_size), logits_of)
    return tally.answers(batch.owners, variant.name)


class _Dismissed(Exception):  # noqa: N818  # no error: the way out of whatever a follower is doing
    """The run is over."""


def assemble(build: Callable[..., Models], *arguments: Any, here: Models | None = None) -> Computing:
    """Build models in this process, or take those that are `here`, and the same ones in all others of the run.

    `build` is a function of a module, since the others find it by its name, and is called with the same everywhere.
    """
    if world_size() == 1:
        return here or build(*arguments)
    _tell((build, arguments, told_limit()))
    return Team(here or build(*arguments))


def join(act: Callable[..., None], *arguments: Any) -> None:
    """Let all other processes of the run call a function of a module, which does its part of what is done here next."""
    if world_size() > 1:
        _tell((act, arguments, told_limit()))


def follow() -> None:
    """Compute what the first process tells, until it says that the run is over."""
    with suppress(_Dismissed):
        while True:
            build, arguments, limit = _hear()
            with at_most(limit):
                if (built := build(*arguments)) is not None:
                    _serve(built)


def dismiss() -> None:
    """Tell the others that the run is over."""
    if world_size() > 1:
        _tell(OVER)
        dist.destroy_process_group()


class Team:
    """The models of this process, which leads, and the same ones in the others."""

    def __init__(self, own: Models) -> None:
        self._own = own
        self.variants, self.language_models = own.variants, own.language_models

    def score(self, names: Names, requests: Sequence[Request], advance: Advance = not_told) -> Iterator[Scored]:
        """Yield the answers of some variants to all requests, as many batches at a time as there are processes."""
        # How much goes together may depend on the memory that a process sees, so that one of them says it for all.
        parts = self._own.scorer(names).plan(requests)
        _tell(("score", names, tuple(requests), parts))
        for answers in _rounds(self._own, names, requests, parts):
            for scored in filter(None, answers or ()):
                yield scored
                advance(sum(tokens_of(map(requests.__getitem__, found)) for found in scored.values()))

    def outlook(self, names: Names, requests: Sequence[Request]) -> str | None:
        """Say what scoring requests will take, where that is worth saying."""
        return self._own.outlook(names, requests)

    def first(self, names: Names, requests: Sequence[Request]) -> Sequence[Request]:
        """Return those of some requests of which a few are compared with lm-eval's own backend."""
        return self._own.first(names, requests)

    def plain(self, name: str, requests: Sequence[Request]) -> list[Answer]:
        """Return a variant's answers as lm-eval's own backend computes them, each process a part of them."""
        return self._divided("plain", name, requests)

    def write(self, name: str, prompts: Sequence[Prompt]) -> list[str]:
        """Return what a variant writes after each prompt, each process a part of them."""
        return self._divided("write", name, prompts)

    def _divided(self, what: str, name: str, items: Sequence[Any]) -> list[Any]:
        _tell((what, name, tuple(items)))
        found = [None] * len(items)
        for number, part in enumerate(_gather(_part(self._own, what, name, items)) or ()):
            found[number :: world_size()] = part
        return found

    def text_outlook(self, name: str, prompts: Sequence[Prompt]) -> str | None:
        """Say what writing texts will take, where that is worth saying; each process has as many models to read."""
        return self._own.text_outlook(name, prompts)

    def draw(self, name: str, prompts: Sequence[Prompt]) -> list[str]:
        """Return what a variant writes where it draws at random: in this process alone, as if there were no other."""
        return self._own.draw(name, prompts)

    def close(self) -> None:
        """Let the others go on to what comes after these models."""
        _tell(None)


def _serve(own: Models) -> None:
    """Follow one team until it is closed."""
    while (order := _hear()) is not None:
        what, *arguments = order
        if what == "score":
            list(_rounds(own, *arguments))
        elif what in ("plain", "write"):
            _gather(_part(own, what, *arguments))
        else:
            getattr(own, what)()


def _rounds(
    own: Models, names: Names, requests: Sequence[Request], parts: Sequence[Sequence[Row]]
) -> Iterator[list[Any] | None]:
    """Answer every `world_size`-th part of a plan, and gather what the others answered in the same round."""
    scorer = own.scorer(names)
    for start in range(0, len(parts), world_size()):
        mine = parts[start + rank() : start + rank() + 1]
        yield _gather(scorer.answer(mine[0], requests) if mine else None)


def _part(own: Models, what: str, name: str, items: Sequence[Any]) -> list[Any]:
    mine = items[rank() :: world_size()]
    found: list[Any] = getattr(own, what)(name, mine) if mine else []
    return found


def _tell(order: Any) -> Any:
    """Send an order from the first process to all others, and return it in all of them."""
    if not dist.is_initialized():
        dist.init_process_group("gloo", timeout=PATIENCE)
    box = [order]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def _hear() -> Any:
    if (order := _tell(None)) == OVER:
        raise _Dismissed
    return order


def _gather(mine: Any) -> list[Any] | None:
    """Return what each process has, in the first one; None in the others."""
    found: list[Any] | None = [None] * world_size() if rank() == 0 else None
    dist.gather_object(mine, found, dst=0)
    return found
