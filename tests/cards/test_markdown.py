"""Whatever the text, it comes out of Markdown, HTML, Python and YAML as the same text."""

from __future__ import annotations

import ast
import html as html_rules
import json

import pytest
import yaml
from hostile import HOSTILE
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from hubprune.cards.front_matter import dump
from hubprune.cards.markdown import fence, html, md, py, visible

hostile = st.lists(st.one_of(st.sampled_from(HOSTILE), st.text(max_size=8)), max_size=6).map("".join) | st.text(
    alphabet=st.characters(), max_size=40
)
many = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
MARKDOWN = MarkdownIt("commonmark", {"linkify": False}).enable(["table", "strikethrough"])


def one_line(text):
    return visible(" ".join(text.split()))


def plain(token):
    """The text of an inline token in which nothing but text was found."""
    assert {child.type for child in token.children} <= {"text", "text_special"}, token.children
    return "".join(child.content for child in token.children)


@many
@given(hostile)
def test_a_paragraph_shows_the_text(text):
    check_paragraph(text)


def check_paragraph(text):
    tokens = MARKDOWN.parse(md(text))
    if not one_line(text):
        assert tokens == []
        return
    assert [t.type for t in tokens] == ["paragraph_open", "inline", "paragraph_close"]
    assert plain(tokens[1]) == one_line(text)


@many
@given(st.lists(hostile, min_size=3, max_size=3))
def test_a_table_keeps_its_cells(cells):
    rows = "".join(f"| {' | '.join(md(c) for c in cells)} |\n" for _ in range(2))
    tokens = MARKDOWN.parse(f"| a | b | c |\n| --- | --- | --- |\n{rows}")
    inline = [plain(t) for t in tokens if t.type == "inline"]
    assert inline == ["a", "b", "c", *[one_line(c) for c in cells] * 2]
    assert tokens[-1].type == "table_close"


@many
@given(hostile)
def test_text_after_text_starts_nothing(text):
    tokens = MARKDOWN.parse(f"- before {md(text)}\n- x {md(text)}\n")
    assert [t.type for t in tokens if t.type.endswith("_open")] == [
        "bullet_list_open", "list_item_open", "paragraph_open", "list_item_open", "paragraph_open"
    ]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_every_known_trap_is_avoided(text):
    check_paragraph(text)
    check_fence(text)


@many
@given(hostile)
def test_a_fence_holds_the_text_verbatim(text):
    check_fence(text)


def check_fence(text):
    tokens = MARKDOWN.parse(f"before\n\n{fence(text)}\n\nafter\n")
    assert [t.type for t in tokens] == [
        "paragraph_open", "inline", "paragraph_close", "fence", "paragraph_open", "inline", "paragraph_close",
    ]  # fmt: skip
    assert tokens[3].content == visible(text.replace("\r\n", "\n"), keep="\n\t") + "\n"


@many
@given(hostile)
def test_a_python_literal_is_the_text(text):
    literal = py(text)
    assert ast.literal_eval(literal) == text
    assert "\n" not in literal
    assert literal.isprintable()


@many
@given(hostile)
def test_html_shows_the_text(text):
    escaped = html(text)
    assert not set(escaped) & set("<>\"'")
    assert html_rules.unescape(escaped) == visible(text, keep="\n\t")


@many
@given(hostile, hostile, st.floats(allow_nan=False, allow_infinity=False))
def test_front_matter_parses_to_what_was_dumped(key, text, number):
    values = {"a" + key: text, "list": [text, text], "number": number, "deep": {"x": text}}
    dumped = dump(values)
    expected = json.loads(
        json.dumps({"a" + visible(key): visible(text), "list": [visible(text)] * 2, "number": number})
    )
    assert yaml.safe_load(dumped) == {**expected, "deep": {"x": visible(text)}}
    dumped.encode("utf-8")
    assert "\n---" not in dumped
    assert "\n..." not in dumped


@pytest.mark.parametrize("text", ["1e10", "1234567890123456789012345678901234567890", "0o17", "no", "NULL", "+1", ".5"])
def test_what_another_yaml_reader_takes_for_a_number_is_quoted(text):
    assert dump({"x": text}) == f"x: '{text}'\n"


def test_numbers_of_numpy_are_plain_numbers():
    numpy = pytest.importorskip("numpy")
    assert dump({"x": numpy.float64(0.5), "z": [numpy.float32(0.25)]}) == "x: 0.5\nz:\n- 0.25\n"


def test_addresses_do_not_become_links():
    assert md("see http://x.y www.a.b :tada: a@b") == r"see http\://x\.y www\.a\.b \:tada: a\@b"


def test_ordinary_text_stays_readable():
    for text in ("lambada_openai", "0.7180 ± 0.0092", "Llama-3.2-3B", "ai2_arc/ARC-Easy", "−7.80", "a (b), c; d: e"):
        assert md(text) == text
