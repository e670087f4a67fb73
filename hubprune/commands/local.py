"""`hubprune hub`, `demo` and `env`: what works without the Hub."""

from __future__ import annotations

import typer

from hubprune.commands import options
from hubprune.commands.terminal import errors_shown, show, to_json

HUB_EXAMPLES = "Example:  hubprune hub --dir ./hub --port 8080"
ENV_EXAMPLES = "Example:  hubprune env --json"
DEMO_EXAMPLES = "Example:  hubprune demo --base tiny-mistral"


def hub(
    directory: options.HubDirectory,
    port: options.HubPort = 0,
    no_xet: options.NoXet = False,
) -> None:
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
    with errors_shown():
        from hubprune.localhub import serve

        serve(directory, port=port, xet=not no_xet, announce=lambda line: print(line, flush=True))


def demo(base: options.DemoBase = "tiny-llama", directory: options.DemoDirectory = None) -> None:
    """Publish an embedded tiny model on a local Hub, with every stage and nothing to download."""
    with errors_shown() as reporter:
        from hubprune.workflows import demo as demonstration

        raise typer.Exit(demonstration.run(base, directory=directory, reporter=reporter))


def env(as_json: options.Json = False) -> None:
    """Print versions, machine, and where unfinished work is kept."""
    with errors_shown():
        from hubprune.commands import summary
        from hubprune.core.devices import describe_environment
        from hubprune.core.stages import work_folder

        found, folder = describe_environment(), work_folder()
        show(to_json(found) if as_json else f"{summary.environment_table(found)}\nwork folder  {folder}")
