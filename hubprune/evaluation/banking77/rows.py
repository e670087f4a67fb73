"""Rows of BANKING77 in the order of LongICLBench: label by label in turns, in the order in which labels appear."""

from __future__ import annotations

from itertools import chain, islice, zip_longest
from typing import Any

TURNS = 5
"""Examples of a label, at most."""
ROWS = 100
"""Rows that are asked about, as in Table 11 of arXiv 2406.15786; LongICLBench has 500."""


def examples(rows: Any) -> list[dict[str, Any]]:
    """Return the first rows of each label, turn by turn: the first 77 are one of each."""
    return list(_taken(rows, _by_turns(rows)[:TURNS]))


def asked(rows: Any) -> Any:
    """Return the rows that are asked about."""
    return type(rows).from_list(list(islice(_taken(rows, _by_turns(rows)), ROWS)))


def _by_turns(rows: Any) -> list[list[int]]:
    """List the first row of each label, then the second of each that has one, and so on."""
    places: dict[str, list[int]] = {}
    for place, label in enumerate(rows["label_text"]):
        places.setdefault(label, []).append(place)
    return [[place for place in turn if place is not None] for turn in zip_longest(*places.values())]


def _taken(rows: Any, turns: list[list[int]]) -> Any:
    labels = sorted(set(rows["label_text"]))
    answers = [f"{label}\n" for label in labels]
    for row in rows.select(chain.from_iterable(turns)):
        yield {**row, "answers": answers, "answer": labels.index(row["label_text"])}
