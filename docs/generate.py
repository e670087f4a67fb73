"""What the pages show of the code itself: commands, recipe, suites, needs; made while the site is built.

`reference/commands.md`, `recipe.md` and `api.md` are whole pages; a comment like `<!-- suites -->` on any other page is
replaced by the table of that name.
"""

from __future__ import annotations

import ast
import inspect
import math
import re
import textwrap
from collections.abc import Iterator, Mapping
from itertools import pairwise
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

if TYPE_CHECKING:
    from pydantic import BaseModel

GIGA = 10**9
OPTIONS = "| option | value | |\n|---|---|---|"
KEYS = "| key | value | default | |\n|---|---|---|---|"
PARAMETERS = "| option | default | |\n|---|---|---|"


# ---- commands ------------------------------------------------------------------------------------------------------


def commands() -> Iterator[tuple[str, Any]]:
    """Yield every command as it is typed, and what click knows of it."""
    import typer

    from hubprune.cli import app

    def walk(name: str, command: Any) -> Iterator[tuple[str, Any]]:
        for word, child in getattr(command, "commands", {}).items():
            yield from walk(f"{name} {word}", child)
        if not hasattr(command, "commands"):
            yield name, command

    yield from walk("hubprune", typer.main.get_command(app))


def examples(command: Any) -> Iterator[str]:
    """Yield the examples that the help of a command ends with."""
    for part in (command.epilog or "").split("  |  "):
        words = part.removeprefix("Examples:").removeprefix("Example:").strip()
        if not words.startswith("Exit codes"):
            yield words


def command_page() -> str:
    """Write the reference of all commands."""
    parts = [
        "# Commands\n\nMade from the command line itself. `hubprune COMMAND --help` says the same.\n\n"
        "Results go to stdout (`--json` where a program reads them), talk and progress to stderr. Exit codes: 0 done,"
        " 1 something could not be done, 2 a request that cannot be right, 3 reproduced with a difference, or a repo"
        " that `refresh --check` would change, 4 lost more than was allowed, 5 somebody changed what was published,"
        " 130 interrupted."
    ]
    for name, command in commands():
        shown = [parameter for parameter in command.params if not getattr(parameter, "hidden", False)]
        places = " ".join(_place(p) for p in shown if p.param_type_name == "argument")
        parts.append(f"## {name}\n\n{inspect.cleandoc(command.help or '')}\n\n```text\n{name} {places} [options]\n```")
        if typed := "\n".join(examples(command)):
            parts.append(f"```bash\n{typed}\n```")
        for panel in dict.fromkeys(getattr(p, "rich_help_panel", None) for p in shown):
            rows = [_option(p) for p in shown if getattr(p, "rich_help_panel", None) == panel]
            parts.append("\n".join([*([f"**{panel}**\n"] if panel else []), OPTIONS, *rows]))
    return "\n\n".join(parts) + "\n"


def _place(parameter: Any) -> str:
    name = str(parameter.metavar or parameter.name.upper()).strip("[]")
    return name if parameter.required else f"[{name}]"


