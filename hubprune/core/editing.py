"""For whoever writes a recipe: what is wrong with it, in which line, and what may have been meant; its JSON Schema."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from itertools import pairwise
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from hubprune.core.amounts import shown

SHOWN_KEYS = 16
"""Keys that an error lists where none of them is like the one that was written."""
BOUNDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
DIALECT = "https://json-schema.org/draft/2020-12/schema"


def first_problem(error: ValidationError, kind: type[BaseModel]) -> str:
    """Say what is wrong first, in one sentence that calls things as options do."""
    problem = _first(error)
    if problem["type"] == "value_error":  # one of our own sentences, which says itself what it is about
        text = _own(problem)
        amount = problem["loc"][:1] in (("drop",), ("width",)) and not isinstance(problem["input"], dict)
        # The fields of a width are called as in the file; its own has another name on the command line.
        named = {"width": "mlp_width"}.get(str(problem["loc"][1]), str(problem["loc"][1])) if amount else ""
        option = f"--{named.replace('_', '-')}: "
        return f"{option}{text}." if amount else f"{text[0].upper()}{text[1:]}."
    if problem["type"] == "string_pattern_mismatch" and problem["loc"][-1:] == ("device",):
        return f"--device {problem['input']!r} is none of auto, cpu, mps, cuda and cuda:N."
    return _at_its_place(problem, kind)


def first_problem_in(text: bytes, error: ValidationError, kind: type[BaseModel], *, where: str) -> str:
    """Say what is wrong first with a file, with its line and calling things as the file does."""
    problem = _first(error)
    line = line_of(text, problem["loc"])
    told = _at_its_place(problem, kind) if problem["loc"] or problem["type"] != "value_error" else f"{_own(problem)}."
    return f"{where}{f', line {line}' if line else ''}: {told}"


def _first(error: ValidationError) -> Any:
    """Return the first problem; where a key is missing, rather the unknown one beside it, which may be a slip of it."""
    problems: Sequence[Any] = error.errors()
    first = problems[0]
    beside = (each for each in problems if each["type"] == "extra_forbidden" and each["loc"][:-1] == first["loc"][:-1])
    return next(beside, first) if first["type"] == "missing" else first


def _own(problem: Any) -> str:
    return str(problem["msg"]).removeprefix("Value error, ")


def _at_its_place(problem: Any, kind: type[BaseModel]) -> str:
    place, given = ".".join(map(str, problem["loc"])), problem["input"]
    if problem["type"] == "extra_forbidden":
        return f"{place}: no such key{_meant(kind, problem['loc'])}"
    if problem["type"] == "missing":
        return f"{place} is missing."
    if problem["type"] in ("model_type", "dict_type"):
        return f"{place}: {shown(given)} is no mapping of settings."
    got = f", not {shown(given)}" if isinstance(given, (str, int, float)) and problem["type"] != "value_error" else ""
    return f"{place}: {_own(problem)}{got}."


# ---- what may have been meant ------------------------------------------------------------------------------------


def _meant(kind: type[BaseModel], loc: Sequence[str | int]) -> str:
    """Name the key that is like one that does not exist, here or wherever in a recipe it would belong."""
    *way, wrong = map(str, loc)
    holder: type[BaseModel] | None = kind
    for part in way:
        holder = _inside(holder, part) if holder else None
    names = list(holder.model_fields) if holder else []
    known = dict(_keys(kind))
    if wrong not in known and (alike := get_close_matches(wrong, names, n=1)):
        return f"; did you mean {alike[0]}?"
    if alike := get_close_matches(wrong, known, n=1, cutoff=0.85):
        return f"; did you mean {known[alike[0]]}?"
    return f"; there are {', '.join(names)}." if 0 < len(names) <= SHOWN_KEYS else "."


def _keys(kind: type[BaseModel], *, below: str = "") -> Iterator[tuple[str, str]]:
    """Yield every key below a model, with its path; of those that stand in several places, the last."""
    for name, field in kind.model_fields.items():
        for inner in _models(field.annotation):
            yield from _keys(inner, below=f"{below}{name}.")
        yield name, f"{below}{name}"


def _inside(kind: type[BaseModel], name: str) -> type[BaseModel] | None:
    """Return the model under a key; of a list, whose places are numbers, that of its items."""
    if name.isdecimal():
        return kind
    field = kind.model_fields.get(name)
    return next(_models(field.annotation), None) if field else None


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)


def line_of(text: bytes, loc: Sequence[str | int]) -> int | None:
    """Return the line, counted from 1, of a key or item in YAML, or of the last on the way to it that is there."""
    try:
        node, line = yaml.compose(text.decode("utf-8-sig"), Loader=yaml.SafeLoader), None
    except (UnicodeDecodeError, yaml.YAMLError):
        return None
    for part in loc:
        if isinstance(node, yaml.MappingNode):
            pairs = [(key, value) for key, value in node.value if getattr(key, "value", None) == str(part)]
            if not pairs:
                break
            key, node = pairs[-1]
            line = key.start_mark.line + 1
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            break
    return line


# ---- for editors -------------------------------------------------------------------------------------------------


def schema_of(kind: type[BaseModel], *, title: str) -> dict[str, Any]:
    """Return the JSON Schema of what a file may hold, with the docstring of every field as its description."""
    schema = kind.model_json_schema()
    models = {model.__name__: model for model in (kind, *_below(kind))}
    for name, part in ((kind.__name__, schema), *schema.get("$defs", {}).items()):
        told = _docstrings(models[name]) if name in models else {}
        for key, field in part.get("properties", {}).items():
            field.pop("title", None)
            if key in told:
                field["description"] = told[key]
        part.pop("title", None)
    return {"$schema": DIALECT, "title": title, **_in_its_words(schema)}


def _in_its_words(value: Any) -> Any:
    """Write bounds as JSON Schema calls them where pydantic has left its own names behind a validator."""
    if isinstance(value, list):
        return [_in_its_words(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {BOUNDS.get(key, key): _in_its_words(item) for key, item in value.items()}


def _below(kind: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for field in kind.model_fields.values():
        for inner in _models(field.annotation):
            yield inner
            yield from _below(inner)


def _docstrings(kind: type[BaseModel]) -> dict[str, str]:
    """Read what stands below the fields of a class, and of those that it inherits from, in their source."""
    told: dict[str, str] = {}
    for part in reversed(kind.__mro__):
        if not (issubclass(part, BaseModel) and part.__module__.startswith("hubprune.")):
            continue
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(part))).body
        lines = tree.body if isinstance(tree, ast.ClassDef) else []
        for field, below in pairwise(lines):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
                text = below.value.value if isinstance(below.value, ast.Constant) else None
                if isinstance(text, str):
                    told[field.target.id] = " ".join(text.replace("`", "").split())
    return told
