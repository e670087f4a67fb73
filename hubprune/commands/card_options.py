"""Options of `hubprune card`, and of what a card says beside the numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

CARD = "The card"

Published = Annotated[
    str,
    typer.Argument(
        metavar="FOLDER_OR_REPO",
        help="A folder that publish --out wrote; with --preview also a repo, or repo@revision.",
    ),
]
Preview = Annotated[
    bool, typer.Option("--preview", help="Change nothing; show the card in a browser, as the Hub would, until Ctrl-C.")
]
OverwriteEditedCard = Annotated[
    bool, typer.Option("--overwrite-card", help="Replace a README.md that was edited by hand.")
]
Notes = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Your own words for the card, Markdown without HTML.", rich_help_panel=CARD),
]
CardTemplate = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER", help="Card templates that take the place of the shipped ones.", rich_help_panel=CARD
    ),
]
Speed = Annotated[
    bool,
    typer.Option(
        "--speed",
        help="Time both models on this machine, for the card: prefill, decoding, peak memory.",
        rich_help_panel=CARD,
    ),
]
License = Annotated[
    str | None,
    typer.Option(
        metavar="ID", help="Licence, as in apache-2.0, of a base whose card names none.", rich_help_panel=CARD
    ),
]
AllowName = Annotated[
    bool | None,
    typer.Option(
        "--allow-name", help="Publish under a name that the base's licence does not allow.", rich_help_panel=CARD
    ),
]
