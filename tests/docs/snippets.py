"""The fenced blocks of README and docs, and the cells of notebooks: found, split into commands, typed, run."""

from __future__ import annotations

import ast
import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w+)\n(?P<text>.*?)^ *```$", re.DOTALL | re.MULTILINE)
MARK = "# not run: "
LANGUAGES = ("bash", "python", "yaml", "text")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    text: str

    @property
    def reason(self):
        """Why it is not run, as the block itself says; None where it is."""
        first = self.text.split("\n", 1)[0]
        return first.removeprefix(MARK) if first.startswith(MARK) else None

    @property
    def name(self):
        return f"{self.page}:{self.line}"

    @property
    def commands(self):
        """The commands of a shell block, without comments, each in one line."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


def blocks(path):
    text = path.read_text()
    for found in FENCE.finditer(text):
        lines = found["text"].splitlines(keepends=True)
        inside = "".join(line.removeprefix(found["indent"]) for line in lines)
        place = text.count("\n", 0, found.start()) + 1
        yield Block(path.relative_to(ROOT).as_posix(), place, found["language"], inside)


def all_blocks():
    return [block for page in PAGES for block in blocks(page)]


def hubprune_arguments(command):
    """Return what follows `hubprune` in a command, or after `-m hubprune`; None where it is of another program."""
    words = shlex.split(re.sub(r"> *[\w.-]+ *$", "", command), comments=True)  # without the file that a shell writes
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        del words[0]
    for start in ("hubprune", ".venv/bin/hubprune"):
        if words[:1] == [start]:
            return words[1:]
    if "-m" in words and words[words.index("-m") + 1] == "hubprune":
        return words[words.index("-m") + 2 :]
    return None


def typed(arguments):
    """Let the command line read arguments, and return the command and the options that were given.

    Raises whatever it raises of an option that does not exist, or of a value that is none.
    """
    import typer

    from hubprune.cli import app

    command, words = typer.main.get_command(app), list(arguments)
    while words and (child := getattr(command, "commands", {}).get(words[0])):
        command, words = child, words[1:]
    assert not hasattr(command, "commands"), f"hubprune {' '.join(arguments)} names no command"
    context = command.make_context("hubprune", words)
    given = {name: value for name, value in context.params.items() if value not in (None, [], ())}
    old = {p.name for p in command.params if getattr(p, "hidden", False)}
    assert not old & given.keys(), f"{old & given.keys()} are names of earlier versions"
    return command, given


def cells(path, **parameters):
    """Yield the code of the cells that are run, with other values for the parameters of the notebook."""
    for cell in json.loads(path.read_text())["cells"]:
        tags, text = cell["metadata"].get("tags", []), "".join(cell["source"])
        if cell["cell_type"] == "code" and "not-run" not in tags:
            for name, value in parameters.items() if "parameters" in tags else ():
                text, found = re.subn(rf"(?m)^{name} = .*$", f"{name} = {value!r}", text)
                assert found == 1, name
            yield text


def shown(text, names):
    """Run a cell, and return what a notebook would show of its last line: HTML, or else plain text."""
    tree = ast.parse(text)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, text, "exec"), names)  # what the notebook shows
    value = eval(compile(ast.Expression(last.value), text, "eval"), names) if last else None
    return value._repr_html_() if hasattr(value, "_repr_html_") else "" if value is None else repr(value)
