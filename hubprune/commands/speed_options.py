"""Options of `hubprune speed`, and how they become a request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hubprune.commands.options import MEASURING

if TYPE_CHECKING:
    from hubprune.workflows.speed import TimingRequest

First = Annotated[
    str,
    typer.Argument(metavar="BASE", help="Repo id or folder of the base; may be left out: PRUNED names its base."),
]
Second = Annotated[str | None, typer.Argument(metavar="PRUNED", help="A folder or repo that hubprune wrote.")]
Depths = Annotated[
    str,
    typer.Option(
        metavar="0,512,2048",
        help="Tokens in the KV cache when decoding starts: lengths of the prompt, cut to what the model has positions "
        "for.",
        rich_help_panel=MEASURING,
    ),
]
NewTokens = Annotated[int, typer.Option(min=1, help="Tokens that are decoded.", rich_help_panel=MEASURING)]
BatchSize = Annotated[int, typer.Option(min=1, help="Sequences at once.", rich_help_panel=MEASURING)]
Rounds = Annotated[
    int, typer.Option(min=20, help="Rounds per depth, after three that do not count.", rich_help_panel=MEASURING)
]
LargestBatch = Annotated[
    bool,
    typer.Option(
        "--largest-batch", help="Search for the largest batch that fits on the GPU, too.", rich_help_panel=MEASURING
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of the order within a round and of the intervals.")]
AGAIN = "Times of two runs do not compare, so nothing was kept: run the same command again."


def make_request(given: Mapping[str, Any]) -> tuple[str, TimingRequest]:
    """Make the name of the pruned checkpoint and the request of a timing.

    Raises:
        RecipeError: a value that cannot be used.
    """
    from hubprune.workflows.speed import TimingRequest, parse_depths

    base, pruned = (given["first"], given["second"]) if given["second"] else (None, given["first"])
    return pruned, TimingRequest(
        depths=parse_depths(given["depths"]),
        new_tokens=given["new_tokens"],
        batch_size=given["batch_size"],
        rounds=given["rounds"],
        largest_batch="find" if given["largest_batch"] else "skip",
        base=base,
        revision=given["revision"],
        trust="any" if given["trust_remote_code"] else "own",
        device=given["device"] or "auto",
        dtype=given["dtype"] or "auto",
        seed=given["seed"],
        report=given["report"],
    )
