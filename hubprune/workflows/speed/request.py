"""What a timing is asked for, and the checks that need no weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hubprune.core.devices import resolve_device
from hubprune.core.errors import RecipeError
from hubprune.core.files import make_writable
from hubprune.core.requests import SpeedRequest
from hubprune.workflows.verify import Trust

DEEPEST = 2**24
"""Tokens; no model reads more."""


@dataclass(frozen=True, kw_only=True)
class TimingRequest:
    """Which shapes are timed, how often, and on what."""

    depths: tuple[int, ...] = (0, 512, 2048)
    """Tokens in the KV cache when decoding starts, ascending."""
    new_tokens: int = 32
    batch_size: int = 1
    rounds: int = 20
    largest_batch: Literal["find", "skip"] = "skip"
    base: str | None = None
    """Folder or repo of the base; None for the one that the pruned checkpoint names."""
    revision: str | None = None
    """Of the pruned repo; None for main."""
    trust: Trust = "own"
    device: str = "auto"
    dtype: str = "auto"
    seed: int = 0
    """Of the order within a round, and of the bootstrap."""
    report: Path | None = None
    """File for the report as JSON."""

    @classmethod
    def of(cls, request: SpeedRequest) -> TimingRequest:
        """Read what is asked for.

        Raises:
            RecipeError: a value that cannot be used.
        """
        depths = request.depths if isinstance(request.depths, str) else ",".join(map(str, request.depths))
        return cls(
            depths=parse_depths(depths),
            new_tokens=request.new_tokens,
            batch_size=request.batch_size,
            rounds=request.rounds,
            largest_batch="find" if request.largest_batch else "skip",
            base=request.first if request.second else None,
            revision=request.revision,
            trust="any" if request.trust_remote_code else "own",
            device=request.device or "auto",
            dtype=request.dtype or "auto",
            seed=request.seed,
            report=Path(request.report) if request.report else None,
        )


def parse_depths(text: str) -> tuple[int, ...]:
    """Read a list of depths, ascending and each once.

    Raises:
        RecipeError: it is none.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and len(part) < 9 for part in parts):
        raise RecipeError(f"--depths {text!r:.60} is no list of depths.", hint="Write it like --depths 0,512,2048.")
    depths = tuple(sorted({int(part) for part in parts}))
    if depths[-1] > DEEPEST:
        raise RecipeError(f"--depths {text!r:.60} goes beyond {DEEPEST:,} tokens.", hint="Name smaller depths.")
    return depths


def check_request(request: TimingRequest) -> None:
    """Refuse what this machine cannot do, before anything is downloaded.

    Raises:
        RecipeError: there is no such device, the CPU is asked for the largest batch, or the report cannot be written.
    """
    device = resolve_device(request.device)
    if request.largest_batch == "find" and device == "cpu":
        raise RecipeError(
            "The largest batch can be searched for on a GPU only: on a CPU, the system would end the process.",
            hint="Leave --largest-batch out.",
        )
    if request.report:
        make_writable(request.report.absolute().parent)
