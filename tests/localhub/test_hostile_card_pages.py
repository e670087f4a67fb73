"""Whole cards of hostile text, opened in a browser: every section there, every table whole, and nothing that runs.

The suite opens a few dozen cards; `HOSTILE_CARDS=4000` opens as many, of six strings each.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

import made
import pytest
from browser import CHROMIUM, browser
from hostile import SECTIONS, parts, text
from hypothesis import HealthCheck, Phase, given, settings
from test_card_pages import ACTIVE, address, folder  # noqa: F401 - fixtures

from hubprune.cards.card import render
from hubprune.cards.markdown import check_notes, visible
from hubprune.core.errors import RecipeError

CARDS = int(os.environ.get("HOSTILE_CARDS", "40"))
A_PAGE = 40
"""Cards that a browser opens at once."""
RAGGED = (
    "[...document.querySelectorAll('.card table')]"
    ".filter(t => new Set([...t.rows].map(r => r.cells.length)).size != 1).length"
)
ATTRIBUTES = (
    "[...document.querySelectorAll('*')].flatMap(e => e.getAttributeNames()).filter(n => /^on|^style$/.test(n))"
)
TEXTS = "[...document.querySelectorAll('.card {}')].map(e => e.textContent)"
LINKS = "[...document.querySelectorAll('.card a')].map(a => a.protocol)"


@dataclass(frozen=True)
class Hostile:
    """A card, and what a reader should see of the strings in it."""

    matter: str
    body: str
    name: str
    sample: str
    notes: str | None


def hostile_cards(number):
    """Render cards of strings that hypothesis makes; notes that are refused are left out."""
    cards = []

    @settings(
        max_examples=number, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(text, text, text, text, text, text)
    def collect(sample, name, dataset, task, label, notes):
        try:
            told = check_notes(notes)
        except RecipeError:
            told = None
        rendered = render(made.card_context(**parts(sample, name, dataset, task, label), notes=told))
        matter, body = re.fullmatch(r"(---\n.*?\n---\n)(.*)", rendered, re.DOTALL).groups()
        cards.append(Hostile(matter, body, name, sample, told))

    collect()
    return cards


def shown(text):
    """One line of text as a heading shows it."""
    return visible(" ".join(text.split())).strip()


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
def test_a_card_of_hostile_text_is_whole_in_a_browser(chromium, address, folder):  # noqa: F811
    cards = hostile_cards(CARDS)
    assert len(cards) >= 0.9 * CARDS
    chromium.look(1280)
    for start in range(0, len(cards), A_PAGE):
        page = cards[start : start + A_PAGE]
        whole = page[0].matter + "\n\n".join(card.body for card in page)
        (folder / "README.md").write_text(whole, encoding="utf-8")
        chromium.open(address)
        assert (chromium.run("document.title"), chromium.run(ACTIVE)) == ("model", 0)
        assert chromium.run(ATTRIBUTES) == []
        assert [url for url in chromium.requests if not url.startswith(address)] == []
        assert chromium.run(TEXTS.format("h2")) == sections_of(page)
        assert chromium.run(RAGGED) == 0
        assert set(chromium.run(LINKS)) <= {"http:", "https:", "mailto:"}
        assert chromium.run(TEXTS.format("h1")) == [shown(card.name.rsplit("/", 1)[-1]) for card in page]
        blocks = chromium.run(TEXTS.format("pre code"))
        for card in page:
            assert visible(card.sample.replace("\r\n", "\n"), keep="\n\t") + "\n" in blocks


def sections_of(page):
    notes = SECTIONS.index("Reproduce")
    told = [*SECTIONS[:notes], "Notes by the author", *SECTIONS[notes:]]
    return [section for card in page for section in (told if card.notes else SECTIONS)]
