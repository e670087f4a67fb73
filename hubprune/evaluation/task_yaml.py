"""Read a user's files of tasks before lm-eval does.

lm-eval passes over a file that it cannot read, and then there is no such task; over one that nests too deep its parser
ends the process.  Here a broken file is told from a missing one, and what is read of a task before its data has a type
that it may have.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hubprune.core.errors import EvaluationError
from hubprune.core.specs import shown
from hubprune.core.strict import TaggedText, parse_yaml, refuse_depth

UNPICKLING = frozenset({"pandas", "webdataset"})
"""Formats of files whose reader in `datasets` unpickles, or has done so."""
TEXTS = (
    "dataset_path", "dataset_name", "training_split", "validation_split", "test_split", "fewshot_split", "output_type",
    "description", "target_delimiter", "fewshot_delimiter",
)  # fmt: skip
KINDS: Mapping[type, str] = {str: "text", dict: "mapping", list: "list", int: "whole number"}


class _DeadlyFileError(EvaluationError):
    """A file that lm-eval would never come back from."""


def read_task_file(path: Path) -> dict[str, Any]:
    """Read one file without what it includes; calls of Python functions are texts with a tag.

    Raises:
        EvaluationError: it cannot be read, is no mapping, or has a key twice.
    """
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise _DeadlyFileError(f"Cannot read {path}: it is a pipe or a device.")
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        raise EvaluationError(f"Cannot read {path}: {getattr(error, 'strerror', error)}.") from error
    refuse_depth(data, where=str(path), error=_DeadlyFileError)
    values = parse_yaml(data, where=str(path), error=EvaluationError, tags=True)
    if not isinstance(values, dict):
        raise EvaluationError(f"{path} holds no mapping, so it defines no benchmark.")
    return values


def includes_of(values: Mapping[str, Any], *, where: Path) -> tuple[str, ...]:
    """List the names of the files that a file includes.

    Raises:
        EvaluationError: they are no names.
    """
    given = values.get("include")
    names = given if isinstance(given, list) else [] if given is None else [given]
    if not all(isinstance(name, str) for name in names):
        raise EvaluationError(f"{where} includes something that is no name of a file.")
    return tuple(names)


def broken_files(folder: Path) -> dict[Path, EvaluationError]:
    """Read every task file below a folder with what it includes, and return those that cannot be read, and why.

    Raises:
        EvaluationError: lm-eval would never come back from one: it is a pipe, or nests too deep for its parser.
    """
    broken: dict[Path, EvaluationError] = {}
    for path in sorted(folder.rglob("*.yaml")):
        try:
            _read_all(path.resolve(), above=())
        except _DeadlyFileError:
            raise
        except EvaluationError as error:
            broken[path.resolve()] = error
    return broken


def _read_all(path: Path, *, above: tuple[Path, ...]) -> None:
    if path in above:
        raise EvaluationError(f"{path} includes itself, by way of {above[-1].name}.")
    values = read_task_file(path)
    _refuse_odd_names(values, where=path)
    for name in includes_of(values, where=path):
        try:
            _read_all((path.parent / name).resolve(), above=(*above, path))
        except EvaluationError as error:
            raise type(error)(f"{path} includes {name}: {error.message}") from error


def _refuse_odd_names(values: Mapping[str, Any], *, where: Path) -> None:
    """Refuse names that are no texts: lm-eval sorts those of all files, and cannot sort numbers among them."""
    for key in {"task", "group", "tag"} & values.keys():
        given = values[key]
        # The members of a group are looked up by name and never sorted.
        names = given if isinstance(given, list) and key == "tag" else [] if isinstance(given, list) else [given]
        if odd := [name for name in names if not isinstance(name, str) and (name is not None or key != "tag")]:
            hint = "Put it in quotes."
            raise _DeadlyFileError(f"{where} has a {key} that is no text: {shown(odd[0])}.", hint=hint)


def calls_python(value: Any) -> bool:
    """Tell whether a value of a task file has a tag, such as `!function`, anywhere in it."""
    if isinstance(value, dict):
        return any(calls_python(item) for pair in value.items() for item in pair)
    return any(map(calls_python, value)) if isinstance(value, (list, tuple, set)) else isinstance(value, TaggedText)


def refuse_misfit(name: str, config: Mapping[str, Any]) -> None:
    """Make sure that the config of a task, includes merged in, has values of the types that are read of it.

    Raises:
        EvaluationError: naming the task, the key and the type; or it reads its data with a loader that unpickles.
    """
    for key in TEXTS:
        _expect(name, key, config.get(key), str)
    kwargs = config.get("dataset_kwargs")
    _expect(name, "dataset_kwargs", kwargs, dict)
    _expect(name, "dataset_kwargs.data_dir", (kwargs or {}).get("data_dir"), str)
    _expect(name, "num_fewshot", config.get("num_fewshot"), int)
    _expect(name, "metric_list", config.get("metric_list"), list)
    for row in config.get("metric_list") or ():
        if not isinstance(row, dict) or not isinstance(row.get("metric"), str):
            raise EvaluationError(f"The benchmark {name} has a metric in metric_list without a name: {shown(row)}.")
    _expect(name, "generation_kwargs", config.get("generation_kwargs"), dict)
    if config.get("dataset_path") in UNPICKLING:
        message = f"The benchmark {name} reads {config['dataset_path']} files, which are unpickled, and that runs code."
        raise EvaluationError(message, hint="Write the rows as json, csv or parquet.")
    if "\0" in "".join(_texts([config.get(key) for key in (*TEXTS, "dataset_kwargs")])):
        raise EvaluationError(f"The benchmark {name} names data with a NUL character, which no file has.")


def _expect(name: str, key: str, value: Any, kind: type) -> None:
    is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if value is not None and not (is_count if kind is int else isinstance(value, kind)):
        raise EvaluationError(f"The benchmark {name} has a {key} that is no {KINDS[kind]}: {shown(value)}.")


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)
