"""`hubprune card`, `recipe`, `hub`, `demo`, `env` and `doctor`: what computes nothing, or on this machine alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hubprune.commands.terminal import show, show_page, to_json
from hubprune.core.console import Reporter
from hubprune.core.errors import RecipeError
from hubprune.core.options import Argument, Option, Place, Port, Request
from hubprune.core.requests import CardRequest, DoctorRequest

if TYPE_CHECKING:
    from hubprune.core.artifacts import Checkup

CARD_EXAMPLES = (
    "Examples:  hubprune card ./kept --notes notes.md  |  hubprune card me/Llama-3.2-3B-attn-drop-3@v2 --preview"
)
RECIPE_EXAMPLES = "Examples:  hubprune recipe recipe.yaml  |  hubprune recipe --schema > recipe.schema.json"
HUB_EXAMPLES = "Example:  hubprune hub --dir ./hub --port 8080"
ENV_EXAMPLES = "Example:  hubprune env --json"
DOCTOR_EXAMPLES = (
    "Exit codes: 0 nothing stands in the way, 1 something does."
    "  |  Examples:  hubprune doctor  |  hubprune doctor meta-llama/Llama-3.2-3B --max-memory 8GB"
)
DEMO_EXAMPLES = "Example:  hubprune demo --base tiny-mistral"


@dataclass(frozen=True, kw_only=True)
class RecipeRequest(Request):
    """Check a recipe, or describe recipes to an editor."""

    recipe: Annotated[Place | None, Argument("The file to check.", metavar="FILE")] = field(default=None, kw_only=False)
    schema: Annotated[bool, Option("Print the JSON Schema of recipes, by which editors complete and check.")] = False


@dataclass(frozen=True, kw_only=True)
class HubRequest(Request):
    """Serve a local Hub."""

    directory: Annotated[Place, Option("Where repos, objects and tokens are kept.", metavar="FOLDER", flag="--dir")]
    port: Port = 0
    no_xet: Annotated[bool, Option("Announce no Xet, so that downloads take the LFS path.")] = False


@dataclass(frozen=True, kw_only=True)
class DemoRequest(Request):
    """Publish an embedded model on a local Hub."""

    base: Annotated[str, Option("Which embedded model.", metavar="tiny-llama|tiny-mistral")] = "tiny-llama"
    heal: Annotated[bool, Option("Train what is left on what the base says, and publish that beside it.")] = False
    directory: Annotated[
        Place | None, Option("Where the demo keeps its Hub. Default: the work folder.", metavar="FOLDER", flag="--dir")
    ] = None

    @property
    def needs(self) -> str | None:
        """The one that brings what loads weights; the local Hub asks for its own."""
        return "torch"


def card(request: CardRequest, reporter: Reporter) -> None:
    """Render the card of a published folder again, from its hubprune.json alone; --preview shows one in a browser."""
    from hubprune.workflows import card as cards

    if request.preview:
        shown = cards.preview(request, reporter=reporter)
        show_page(shown, port=request.port, opens=not request.no_open, reporter=reporter)
    else:
        choices = cards.CardChoices.read(notes=request.notes, template=request.card_template)
        done = cards.write_card(Path(request.published), choices, overwrite_card=request.overwrite_card)
        show(f"{done.path}  {done.outcome}  sha256 {done.sha256}")


def recipe(request: RecipeRequest, reporter: Reporter) -> None:
    """Check a recipe without asking the Hub or computing anything; --schema prints what editors complete it by."""
    import json

    from hubprune.core.recipe import read_recipe, recipe_schema

    if request.schema:
        show(json.dumps(recipe_schema(), indent=2, ensure_ascii=False))
        return
    if request.recipe is None:
        raise RecipeError("Which recipe?", hint="Name a file, as in hubprune recipe recipe.yaml, or pass --schema.")
    read = read_recipe(Path(request.recipe))
    show(f"{request.recipe}: {read.base.repo_id} becomes {read.target.repo_id or read.default_name}")
    reporter.note(f"To look at the base, the Hub and this machine: hubprune publish --recipe {request.recipe} --check")


def hub(request: HubRequest, reporter: Reporter) -> None:
    """Serve a local Hub on loopback; the first two lines on stdout are HF_ENDPOINT=... and HF_TOKEN=...

    With both set, the unmodified clients work against it:

    huggingface_hub, datasets and transformers, with LFS and Xet

    hf auth whoami, upload, download, cp, models, datasets, repos,
    discussions, collections, jobs

    git clone and git fetch, for what is private with the token as the
    password; a push is refused

    One server holds the folder at a time. What it has answered is kept,
    also when it is killed.
    """
    from hubprune.core.files import make_writable
    from hubprune.localhub import serve

    def announce(line: str) -> None:
        print(line, flush=True)

    make_writable(Path(request.directory))
    serve(Path(request.directory), port=request.port, xet=not request.no_xet, announce=announce)


def demo(request: DemoRequest, reporter: Reporter) -> None:
    """Publish an embedded tiny model on a local Hub, with every stage and nothing to download."""
    from hubprune.workflows import demo as demonstration

    place = Path(request.directory) if request.directory else None
    raise typer.Exit(demonstration.run(request.base, directory=place, reporter=reporter, heal=request.heal))


def env(request: Request, reporter: Reporter, *, as_json: bool) -> None:
    """Print versions, machine, and where unfinished work is kept."""
    import json

    from hubprune.commands import summary
    from hubprune.core.devices import describe_environment
    from hubprune.core.files import work_folder

    found, folder = describe_environment(), work_folder()
    if as_json:
        show(json.dumps({**found.model_dump(), "work_folder": str(folder)}, indent=2))
    else:
        show(f"{summary.environment_table(found)}\nwork folder  {folder}")


def doctor(request: DoctorRequest, reporter: Reporter, *, as_json: bool) -> None:
    """Look at this machine, the token and the Hub; with a base, at what every stage of a publish would need here.

    Nothing is computed or written, and it takes seconds.
    """
    from hubprune.workflows.doctor import doctor as look

    show_checkup(look(request, reporter=reporter), as_json=as_json)


def show_checkup(seen: Checkup, *, as_json: bool) -> None:
    """Print what was found, and exit with 1 where something stands in the way."""
    from hubprune.commands import summary

    show(to_json(seen) if as_json else summary.checkup_lines(seen))
    if seen.failed:
        raise typer.Exit(1)
