"""A folder of one's own can replace or extend any part of the card, and what authors of templates read is true."""

from __future__ import annotations

import json
import os
import re

import pytest
from card_text import card, context, headings

from hubprune.cards.card import check_templates, render, template_hash
from hubprune.cards.context import SCHEMA, context_schema
from hubprune.cards.markdown import FILTERS
from hubprune.core.errors import RecipeError
from hubprune.core.templates import template_folder

SHIPPED = template_folder("card")
README = (SHIPPED / "README.md").read_text(encoding="utf-8")


def own(folder, **files):
    for name, text in files.items():
        (folder / f"{name}.md.jinja").write_text(text, encoding="utf-8")
    return folder


def test_the_schema_of_the_context_is_the_committed_one():
    path = SHIPPED / SCHEMA
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(context_schema(), encoding="utf-8")
    assert path.read_text(encoding="utf-8") == context_schema(), "UPDATE_GOLDEN=1 writes it anew"
    schema = json.loads(context_schema())
    assert "glance" in schema["required"]
    assert schema["$defs"]["Table"]["properties"]["align"]["description"].startswith("One letter per column")


def test_the_readme_names_every_template_block_and_filter():
    files = {path.relative_to(SHIPPED).as_posix() for path in SHIPPED.rglob("*.jinja")}
    assert set(re.findall(r"^\| `([\w./-]+)` \|", README, re.M)) == files
    blocks = re.findall(r"{% block (\w+) %}", (SHIPPED / "base.md.jinja").read_text(encoding="utf-8"))
    told = README.split("The blocks are")[1].split(".\n")[0]
    assert re.findall(r"`(\w+)`", told) == blocks
    assert all(f"`{name}`" in README for name in FILTERS)


def test_a_block_of_the_shipped_template_can_be_extended(tmp_path):
    example = README.split("```jinja\n")[1].split("```")[0]
    text = render(context(), overrides=own(tmp_path, base=example))
    assert re.search(r"other than those above\.\n+- Not for production\.\n+## Reproduce\n", text)
    assert headings(text) == headings(card())


def test_what_the_shipped_template_includes_comes_from_the_users_folder(tmp_path):
    own(tmp_path, base='{% extends "shipped/base.md.jinja" %}', footer="Mine: {{ card.title | md }}\n")
    assert render(context(), overrides=tmp_path).endswith("\nMine: Llama-3.2-3B-attn-drop-3\n")


def test_a_method_can_be_told_in_other_words(tmp_path):
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "attn-drop.md.jinja").write_text("In my words.")
    check_templates(tmp_path)
    assert "In my words." in render(context(), overrides=tmp_path)


def test_the_hash_is_that_of_the_templates_in_force(tmp_path):
    hashes = [template_hash(), template_hash(own(tmp_path, footer="a")), template_hash(own(tmp_path, footer="b"))]
    assert len({*hashes}) == 3
    assert f"card template {hashes[-1][:8]}" in context(overrides=tmp_path).footer


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "No file in .* takes the place of a card template"),
        ({"foter": "x"}, "No file in .* takes the place of a card template"),
        ({"footer": "a\n{% if %}"}, r"cannot be rendered \(footer\.md\.jinja, line 2\)"),
    ],
)
def test_a_folder_that_does_not_do_is_refused_before_anything_is_computed(tmp_path, files, said):
    with pytest.raises(RecipeError, match=said):
        check_templates(own(tmp_path, **files))
    with pytest.raises(RecipeError, match="is no folder of card templates"):
        check_templates(tmp_path / "missing")


@pytest.mark.parametrize(
    "template",
    [
        "{{ card.nothing }}",
        "{{ card.__class__.__mro__ }}",
        '{% include "missing" %}',
        "{{ ''.join(1) }}",
        "{{ 'a' * 99999999999 }}",
        "{{ [1] * 3000000000 }}",
        "{{ 9 ** 9 ** 9 }}",
        "{{ range(99999999) | list }}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
        '{% include "footer.md.jinja" %}',
    ],
)
def test_a_template_that_cannot_be_rendered_is_one_error_that_says_that_the_work_is_kept(tmp_path, template):
    with pytest.raises(RecipeError) as error:
        render(context(), overrides=own(tmp_path, footer=template))
    assert "what was computed is kept" in error.value.hint
