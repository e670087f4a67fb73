"""Several processes that answer together, as `torchrun` and `accelerate launch` start them.

The first process runs lm-eval and decides what is computed.  It tells the others, each computes its share of the same
batches, and the first one gathers the answers: so the numbers are those of a single process, whatever their number.
Only ids, texts and numbers go from one process to the other, over gloo, which is there on every machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from hubprune.core.processes import rank, world_size
from hubprune.evaluation.computing import Models
from hubprune.evaluation.memo import Answer, Request
from hubprune.evaluation.panel import Computing, Names, Prompt, Scored

PATIENCE = timedelta(weeks=4)
"""How long followers wait, for instance while the first process scores, prunes and verifies."""
OVER = "over"
"""What the first process tells at the end of a run, whatever the others are doing."""
Build = Callable[..., Models]


class _Dismissed(Exception):  # noqa: N818  # no error: the way out of whatever a follower is doing
    """The run is over."""


def assemble(build: Build, *arguments: Any, here: Models | None = None) -> Computing:
    """Build models in this process, and the same ones in all others of the run.

    Args:
        build: a function of a module, since the others find it by its name.
        arguments: what it is called with, the same everywhere.
        here: what it would build in this process, where that is there already.
    """
    if world_size() == 1:
        return here or build(*arguments)
    _tell((build, arguments))
    return Team(here or build(*arguments))


def follow() -> None:
    """Compute what the first process tells, until it says that the run is over."""
    with suppress(_Dismissed):
        while True:
            build, arguments = _hear()
            _serve(build(*arguments))


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
        self.size = world_size()

    def score(self, names: Names, requests: Sequence[Request]) -> Iterator[Scored]:
        """Yield the answers of some variants to all requests, as many batches at a time as there are processes."""
        _tell(("score", names, tuple(requests)))
        for answers in _rounds(self._own, names, requests):
            yield from (scored for scored in answers or () if scored)

    def plain(self, name: str, requests: Sequence[Request]) -> list[Answer]:
        """Return a variant's answers as lm-eval's own backend computes them, each process a part of them."""
        return self._divided("plain", name, requests)

    def write(self, name: str, prompts: Sequence[Prompt]) -> list[str]:
        """Return what a variant writes after each prompt, each process a part of them."""
        return self._divided("write", name, prompts)

    def _divided(self, what: str, name: str, items: Sequence[Any]) -> list[Any]:
        _tell((what, name, tuple(items)))
        parts = _gather(_part(self._own, what, name, items)) or []
        found = [None] * len(items)
        for number, part in enumerate(parts):
            found[number :: self.size] = part
        return found

    def share_weights(self) -> None:
        """Let the variants use one another's equal weights, everywhere."""
        _tell(("share_weights",))
        self._own.share_weights()

    def put_weights_back(self) -> None:
        """Undo that."""
        _tell(("put_weights_back",))
        self._own.put_weights_back()

    def let_own_weights_go(self) -> None:
        """Give the memory back that is kept to undo it."""
        _tell(("let_own_weights_go",))
        self._own.let_own_weights_go()

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


def _rounds(own: Models, names: Names, requests: Sequence[Request]) -> Iterator[list[Any] | None]:
    """Answer every `world_size`-th batch, and gather what the others answered in the same round."""
    scorer = own.scorer(names)
    batches = scorer.plan(requests)
    for start in range(0, len(batches), world_size()):
        mine = batches[start + rank() : start + rank() + 1]
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
