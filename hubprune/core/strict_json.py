"""Parse JSON of strangers so that no two readers can read two different things out of it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from typing import Any

from hubprune.core.errors import CheckpointError

HALF_PAIR = re.compile(r"[\ud800-\udfff]")


def parse_json(text: bytes, *, where: str) -> dict[str, Any]:
    """Parse a JSON object in which no key occurs twice and every number and text is one that all readers know.

    Raises:
        CheckpointError: it is no JSON object, or two readers could read two different things out of it.
    """

    def checked(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """Make a dict of the pairs unless a key stands there twice, or a value is none of JSON's."""
        made = dict(pairs)
        if len(made) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise CheckpointError(f"{where} has the key {twice!r:.80} twice.")
        for key, value in made.items():
            if odd := next(filter(None, map(_oddity, _flat((key, value)))), None):
                raise CheckpointError(f"{where} has {odd} under {key!r:.80}.")
        return made

    try:
        # Decoded here, since json would guess UTF-16 and UTF-32 too, which no other reader of these files does.
        value = json.loads(text.decode(), object_pairs_hook=checked)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where} is no valid JSON: {error}.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{where} is no JSON object.")
    return value


def _flat(values: Iterable[Any]) -> Iterable[Any]:
    """Yield the values of lists in lists; objects in them were checked when they were parsed."""
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from _flat(value)
        else:
            yield value


def _oddity(value: Any) -> str | None:
    """Name what of a value only some readers take for JSON, or None."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value}, which is no number of JSON,"
    if isinstance(value, str) and HALF_PAIR.search(value):
        return "half of a surrogate pair, which is no text,"
    return None
