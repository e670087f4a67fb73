"""The author's own words: Markdown as it was written, or one error with the line; nothing that runs gets through."""

from __future__ import annotations

import re

import pytest
from card_text import card, check_structure, headings, parse
from hostile import HOSTILE
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from hubprune.cards.markdown import check_notes, read_notes
from hubprune.core.errors import RecipeError

RUNS = ("javascript:alert(1)", "JaVaScRiPt:x", "data:text/html,x", "vbscript:x", " file:///etc/passwd", "a&#x3a;b")


@pytest.mark.parametrize(
    "text",
    [
        "Plain *words*, a [link](https://a.b), [one](x.png) and `<b>code</b>`.",
        "| a | b |\n| --- | --- |\n| 1 | 2 |",
        "```python\nif a < b:\n    print('<script>')\n```",
        "~~~~\n```\n~~~~",
        "- a\n- b\n\n1. c",
        "a < b and b > c",
        "family: \U0001f468\u200d\U0001f469\u200d\U0001f467",
        "{{ 7 * 7 }} {% raw %}",
        "> ```\n> quoted\n> ```",
    ],
)
def test_markdown_comes_out_as_it_was_written(text):
    assert check_notes(text) == text
    whole = card(notes=check_notes(text))
    assert f"## Notes by the author\n\n{text}\n\n## Reproduce" in whole
    check_structure(whole.replace(text, ""))


def test_headings_move_below_those_of_the_card():
    moved = check_notes("# One\n\n## Two #\n\n###### Six\n\n> # Quoted\n\n    # code\n\n#hashtag")
    assert moved == "### One\n\n#### Two #\n\n###### Six\n\n> ### Quoted\n\n    # code\n\n#hashtag"
    assert headings(card(notes=moved)) == headings(card(notes="x"))


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("fine\n\n<script>alert(1)</script>", 3, r"HTML \(<script>alert\(1\)</script>\)"),
        ("fine\n\nsome <b>bold</b> words", 3, r"HTML \(<b>\)"),
        ("<!-- hidden -->", 1, r"HTML \(<!-- hidden -->\)"),
        ("<details>\n<summary>x</summary>\n", 1, "HTML"),
        ("a\n```\nnever closed", 2, "a code fence that nothing closes"),
        ("Title\n=====", 1, "a heading that is underlined"),
        ("Title\n---", 1, "a heading that is underlined"),
        *[(f"[x](<{address}>)", 1, "a link to ") for address in RUNS[:5]],
        ("![x](data:image/png;base64,AAAA)", 1, "a link to data:"),
        ("a\n\n[x]: javascript:alert(1)", 3, "a link to javascript:"),
        ("<javascript:alert(1)>", 1, "a link to javascript:"),
    ],
)
def test_what_is_not_allowed_is_refused_with_its_line(text, line, said):
    with pytest.raises(RecipeError, match=rf"The notes, line {line}: {said}"):
        check_notes(text)


@pytest.mark.parametrize("text", ["", " \n\t\n"])
def test_notes_without_text_are_refused(text):
    with pytest.raises(RecipeError, match="The notes hold no text"):
        check_notes(text)


def test_a_file_of_notes_is_named_where_something_is_wrong(tmp_path):
    path = tmp_path / "notes.md"
    path.write_bytes(b"\xef\xbb\xbffine\r\n\r\nalso fine\r\n")
    assert read_notes(path) == "fine\n\nalso fine"
    path.write_text("<b>")
    with pytest.raises(RecipeError, match=r"notes\.md, line 1: HTML"):
        read_notes(path)
    with pytest.raises(RecipeError, match="Cannot read the notes"):
        read_notes(tmp_path / "missing.md")


def test_invisible_characters_are_shown_and_cannot_turn_the_text_around():
    assert check_notes("a\u202eb\u200b\x00") == "a\\u202eb\\u200b\\x00"


hostile = st.lists(
    st.one_of(st.sampled_from([*HOSTILE, *RUNS, "](", "[x](", "<b>", "> "]), st.text(max_size=6)), max_size=8
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(hostile.map("".join))
@example("- ```\n  a")
@example("> ```\na")
@example("[x]: <javascript:a>\n[x]")
def test_whatever_the_notes_the_card_stays_whole_or_they_are_refused(text):
    check_hostile_notes(text)


def check_hostile_notes(text):
    """Refused, or shown in their own section without anything that runs; the sections around them stay."""
    try:
        notes = check_notes(text)
    except RecipeError:
        return False
    whole = card(notes=notes)
    assert headings(whole) == [*headings(card())[:8], "Notes by the author", *headings(card())[8:]]
    for token in parse(whole):
        if token.type == "html_block":  # what the templates fold, and nothing else
            assert re.fullmatch(r"(<details>\n<summary>[\w ,;%-]+</summary>|</details>)\n?", token.content), (
                token.content
            )
        assert all(child.type != "html_inline" for child in token.children or ())
    page = MarkdownIt("commonmark", {"html": True}).enable("table").render(notes).lower()
    assert "<script" not in page
    assert 'href="javascript' not in page
    return True
