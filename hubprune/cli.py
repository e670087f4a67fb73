"""The command line: every command under its name, in the order of the help.

Only this module and `commands` know about typer.  Nothing heavy is imported before a command needs it, so that `--help`
answers at once.
"""

from __future__ import annotations

import errno
import sys
from typing import NoReturn

import typer

from hubprune.commands import cards, export, local, measure, options, prune, publish, push, refresh, reproduce
from hubprune.commands.terminal import (
    INTERRUPTED,
    check_texts,
    dismiss,
    errors_shown,
    fail_on_output,
    follow,
    prepare_streams,
)
from hubprune.core.processes import listen_to_interruptions, rank

app = typer.Typer(
    name="hubprune",
    help="Prune a language model from the Hugging Face Hub, measure what it cost, publish the result.",
    epilog="Start with: hubprune demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
exports = typer.Typer(help="Write a checkpoint in the format of another runtime.", no_args_is_help=True)
app.add_typer(exports, name="export")


def main() -> NoReturn:
    """Run the command line."""
    listen_to_interruptions()
    prepare_streams()
    try:
        if rank() > 0:
            follow()
        else:
            _run()
    except KeyboardInterrupt:  # in the moment before or after a command
        sys.exit(INTERRUPTED)
    except SystemExit as end:
        if not end.code:  # where something failed, whoever started the processes ends the others
            dismiss()
        raise
    sys.exit(0)


def _run() -> None:
    """Run the command that the arguments name; where stdout itself fails, in a help for example, say so."""
    try:
        app()
    except OSError as error:
        if error.errno != errno.ENOSPC:  # those of files are shown by the commands
            raise
        sys.exit(fail_on_output(error))


@app.callback()
def _hubprune(version: options.Version = False) -> None:
    """Prune a language model from the Hugging Face Hub, measure what it cost, publish the result."""
    with errors_shown():
        check_texts(sys.argv[1:])


app.command(epilog=publish.EXAMPLES)(publish.publish)
app.command(epilog=push.EXAMPLES)(push.push)
app.command(epilog=prune.SCORE_EXAMPLES)(prune.score)
app.command(epilog=prune.PRUNE_EXAMPLES)(prune.prune)
app.command(epilog=prune.VERIFY_EXAMPLES)(prune.verify)
app.command(epilog=reproduce.EXAMPLES)(reproduce.reproduce)
app.command(epilog=refresh.EXAMPLES)(refresh.refresh)
app.command(epilog=measure.SWEEP_EXAMPLES)(measure.sweep)
app.command(epilog=measure.SPEED_EXAMPLES)(measure.speed)
app.command(epilog=measure.COMPARE_EXAMPLES)(measure.compare)
app.command(epilog=cards.EXAMPLES)(cards.card)
app.command(epilog=local.HUB_EXAMPLES)(local.hub)
app.command(epilog=local.DEMO_EXAMPLES)(local.demo)
app.command(epilog=local.ENV_EXAMPLES)(local.env)
exports.command(epilog=export.EXAMPLES)(export.gguf)
