"""Whatever the text that a card is made of, the card stays whole: sections, tables, front matter, and no script.

The suite tries a few hundred cards; `HOSTILE_CARDS=20000` tries as many.
"""

from __future__ import annotations

import io
import itertools
import os
import re

import made
import yaml
from card_text import card, check_structure, headings
from hostile import SECTIONS, parts, text
from hypothesis import HealthCheck, given, settings
from markdown_it import MarkdownIt
from ruamel.yaml import YAML

from hubprune.cards import front_matter
from hubprune.cards.card import render

CARDS = int(os.environ.get("HOSTILE_CARDS", "200"))
FOLDED = card().count("<details>")
"""As many as the templates make of two pairs of texts: no text of data makes another."""
PAGE = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])


def check_front_matter(context):
    """Both readers of YAML see what was dumped, and neither sees the end of the block too early."""
    expected = yaml.safe_load(context.front_matter)
    assert YAML(typ="safe", pure=True).load(io.StringIO(context.front_matter)) == expected
    assert front_matter.dump(expected) == context.front_matter
    assert set(expected) <= {
        "language", "license", "license_name", "license_link", "library_name", "pipeline_tag", "base_model",
        "base_model_relation", "datasets", "tags", "metrics", "model-index",
    }  # fmt: skip


def test_short_texts_that_look_like_numbers_stay_texts():
    texts = ["".join(letters) for size in (1, 2, 3) for letters in itertools.product("-+._:~019eExobn", repeat=size)]
    dumped = front_matter.dump({"tags": texts})
    assert yaml.safe_load(dumped) == YAML(typ="safe", pure=True).load(io.StringIO(dumped)) == {"tags": texts}


def check_page(text):
    """Rendered by a reader that lets HTML through, the page has no tag but those that Markdown makes."""
    body = re.fullmatch(r"---\n(?:.*?\n)---\n(.*)", text, re.DOTALL).group(1)
    page = PAGE.render(body)
    tags = {tag.lower() for tag in re.findall(r"</?([a-zA-Z][\w-]*)", page)}
    assert tags <= {
        "h1", "h2", "h3", "p", "a", "strong", "code", "pre", "ul", "li", "hr", "table", "thead", "tbody", "tr", "th",
        "td", "blockquote", "details", "summary",
    }, tags  # fmt: skip
    folds = re.findall(r"<(?:details|summary)[^>]*>", page)
    assert folds == ["<details>", "<summary>"] * page.count("</details>"), folds
    assert page.count("</details>") == page.count("</summary>") <= FOLDED
    links = re.findall(r'(?:href|src)="([^"]*)"', page)
    ours = r"https://huggingface\.co/|assets/|(?:recipe\.yaml|hubprune\.json|modeling_pruned_llama\.py)$"
    assert all(re.match(ours, link) for link in links), links


@settings(max_examples=CARDS, deadline=None, suppress_health_check=list(HealthCheck))
@given(text, text, text, text, text)
def test_a_card_of_hostile_text_is_whole(sample, name, dataset, task, label):
    context = made.card_context(**parts(sample, name, dataset, task, label))
    rendered = render(context)
    rendered.encode("utf-8")
    check_front_matter(context)
    check_structure(rendered)
    assert headings(rendered) == SECTIONS
    check_page(rendered)
