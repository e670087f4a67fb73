"""The card of the fixed artifacts, taken apart as a reader of Markdown sees it."""

from __future__ import annotations

import os
import re
from pathlib import Path

import made
import yaml
from markdown_it import MarkdownIt

from hubprune.cards.card import render

GOLDEN = Path(__file__).parents[1] / "cards" / "golden"


def context(**changes):
    return made.card_context(**changes)


def card(**changes):
    return render(context(**changes))


def split(text):
    matter, body = re.fullmatch(r"---\n(.*?\n)---\n(.*)", text, re.DOTALL).groups()
    return yaml.safe_load(matter), body


def matter(**changes):
    return split(card(**changes))[0]


def parse(text):
    return MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(split(text)[1])


def headings(text):
    tokens = parse(text)
    return [tokens[i + 1].content for i, t in enumerate(tokens) if t.type == "heading_open" and t.tag == "h2"]


def fences(text):
    return [t for t in parse(text) if t.type == "fence"]


def check_structure(text):
    """Every table is rectangular, every fence closed, and no line looks like a table row without being one."""
    widths, rows = [], 0
    for token in parse(text):
        if token.type == "tr_open":
            widths.append(0)
        elif token.type in ("th_open", "td_open"):
            widths[-1] += 1
        elif token.type == "table_close":
            assert len(set(widths)) == 1, widths
            rows, widths = rows + len(widths), []
        elif token.type == "inline" and not widths:
            assert not token.content.startswith("|"), token.content
    outside = re.sub(r"(?ms)^(`{3,}).*?^\1$", "", split(text)[1])
    assert rows == len([line for line in outside.splitlines() if re.match(r"\|(?! ---)", line)])


def check_golden(name, text):
    """The text is that of a file that was read and found good, but for the hash of the templates."""
    path = GOLDEN / f"{name}.md"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    hashless = [re.sub(r"card template [0-9a-f]{8}", "card template", t) for t in (text, path.read_text("utf-8"))]
    assert hashless[0] == hashless[1], "UPDATE_GOLDEN=1 writes the golden cards anew: read the difference"
    check_structure(text)
