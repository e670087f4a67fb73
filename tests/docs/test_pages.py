"""The pages: what they name is there, what is made from the code has all of it, and no link leads nowhere."""

from __future__ import annotations

import ast
import re
import tomllib
from functools import cache
from pathlib import Path

import generate
import pytest
import yaml

ROOT = Path(__file__).parents[2]

PAGES = sorted((ROOT / "docs").rglob("*.md"))
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


@cache
def messages():
    """Every text of the package, with … for what is filled in."""
    found = []
    for path in sorted((ROOT / "hubprune").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [str(p.value) if isinstance(p, ast.Constant) else "…" for p in node.values]
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return [" ".join(text.split()) for text in found]


def said_by(text, message):
    """Whether a text of the code says a message of a page: its words in their order, whatever is filled in."""
    words = [part.strip() for part in message.split("…") if part.strip(" .:()")]
    place = 0
    for part in words:
        if (place := text.find(part, place)) < 0:
            return False
        place += len(part)
    return True


def told():
    text = (ROOT / "docs" / "troubleshooting.md").read_text()
    return re.findall(r'^### "(.*)"$', text, re.MULTILINE)


@pytest.mark.parametrize("message", told())
def test_every_message_of_the_troubleshooting_is_one_of_the_code(message):
    assert len(max(message.split("…"), key=len)) > 6
    assert any(said_by(text, message) for text in messages())


def test_a_message_that_the_code_does_not_have_would_be_found():
    assert len(told()) > 30
    assert not any(said_by(text, "The token of … is written only.") for text in messages())


def test_every_page_is_in_the_navigation_and_every_entry_has_its_page():
    def leaves(value):
        if isinstance(value, str):
            yield value
        for part in value if isinstance(value, list) else value.values() if isinstance(value, dict) else ():
            yield from leaves(part)

    named = sorted(leaves(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert named == sorted([*(p.relative_to(ROOT / "docs").as_posix() for p in PAGES), *generate.PAGES])


def slug(title):
    """A title as GitHub and mkdocs make an anchor of it."""
    return re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", title.lower()).strip())


def anchors(path):
    return {slug(title) for title in re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)}


@pytest.mark.parametrize("path", [ROOT / "README.md", *PAGES], ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(path):
    for link in LINK.findall(path.read_text()):
        if link.startswith(("https://", "mailto:")):
            continue
        place, _, anchor = link.partition("#")
        target = path.parent / place if place else path
        made = target.resolve().is_relative_to(ROOT / "docs") and (
            target.resolve().relative_to(ROOT / "docs").as_posix() in generate.PAGES
        )
        assert made or target.exists(), f"{path.name} links to {link}"
        assert made or not anchor or anchor in anchors(target), f"{path.name} links to {link}"


def test_the_reference_of_commands_has_every_command_and_option():
    page = generate.command_page()
    commands = dict(generate.commands())
    assert {"hubprune publish", "hubprune export gguf", "hubprune doctor"} <= commands.keys()
    for name, command in commands.items():
        section = page.split(f"\n## {name}\n")[1].split("\n## ")[0]
        for parameter in command.params:
            flag = next((f for f in parameter.opts if f.startswith("--")), None)
            if flag:
                assert (f"`{flag}`" in section) is not getattr(parameter, "hidden", False), (name, flag)


def test_the_reference_of_the_recipe_has_every_key_that_a_recipe_takes():
    page = generate.recipe_page()
    for place, kind in generate.recipe_models().items():
        section = page.split(f"\n## {f'`{place}`' if place else 'The whole'}\n")[1].split("\n## ")[0]
        assert [name for name in kind.model_fields if f"| `{name}` |" not in section] == []
    assert {"drop", "evaluation", "calibration.subsets", "heal", "quantize"} <= generate.recipe_models().keys()


def test_the_reference_of_the_api_has_every_function_with_its_options():
    page = generate.api_page()
    for name, function in generate.functions().items():
        section = page.split(f"\n## {name}\n")[1].split("\n## ")[0]
        taken = function.__signature__.parameters.keys() - {"quiet"}
        assert [option for option in taken if f"| `{option}` |" not in section] == []
        assert "**Returns**" in section


def test_tables_that_pages_ask_for_are_made():
    asked = {mark for page in PAGES for mark in re.findall(r"<!-- \w+ -->", page.read_text())}
    assert asked <= generate.TABLES.keys()
    for write in generate.TABLES.values():
        assert len(write().splitlines()) > 2


NOTEBOOKS = sorted(ROOT.glob("examples/*.ipynb"))


@pytest.mark.parametrize("path", [ROOT / "README.md", *PAGES, *NOTEBOOKS], ids=lambda p: p.name)
def test_what_a_page_installs_is_there_and_can_compute(path):
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extras in re.findall(r"pip install [^\n]*?(?:hubprune|\.)\[([\w,]+)\]", path.read_text()):
        assert set(extras.split(",")) <= known.keys()
        assert {"torch", "all"} & {*extras.split(",")}, "nothing that loads a model comes with the plain package"


def test_the_readme_is_short_and_its_figures_are_those_of_doctor():
    text = (ROOT / "README.md").read_text()
    assert len(text.split()) <= 1200
    assert [row for row in generate.readme_rows() if row not in text] == []


def test_the_lines_for_ci_are_the_same_in_the_readme_and_on_their_page():
    def lines(path):
        return re.search(r"```yaml\n(name: .*?)```", (ROOT / path).read_text(), re.DOTALL)[1]

    assert lines("README.md") == lines("docs/ci.md")


def test_pictures_are_small_and_each_is_shown():
    pictures = sorted((ROOT / "docs" / "assets").glob("*.png"))
    pages = " ".join(path.read_text() for path in (ROOT / "README.md", *PAGES))
    assert pictures
    assert all(path.stat().st_size < 150_000 for path in pictures)
    assert [path.name for path in pictures if f"assets/{path.name}" not in pages] == []
