"""Collections: lists of repositories with a title, kept in one file."""

import json
import re
import secrets
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from hubprune.localhub import disk

__all__ = ["CollectionStore"]

Result = TypeVar("Result")
Row = dict[str, Any]
"""One collection, as clients read it."""


class CollectionStore:
    """The collections of one hub, by slug."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock = threading.Lock()

    def all(self) -> list[Row]:
        """List all collections, the newest last."""
        return list(self._read().values())

    def find(self, slug: str) -> Row | None:
        """Return a collection; None where there is none."""
        return self._read().get(slug)

    def create(self, title: str, owner: str, *, private: bool, description: str | None) -> tuple[Row, bool]:
        """Make a collection, or return the owner's one of that title; the second value tells whether it is new."""

        def _found_or_made(rows: dict[str, Row]) -> tuple[Row, bool]:
            same = next((row for row in rows.values() if (row["owner"], row["title"]) == (owner, title)), None)
            if same:
                return same, False
            words = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "collection"
            slug = f"{owner}/{words}-{secrets.token_hex(12)}"
            rows[slug] = {
                "slug": slug, "title": title, "owner": owner, "items": [], "lastUpdated": _now(), "private": private,
                "theme": "green", "upvotes": 0, "position": len(rows), "description": description,
            }  # fmt: skip
            return rows[slug], True

        return self._change(_found_or_made)

    def add(self, slug: str, item_id: str, item_type: str, note: str | None) -> bool:
        """Put an item at the end of a collection; False where it is in it already."""

        def _appended(rows: dict[str, Row]) -> bool:
            items = rows[slug]["items"]
            if any((item["id"], item["type"]) == (item_id, item_type) for item in items):
                return False
            told = {"note": {"text": note}} if note else {}
            items.append(
                {"_id": secrets.token_hex(12), "id": item_id, "type": item_type, "position": len(items), **told}
            )
            rows[slug]["lastUpdated"] = _now()
            return True

        return self._change(_appended)

    def _read(self) -> dict[str, Row]:
        return json.loads(self._file.read_bytes()) if self._file.exists() else {}

    def _change(self, change: Callable[[dict[str, Row]], Result]) -> Result:
        with self._lock:
            rows = self._read()
            result = change(rows)
            disk.write_bytes(self._file, json.dumps(rows, indent=1).encode())
        return result


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
