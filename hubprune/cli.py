"""The command line: every command under its name, in the order of the help.

Only this module and `commands` know about typer.  Nothing heavy is imported before a command needs it, so that `--help`
answers at once.
"""

from __future__ import annotations

import atexit
import errno
import os
import sys
from contextlib import suppress
from typing import NoReturn

import typer

from hubprune.commands import local, publish, published
from hubprune.commands.options import Version, add_command
from hubprune.commands.terminal import (
    INTERRUPTED,
    check_texts,
    dismiss,
    errors_shown,
    fail_on_output,
    follow,
    prepare_streams,
)
from hubprune.core.console import listen_to_interruptions
from hubprune.core.devices import rank, spare

app = typer.Typer(
    name="hubprune",
    help="Prune a language model from the Hugging Face Hub, measure what it cost, publish the result.",
    epilog="Start with: hubprune demo",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
exports = typer.Typer(help="Write a checkpoint in the format of another runtime.", no_args_is_help=True)
app.add_typer(exports, name="export")


def main() -> NoReturn:
    """Run the command line."""
    spare()
    listen_to_interruptions()
    prepare_streams()
    try:
        if rank() > 0:
            follow()
        else:
            _run()
    except KeyboardInterrupt:  # in the moment before or after a command
        _leave()
    except SystemExit as end:
        if end.code == INTERRUPTED:
            _leave()
        if not end.code:  # where something failed, whoever started the processes ends the others
            dismiss()
        raise
    sys.exit(0)


def _leave() -> NoReturn:
    """End as interrupted, without the destructors of libraries: some abort over a thread that Ctrl-C left behind."""
    with suppress(BaseException):
        atexit._run_exitfuncs()
    for stream in filter(None, (sys.stdout, sys.stderr)):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(INTERRUPTED)


def _run() -> None:
    """Run the command that the arguments name; where stdout itself fails, in a help for example, say so."""
    try:
        app()
    except OSError as error:
        if error.errno != errno.ENOSPC:  # those of files are shown by the commands
            raise
        sys.exit(fail_on_output(error))


@app.callback()
def _hubprune(version: Version = False) -> None:
    """Prune a language model from the Hugging Face Hub, measure what it cost, publish the result."""
    with errors_shown():
        check_texts(sys.argv[1:])


add_command(app, publish.publish, epilog=publish.PUBLISH_EXAMPLES)
add_command(app, publish.push, epilog=publish.PUSH_EXAMPLES)
add_command(app, publish.score, epilog=publish.SCORE_EXAMPLES)
add_command(app, publish.prune, epilog=publish.PRUNE_EXAMPLES)
add_command(app, publish.adopt, epilog=publish.ADOPT_EXAMPLES)
add_command(app, publish.heal, epilog=publish.HEAL_EXAMPLES)
add_command(app, published.quantize, epilog=published.QUANTIZE_EXAMPLES)
add_command(app, publish.verify, epilog=publish.VERIFY_EXAMPLES)
add_command(app, published.reproduce, epilog=published.REPRODUCE_EXAMPLES)
add_command(app, published.refresh, epilog=published.REFRESH_EXAMPLES, resume=published.RESUME)
add_command(app, publish.sweep, epilog=publish.SWEEP_EXAMPLES)
add_command(app, publish.speed, epilog=publish.SPEED_EXAMPLES, resume=publish.AGAIN)
add_command(app, publish.compare, epilog=publish.COMPARE_EXAMPLES)
add_command(app, local.card, epilog=local.CARD_EXAMPLES)
add_command(app, local.recipe, epilog=local.RECIPE_EXAMPLES)
add_command(app, local.hub, epilog=local.HUB_EXAMPLES)
add_command(app, local.demo, epilog=local.DEMO_EXAMPLES)
add_command(app, local.env, epilog=local.ENV_EXAMPLES)
add_command(app, local.doctor, epilog=local.DOCTOR_EXAMPLES)
add_command(exports, published.gguf, epilog=published.GGUF_EXAMPLES)
