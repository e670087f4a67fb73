"""Make commands of requests: a flag or argument for every field, and the request of what was typed, in one place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING
from inspect import Parameter, Signature, signature
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperCommand

from hubprune.commands.terminal import RESUME, errors_shown
from hubprune.core import __version__
from hubprune.core.console import Reporter
from hubprune.core.extras import require
from hubprune.core.memory import at_most, budget_of
from hubprune.core.options import PANELS, Argument, Asked, Option, options_of, renamed

EVERYDAY, RUNNING = "Everyday", "How it runs"
ORDER = (None, EVERYDAY, *PANELS, RUNNING)
"""From the top of a help."""
JSON = Asked("as_json", Option("Print JSON instead of a table.", flag="--json"), bool, False)


class _EverydayFirst(TyperCommand):
    """A command whose --help stands below, with what is seldom needed."""

    def get_help_option(self, ctx: Any) -> Any:
        """Return it in the last panel."""
        option = super().get_help_option(ctx)
        if option is not None:
            option.rich_help_panel = RUNNING
        return option


def add_command(app: typer.Typer, body: Callable[..., None], *, epilog: str, resume: str = RESUME) -> None:
    """Add a command to an app, under the name of the function that is its body and with its docstring as help.

    The body takes a request, of the class that its first parameter is annotated with, and a reporter; and `as_json`
    where it can print JSON.  What it raises is shown, after an interrupt with `resume` as what to do.
    """
    kind, with_json = get_type_hints(body)["request"], "as_json" in signature(body).parameters
    everyday: Sequence[str] = getattr(kind, "everyday", ())
    asked_for = options_of(kind)

    def panel(asked: Asked) -> str | None:
        if isinstance(asked.option, Argument):
            return None
        return EVERYDAY if asked.name in everyday else asked.option.panel or (RUNNING if everyday else None)

    def run(**given: Any) -> None:
        """Run the body within the memory that was asked for, and show what it raises."""
        wanted = {JSON.name: given.pop(JSON.name)} if with_json else {}
        with errors_shown(resume=resume) as reporter:
            request = kind(**_by_names_of_today(asked_for, _joined(asked_for, given), reporter))
            require(request.needs, doing=f"hubprune {body.__name__}")
            with at_most(budget_of(request)):
                body(request, reporter, **wanted)

    options = sorted([*asked_for, *([JSON] if with_json else [])], key=lambda asked: ORDER.index(panel(asked)))
    options.sort(key=lambda asked: everyday.index(asked.name) if asked.name in everyday else len(everyday))
    run.__name__, run.__doc__ = body.__name__, body.__doc__
    parameters = [_parameter(asked, panel(asked)) for asked in options]
    parameters += [_old_parameter(asked) for asked in asked_for if asked.option.formerly]
    run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    app.command(epilog=epilog, cls=_EverydayFirst if everyday else None)(run)


def _parameter(asked: Asked, panel: str | None) -> Parameter:
    """Write an option as a parameter that typer understands."""
    option, kind = asked.option, list[str] if _takes_commas(asked) else _typed(asked.type)
    shown: dict[str, Any] = {"help": option.help, "metavar": option.metavar, "rich_help_panel": panel}
    told: Any
    if isinstance(option, Argument):
        told = typer.Argument(**shown)
    else:
        flag = option.flag or _flag(asked.name)
        told = typer.Option(flag, min=option.least, max=option.most, **shown)
    default = Parameter.empty if asked.default is MISSING else asked.default
    default = [default] if _takes_commas(asked) and isinstance(default, str) else default
    kind = kind if asked.default is not None else kind | None
    return Parameter(asked.name, Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, told])


def _old_parameter(asked: Asked) -> Parameter:
    """Write the name of earlier versions as an option that no help shows."""
    name, kind = str(asked.option.formerly), list[str] if _takes_commas(asked) else _typed(asked.type)
    told = typer.Option(_flag(name), hidden=True, min=asked.option.least, max=asked.option.most)
    return Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, told])


def _by_names_of_today(asked: Sequence[Asked], given: Mapping[str, Any], reporter: Reporter) -> dict[str, Any]:
    values, used = renamed(asked, given)
    for old, name in used.items():
        reporter.note(f"{_flag(old)} is called {_flag(name)} now")
    return values


def _joined(asked: Sequence[Asked], given: Mapping[str, Any]) -> dict[str, Any]:
    """Take lists that were given piece by piece, as in `--protect 0 --protect 1`, as one: 0,1."""
    lists = {name for a in asked if _takes_commas(a) for name in (a.name, a.option.formerly)}
    return {name: (",".join(v) if v else None) if name in lists else v for name, v in given.items()}


ADDED = ("attn_layers", "max_loss", "mlp_layers", "protect", "target", "target_over")
"""Options whose parts add up when they are given several times; of others the last one counts, as a script expects."""


def _takes_commas(asked: Asked) -> bool:
    kinds = get_args(asked.type) if isinstance(asked.type, UnionType) else ()
    return asked.name in ADDED and str in kinds


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _typed(annotation: Any) -> Any:
    """Return what a value is on the command line: a number, a flag, a path, a list of these, and else a text."""
    kinds = set(get_args(annotation) if isinstance(annotation, UnionType) else [annotation]) - {NoneType}
    if len(kinds) == 1:
        (kind,) = kinds
        return list[_typed(*get_args(kind))] if get_origin(kind) is Sequence else kind  # type: ignore[misc]
    return Path if Path in kinds else str


def _show_version(wanted: bool) -> None:  # noqa: FBT001
    if wanted:
        typer.echo(f"hubprune {__version__}")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
]