def _option(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        flag, value = f"`{_place(parameter)}`", ""
    else:
        flag = ", ".join(f"`{flag}`" for flag in (*parameter.opts, *parameter.secondary_opts))
        value = "" if parameter.is_flag else f"`{parameter.metavar or _kind(parameter)}`"
    default = parameter.default
    told = "" if default is None or isinstance(default, bool) or callable(default) else f" Default: `{default}`."
    needed = " Required." if parameter.required and parameter.param_type_name == "option" else ""
    text = " ".join((parameter.help or "").split())
    text = text.replace("|", "\\|").replace("<", "&lt;")
    return f"| {flag} | {value} | {text}{'' if 'Default:' in text else told}{needed} |"


def _kind(parameter: Any) -> str:
    described = getattr(parameter, "type_descriptor", None)  # typer's own, since it brings its click along
    name = described.annotation.__name__ if described else parameter.type.name
    return {"int": "N", "float": "NUMBER", "str": "TEXT", "text": "TEXT", "integer": "N"}.get(name, name.upper())


# ---- recipe --------------------------------------------------------------------------------------------------------


def recipe_models() -> dict[str, type[BaseModel]]:
    """Return key -> the part of the recipe that stands there, the whole under no key."""
    from pydantic import BaseModel

    from hubprune.core.recipe import Recipe

    found: dict[str, type[BaseModel]] = {"": Recipe}

    def look(kind: Any, place: str) -> None:
        if inspect.isclass(kind) and issubclass(kind, BaseModel) and kind not in found.values():
            found[place] = kind
            inside(kind, place)
        for part in get_args(kind):
            look(part, place)

    def inside(kind: type[BaseModel], place: str) -> None:
        for name, field in kind.model_fields.items():
            look(field.annotation, f"{place}.{name}" if place else name)

    inside(Recipe, "")
    return found


def field_docs(kind: type) -> dict[str, str]:
    """Return name of a field -> the text below it in the source, of the class and those it inherits from."""
    docs: dict[str, str] = {}
    for part in reversed(kind.__mro__):
        try:
            body = ast.parse(textwrap.dedent(inspect.getsource(part))).body[0].body  # type: ignore[attr-defined]
        except (OSError, TypeError):
            continue
        for field, text in pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
                docs[field.target.id] = " ".join(str(ast.literal_eval(text.value)).split())
    return docs


def recipe_page() -> str:
    """Write the reference of all keys of a recipe."""
    parts = [
        "# Recipe\n\nEvery key, made from the code that reads it. Options of the command line win over the recipe, and"
        " both over the defaults. A published repo carries its `recipe.yaml`."
    ]
    models = recipe_models()
    for place, kind in models.items():
        docs = field_docs(kind)
        rows = [KEYS]
        for name, field in kind.model_fields.items():
            default = "required" if field.is_required() else _default(field)
            text = _cell(field.description or docs.get(name, ""))
            rows.append(f"| `{name}` | {_words(field.annotation, models)} | {default} | {text} |")
        title = f"## `{place}`" if place else "## The whole"
        parts.append(f"{title}\n\n{inspect.getdoc(kind)}\n\n" + "\n".join(rows))
    return "\n\n".join(parts) + "\n"


def _default(field: Any) -> str:
    from pydantic import BaseModel

    value = field.get_default(call_default_factory=True)
    if value is None or isinstance(value, BaseModel) or value in ({}, ()):
        return ""
    return f"`{', '.join(map(str, value)) if isinstance(value, tuple) else value}`"


def _words(kind: Any, models: Mapping[str, type]) -> str:
    """Say what a value is, as somebody who writes YAML would."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _words(inner[0], models)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(_words(part, models) for part in inner if part is not NoneType))
    if origin is tuple:
        return f"list of {_words(inner[0], models)}"
    if origin is dict:
        return f"name: {_words(inner[1], models)}"
    for place, model in models.items():
        if kind is model:
            return f"[{place}](#{place.replace('.', '')})"
    plain = {str: "text", int: "number", float: "number", bool: "true or false"}
    return plain.get(kind, getattr(kind, "__name__", str(kind)))


# ---- Python --------------------------------------------------------------------------------------------------------


def functions() -> dict[str, Any]:
    """Return the functions that `import hubprune` offers."""
    import hubprune

    return {name: getattr(hubprune, name) for name in hubprune.__all__ if not name.startswith("_")}


def api_page() -> str:
    """Write the reference of the Python API: the functions from what they take, the results from their source."""
    from hubprune.core import artifacts

    parts = [
        "# Python API\n\nThe functions take the options of their commands, with the same names, defaults and errors. A"
        " list may be given as a list, a mapping as a mapping; `quiet=True` leaves stages and progress out of stderr."
        " All results are frozen values with `model_dump()`; a notebook shows them as tables. Every mistake is a"
        " `HubpruneError`."
    ]
    results: dict[str, None] = {}
    for name, function in functions().items():
        signature = inspect.signature(function)
        returned = str(signature.return_annotation).replace("tuple[Any, Any]", "model, tokenizer")
        results |= dict.fromkeys(word for word in re.findall(r"\w+", returned) if hasattr(artifacts, word))
        parts += [f"## {name}", *_function(name, function, signature, returned)]
    parts.append("## Results\n\nWhat the functions return.")
    parts += [f"::: hubprune.core.artifacts.{name}\n    options: {{heading_level: 3}}" for name in results]
    return "\n\n".join([*parts, "## Errors", error_tree()]) + "\n"


def _function(name: str, function: Any, signature: inspect.Signature, returned: str) -> Iterator[str]:
    taken = [parameter for parameter in signature.parameters.values() if parameter.name != "quiet"]
    first = [parameter.name for parameter in taken if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
    yield f"```python\nhubprune.{name}({', '.join([*first, '**options'])})  # -> {returned}\n```"
    text = str(inspect.getdoc(function))
    yield text.partition("\n\nArgs:")[0]
    rows = [PARAMETERS]
    for parameter in taken:
        told = re.search(rf"^    {parameter.name}: (.*(?:\n        .*)*)", text, re.M)
        default = "required" if parameter.default is parameter.empty else f"`{parameter.default!r}`"
        rows.append(f"| `{parameter.name}` | {default} | {_cell(told[1] if told else '')} |")
    yield "\n".join(rows)
    for title, section in re.findall(r"^(Returns|Raises):\n((?:    .*\n?)+)", text, re.M):
        lines = textwrap.dedent(section).splitlines()
        yield f"**{title}**\n\n" + "\n".join(f"  {n.strip()}" if n.startswith(" ") else f"- {n}" for n in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


# ---- tables --------------------------------------------------------------------------------------------------------


def suites_table() -> str:
    """Write which tasks every suite stands for, and what that costs."""
    from hubprune.core.suites import DEFAULT_SUITE, SUITES, cost_of

    rows = ["| `--tasks` | stands for | asks |", "|---|---|---|"]
    for name, suite in SUITES.items():
        tasks = ", ".join(f"{task} ({shots}-shot)" if shots else task for task, shots in suite.items())
        default = ", the default" if name == DEFAULT_SUITE else ""
        rows.append(f"| `{name}`{default} | {tasks} | {cost_of(tuple(suite), suite).told} |")
    return "\n".join(rows)


def error_tree() -> str:
    """Write the tree of errors as its module draws it."""
    from hubprune.core import errors

    lines = (errors.__doc__ or "").splitlines()
    return "\n".join(["```text", *(line[4:] for line in lines if line.startswith("    ")), "```"])


MACHINES: Mapping[str, Mapping[str, Any]] = {
    "T4, 16 GB, 12 GB of RAM": {
        "flops": 32e12, "memory_rate": 0.22e12, "disk_rate": 5e8, "host": 11 * GIGA, "device": 15 * GIGA, "gpu": True,
        "itemsize": 2,
    },
    "A100, 40 GB": {
        "flops": 190e12, "memory_rate": 1e12, "disk_rate": 1e9, "host": 80 * GIGA, "device": 39 * GIGA, "gpu": True,
        "itemsize": 2,
    },
    "8 CPU cores, 32 GB of RAM": {
        "flops": 5e11, "memory_rate": 3e10, "disk_rate": 5e8, "host": 30 * GIGA, "device": 30 * GIGA, "itemsize": 4,
    },
}  # fmt: skip
"""Machine -> what `hubprune doctor` would time and ask there: assumed from data sheets, measured nowhere."""
MODELS: Mapping[str, Mapping[str, Any]] = {
    "Llama-3.2-3B": {
        "num_hidden_layers": 28, "hidden_size": 3072, "num_attention_heads": 24, "num_key_value_heads": 8,
        "head_dim": 128, "intermediate_size": 8192, "vocab_size": 128256, "weight_bytes": 6_425_499_648, "tied": True,
    },
    "Mistral-7B": {
        "num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8,
        "intermediate_size": 14336, "vocab_size": 32000, "weight_bytes": 14_483_464_192, "tied": False,
    },
}  # fmt: skip
"""Model -> its shape, by its config.json, and the bytes of its files in bfloat16."""


def needs_of(model: str, machine: str, tasks: str | None = None) -> Any:
    """Return what every stage of a publish with default options needs, by the arithmetic of `hubprune doctor`."""
    from hubprune.core.requests import PublishRequest
    from hubprune.workflows.estimate import Machine, Shape, needs
    from hubprune.workflows.recipes import recipe_of

    config = MODELS[model]
    shape = Shape.of(config, weight_bytes=config["weight_bytes"], stored="bfloat16", tied=config["tied"])
    recipe = recipe_of(PublishRequest("a/b", attn_drop=1, tasks=tasks))
    return needs(recipe, shape, Machine(**MACHINES[machine]), missing=0)


def _memory(stages: Any) -> str:
    return f"{max(stage.memory for stage in stages) / GIGA:.0f} GB"


def _time(stages: Any) -> str:
    return _span(sum(stage.seconds or 0 for stage in stages))


def needs_table() -> str:
    """Write what a publish of a 3B and of a 7B would take on three machines."""
    rows = ["| model | machine | memory | rough time | with `--tasks card5` |", "|---|---|---|---|---|"]
    for model in MODELS:
        for machine in MACHINES:
            stages = needs_of(model, machine)
            fewer = _time(needs_of(model, machine, "card5"))
            rows.append(f"| {model} | {machine} | {_memory(stages)} | {_time(stages)} | {fewer} |")
    return "\n".join(rows)


def readme_rows() -> list[str]:
    """Write the same as rows of the README: bytes of download and disk, memory on an A100, times."""
    rows = []
    for model, config in MODELS.items():
        size, stages = config["weight_bytes"] / GIGA, [needs_of(model, machine) for machine in MACHINES]
        cells = [f"{size:.1f} GB", f"{math.ceil(3 * size)} GB", _memory(stages[1]), *map(_time, stages)]
        rows.append(f"| {' | '.join([model, *cells])} |")
    return rows


def _span(seconds: float) -> str:
    return f"{seconds / 3600:.0f} h" if seconds > 2 * 3600 else f"{max(1, seconds / 60):.0f} min"


# ---- mkdocs --------------------------------------------------------------------------------------------------------

PAGES = {"reference/api.md": api_page, "reference/commands.md": command_page, "reference/recipe.md": recipe_page}
TABLES = {"<!-- suites -->": suites_table, "<!-- needs -->": needs_table, "<!-- errors -->": error_tree}


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are made here."""
    from mkdocs.structure.files import File

    for place, write in PAGES.items():
        files.append(File.generated(config, place, content=write()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the tables where a page asks for them."""
    for mark, write in TABLES.items():
        if mark in markdown:
            markdown = markdown.replace(mark, write())
    return markdown
