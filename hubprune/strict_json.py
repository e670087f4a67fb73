"""Parse JSON of strangers so that no two readers can read two different things out of it."""

from __future__ import annotations

import json
from typing import Any

from hubprune.errors import CheckpointError


def parse_json(text: bytes, *, where: str) -> dict[str, Any]:
    """Parse a JSON object in which no key occurs twice.

    Raises:
        CheckpointError: it is no JSON object, or two readers could read two different things out of it.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """Make a dict of the pairs unless a key stands there twice."""
        made = dict(pairs)
        if len(made) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise CheckpointError(f"{where} has the key {twice!r} twice.")
        return made

    try:
        # Decoded here, since json would guess UTF-16 and UTF-32 too, which no other reader of these files does.
        value = json.loads(text.decode(), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where} is no valid JSON: {error}.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{where} is no JSON object.")
    return value
