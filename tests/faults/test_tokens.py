"""What every kind of token meets, word by word."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from token_table import ACTIONS, TOKENS, as_text, rows

GOLDEN = Path(__file__).parent / "golden" / "tokens.txt"


@pytest.fixture(scope="module")
def tried(world):
    return list(rows(world))


def test_every_message_is_as_it_was_read_and_found_good(tried):
    text = as_text(tried)
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()


def test_nothing_is_written_for_a_token_that_is_refused(tried):
    assert len(tried) == len(TOKENS) * len(ACTIONS)
    assert [row for row in tried if row.wrote] == []


def test_every_refusal_is_one_of_ours_and_says_what_to_do(tried):
    refused = [row for row in tried if row.outcome != "goes on"]
    assert [row for row in refused if row.outcome.startswith("bare") or not row.exit_code] == []
    assert [row for row in refused if "\nhint: None" in row.said] == []


def test_no_message_shows_a_token(tried):
    assert not [row for row in tried if "hf_" in row.said.replace("`hf_", "") or "eyJ" in row.said]
