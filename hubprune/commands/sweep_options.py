"""Options of `hubprune sweep`, and how they become a recipe and a request."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hubprune.commands.options import DROPPING, MEASURING
from hubprune.commands.recipes import make_recipe

if TYPE_CHECKING:
    from hubprune.core.recipe import Recipe
    from hubprune.workflows.sweep.points import SweepRequest

Methods = Annotated[
    str,
    typer.Option(
        "--method", metavar="attn,mlp,block,joint", help="What to drop, each as a curve.", rich_help_panel=DROPPING
    ),
]
Counts = Annotated[
    str,
    typer.Option(
        "--counts", metavar="0:12|0:12:3|0,2,4", help="Numbers of drops; 0:12 is 0 to 12.", rich_help_panel=DROPPING
    ),
]
Perplexity = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|MIX",
        help="Measure perplexity on a file of documents or a mix; what was scored on is left out.",
        rich_help_panel=MEASURING,
    ),
]
PerplexitySamples = Annotated[
    int | None, typer.Option(min=1, help="Documents for the perplexity. Default: 64.", rich_help_panel=MEASURING)
]
Speed = Annotated[
    bool,
    typer.Option("--speed", help="Time decoding against the base, in paired rounds.", rich_help_panel=MEASURING),
]
SpeedDepth = Annotated[
    int,
    typer.Option(min=1, help="Tokens in the KV cache when timed decoding starts.", rich_help_panel=MEASURING),
]
SpeedRounds = Annotated[int, typer.Option(min=20, help="Rounds of timing per point.", rich_help_panel=MEASURING)]
MaxLoss = Annotated[
    float,
    typer.Option(
        min=0, metavar="POINTS", help="Points of the mean that the recommendation may lose.", rich_help_panel=MEASURING
    ),
]
MaxRise = Annotated[
    float,
    typer.Option(min=0, metavar="%", help="Percent that its perplexity may rise.", rich_help_panel=MEASURING),
]
Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="FOLDER", help="Folder for sweep.csv, sweep.json and pictures."),
]
PASSED_ON = (
    "base_revision", "protect", "calibration", "num_samples", "max_tokens", "metric", "aggregation", "tasks",
    "num_fewshot", "include_path", "batch_size", "eval_backend", "endpoint", "seed", "device", "dtype",
)  # fmt: skip
"""Options of a sweep that a publish after it needs, too, so that it drops the same and measures the same."""


def make_sweep(given: Mapping[str, Any]) -> tuple[Recipe, SweepRequest]:
    """Make the recipe and the request of a sweep.

    Raises:
        RecipeError: a value that cannot be used.
    """
    from hubprune.workflows.sweep.points import Limits, SpeedRequest, SweepRequest, parse_counts, parse_methods

    methods = parse_methods(given["method"])
    request = SweepRequest(
        methods=methods,
        counts=parse_counts(given["counts"]),
        perplexity=given["perplexity"],
        perplexity_samples=given["perplexity_samples"],
        speed=SpeedRequest(depth=given["speed_depth"], rounds=given["speed_rounds"]) if given["speed"] else None,
        limits=Limits(points=given["max_loss"], perplexity_percent=given["max_rise"]),
        out=given["out"],
        next_options=tuple(_as_typed(given, *PASSED_ON)),
    )
    # A recipe has to drop something; which point it is makes no difference.
    return make_recipe({**given, f"{methods[0]}_drop": "1"}), request


def _as_typed(given: Mapping[str, Any], *names: str) -> Iterator[str]:
    for name in names:
        if given.get(name) is not None:
            yield from (f"--{name.replace('_', '-')}", str(given[name]))
