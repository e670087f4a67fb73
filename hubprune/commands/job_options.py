"""Options of a publish that runs elsewhere."""

from __future__ import annotations

from typing import Annotated

import typer

ELSEWHERE = "Where it runs"

On = Annotated[
    str | None,
    typer.Option(
        "--on",
        metavar="hf-jobs",
        help="Run it on Hugging Face Jobs and follow its log; Ctrl-C leaves the job running.",
        rich_help_panel=ELSEWHERE,
    ),
]
Flavor = Annotated[
    str | None,
    typer.Option(
        metavar="a100-large", help="Machine of the job, one of `hf jobs hardware`.", rich_help_panel=ELSEWHERE
    ),
]
Timeout = Annotated[
    str | None,
    typer.Option(metavar="12h", help="Time after which the job is ended. Default: 12h.", rich_help_panel=ELSEWHERE),
]
Namespace = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Who runs and pays the job. Default: you.", rich_help_panel=ELSEWHERE),
]
Requirement = Annotated[
    str | None,
    typer.Option(
        metavar="PACKAGE",
        help="What the job installs. Default: this version of hubprune from PyPI.",
        rich_help_panel=ELSEWHERE,
    ),
]
