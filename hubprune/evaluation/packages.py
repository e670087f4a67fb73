"""What the code of tasks needs beside lm-eval: packages, and data that nltk would download.

A task may name Python functions, whose modules are imported when the task is loaded.  That is after everything else was
computed, and one of them calls a server for data that it does not find.  So what they import is read here, without
running any of it, and what is missing is one error before the first weight is read.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hubprune.core.errors import MissingDependencyError

PACKAGES: Mapping[str, str] = {
    "antlr4": "antlr4-python3-runtime==4.11", "math_verify": "math-verify", "PIL": "pillow",
    "pkg_resources": "'setuptools<81'",
}  # fmt: skip
"""Module -> package, where they are called differently."""


def refuse_missing(tasks: Iterable[tuple[str, Mapping[str, Any]]], *, of: str) -> None:
    """Make sure that what the code of the tasks of a benchmark imports is there, given their names and configs.

    Raises:
        MissingDependencyError: naming the task, what it lacks, and the line that brings it.
    """
    for _, config in tasks:
        sources = list(_sources(config))
        imported = {module for source in sources for module in _imported(source)}
        if gone := sorted(module for module in imported if _is_gone(module)):
            package = gone[0].split(".")[0]
            raise MissingDependencyError(
                f"The benchmark {of} needs {gone[0]}, which {package} {version(package)} no longer has.",
                hint=f"Leave {of} out, or install a {package} that still has it.",
            )
        if missing := sorted({name for module in imported if not find_spec(name := module.split(".")[0])}):
            raise MissingDependencyError(
                f"The benchmark {of} needs what is not installed: {', '.join(missing)}.",
                hint=f"{_pip_line(missing)}, or leave {of} out.",
            )
        if absent := sorted({r for source in sources for r in _nltk_data(source) if not _has_nltk_data(r)}):
            data = absent[0].rsplit("/", 1)[-1]
            raise MissingDependencyError(
                f"The benchmark {of} needs nltk's data {data}, which is not here, and would download it by itself.",
                hint=f"Get it beforehand: python -m nltk.downloader {data}, or leave {of} out.",
            )


def _sources(config: Mapping[str, Any]) -> Iterator[ast.Module]:
    """Parse the files that hold the functions of a task, and those beside them that they import."""
    waiting = [path for value in _texts(config) if (path := _file_of(value))]
    seen: set[Path] = set()
    while waiting:
        if (path := waiting.pop()) not in seen:
            seen.add(path)
            try:
                source = ast.parse(path.read_bytes())
            except (OSError, SyntaxError, ValueError):
                continue  # lm-eval says itself what is wrong with it
            yield source
            for node in ast.walk(source):
                if isinstance(node, ast.ImportFrom) and (node.level == 1 or (node.module or "").startswith("lm_eval.")):
                    names = [alias.name for alias in node.names] + [(node.module or "").rsplit(".", 1)[-1]]
                    waiting += [there for n in names if (there := path.parent / f"{n}.py").is_file()]


def _file_of(text: str) -> Path | None:
    """Find the file of a function that lm-eval's index names as `/folder/utils.function`; None for other texts."""
    path, dot, function = text.rpartition(".")
    there = function.isidentifier() and "\n" not in path and len(path) < 1000 and Path(path).is_absolute()
    return file if dot and there and (file := Path(f"{path}.py")).is_file() else None


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(item)


def _imported(source: ast.Module) -> Iterator[str]:
    """List the modules that a file imports wherever it is imported.

    What a function imports, or what the file can do without, is not among them.
    """
    for node in _run_at_import(source.body):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names = [node.module]
        yield from names


def _is_gone(module: str) -> bool:
    """Tell whether an installed package has no such module; nothing is imported to find out."""
    first, *rest = module.split(".")
    spec = find_spec(first)
    folders = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []
    for part in rest:
        if not folders:
            return False  # a single file, or compiled: what it makes up when it is imported is not known
        if not any((folder / part).is_dir() or any(folder.glob(f"{part}.*")) for folder in folders):
            return True
        folders = [folder / part for folder in folders if (folder / part).is_dir()]
    return False


def _run_at_import(statements: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    for node in statements:
        yield node
        if isinstance(node, ast.Try) and any(isinstance(s, ast.Raise) for h in node.handlers for s in h.body):
            yield from _run_at_import(node.body)  # it gives up itself


def _nltk_data(source: ast.Module) -> Iterator[str]:
    """List what a file looks up in nltk's data: `nltk.data.find("tokenizers/punkt_tab")`."""
    for node in ast.walk(source):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "nltk.data.find":
            yield from (a.value for a in node.args[:1] if isinstance(a, ast.Constant) and isinstance(a.value, str))


def _has_nltk_data(resource: str) -> bool:
    import nltk

    try:
        nltk.data.find(resource)
    except LookupError:
        return False
    return True


def _pip_line(modules: Iterable[str]) -> str:
    """Write what installs modules: the extra of lm-eval that has all of them, or their packages."""
    packages = [PACKAGES.get(module, module) for module in modules]
    names = {_plain(package) for package in packages}
    extras: dict[str, set[str]] = {}
    for line in requires("lm_eval") or ():
        requirement, _, extra = line.partition("; extra == ")
        if extra:
            extras.setdefault(extra.strip("\"' "), set()).add(_plain(requirement))
    fitting = sorted((len(having), extra) for extra, having in extras.items() if names <= having)
    return f'pip install "lm-eval[{fitting[0][1]}]"' if fitting else f"pip install {' '.join(packages)}"


def _plain(requirement: str) -> str:
    """Take the name alone out of `math_verify[x]>=1`, spelled as PyPI compares names."""
    return re.split(r"[^\w.-]", requirement.strip("' "), maxsplit=1)[0].lower().replace("_", "-")
