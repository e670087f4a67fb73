"""What a publish depends on, in named parts, so that the next one knows what changed without computing anything.

A fingerprint maps parts to named values: a commit, a version, a setting as the recipe has it, or a SHA-256.  It is part
of hubprune.json.  What may differ between two machines that are asked for the same is no part of it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from hubprune.cards.card import template_hash
from hubprune.cards.snippet import SNIPPET_TEMPLATE
from hubprune.core.templates import template_folder

__all__ = ["CARD_PART", "Change", "Fingerprint", "card_part", "changes", "sha256", "snippet_part", "told"]

Fingerprint = Mapping[str, Mapping[str, str]]
CARD_PART = "card"
"""The part that nothing depends on but the card: another of it needs no computing."""
DIGEST = re.compile(r"[0-9a-f]{64}")
COMMIT = re.compile(r"[0-9a-f]{40}")
LONGEST = 40
"""Characters of a value that is shown whole."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """One value of a fingerprint that is another now."""

    part: str
    name: str
    before: str | None
    """None where there was none."""
    now: str | None


def sha256(text: str) -> str:
    """Compute the SHA-256 of a text, in 64 hex digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def card_part(*, notes: str | None, templates: Path | None) -> dict[str, str]:
    """Say what a card depends on besides what was found.

    Args:
        notes: the author's own words, as the card takes them.
        templates: folder of the user whose templates win over the shipped ones.
    """
    return {"templates": template_hash(templates), **({"notes": sha256(notes)} if notes else {})}


def snippet_part(templates: Path | None) -> dict[str, str]:
    """Say what the code of a card depends on, which is run before it is shown.

    Args:
        templates: folder of the user whose templates win over the shipped ones.
    """
    own = templates / SNIPPET_TEMPLATE if templates else None
    path = own if own and own.is_file() else template_folder("card") / SNIPPET_TEMPLATE
    return {"template": hashlib.sha256(path.read_bytes()).hexdigest()}


def changes(before: Fingerprint, now: Fingerprint) -> tuple[Change, ...]:
    """List what differs between two fingerprints, part by part."""
    return tuple(
        Change(part=part, name=name, before=old.get(name), now=new.get(name))
        for part in dict.fromkeys((*now, *before))
        for old, new in [(before.get(part, {}), now.get(part, {}))]
        for name in dict.fromkeys((*new, *old))
        if old.get(name) != new.get(name)
    )


def told(found: tuple[Change, ...]) -> str:
    """Say in one line what changed, as in `base: commit 1a2b3c4d -> 5e6f7a8b; benchmarks: limit 100 -> 200`."""
    return "; ".join(f"{part}: {', '.join(map(_words, rows))}" for part, rows in groupby(found, lambda c: c.part))


def _words(change: Change) -> str:
    values = [_short(value) for value in (change.before, change.now)]
    if change.before is None:
        return " ".join(filter(None, ("new", change.name, values[1])))
    if change.now is None:
        return f"no {change.name} any more"
    return f"{change.name} changed" if None in values else f"{change.name} {values[0]} -> {values[1]}"


def _short(value: str | None) -> str | None:
    """Shorten a commit; None for what tells nobody anything."""
    if value is None or DIGEST.fullmatch(value) or len(value) > LONGEST:
        return None
    return value[:8] if COMMIT.fullmatch(value) else value
