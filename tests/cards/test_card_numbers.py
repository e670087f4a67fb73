"""Every number of a card follows from what is published beside it, by other rules than those that wrote the card."""

from __future__ import annotations

import json

import made
import pytest
from card_text import card
from test_card_methods import METHODS
from test_card_widths import narrow
from traced import misprints, numbers, untraced

from hubprune.core.artifacts import PublishReport

CARDS = {
    "attention": {},
    "timed": {"speed": made.speed()},
    "elsewhere": {"verification": made.in_runtimes()},
    "by hand": {"scores": None, "plan": made.plan_by_hand()},
    "bare": {"scores": None, "plan": made.plan_by_hand(), "benchmarks": None, "generation": None},
    "width": narrow(),
    **METHODS,
}


def both(name):
    """The card, and what of its data is published as JSON."""
    parts = made.card_parts(**CARDS[name])
    values = {key: value for key, value in parts.items() if key in PublishReport.model_fields}
    told = {"recipe": parts["recipe"].model_dump(mode="json"), "endpoint": made.report().endpoint, "published": None}
    report = PublishReport(**{**values, **told})
    left_out = {"seconds": True, "base": {"files", "card"}, "scores": {"per_document"}}
    return card(**CARDS[name]), json.loads(report.model_dump_json(exclude=left_out))


@pytest.mark.parametrize("name", CARDS)
def test_every_number_follows_from_the_json(name):
    text, values = both(name)
    assert len([*numbers(text)]) > 25
    assert untraced(text, values) == []


@pytest.mark.parametrize("name", ["attention", "timed", "width"])
def test_a_misprinted_digit_is_found_out(name):
    """The check above can fail: of numbers of four digits and more, hardly one can be another by chance."""
    text, values = both(name)
    found = [bool(untraced(wrong, values)) for _, wrong in misprints(text)]
    assert len(found) > 20
    assert sum(found) >= 0.85 * len(found)
