"""What a base's licence asks of a model that is built from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hubprune.artifacts import BaseCard
from hubprune.errors import RecipeError

__all__ = ["attribution_line", "check_name", "license_name", "notice_text"]


@dataclass(frozen=True, kw_only=True)
class _Terms:
    """What one licence wants to see, to the letter."""

    attribution: str
    """The line to show prominently."""
    notice: str
    """The line of the NOTICE file."""
    prefix: str = ""
    """How the name of the model has to begin."""


def _llama(version: str) -> _Terms:
    notice = (
        f"Llama {version} is licensed under the Llama {version} Community License,"
        " Copyright © Meta Platforms, Inc. All Rights Reserved."
    )
    return _Terms(attribution="Built with Llama", notice=notice, prefix="Llama")


TERMS: Mapping[str, _Terms] = {
    "llama3": _Terms(
        attribution="Built with Meta Llama 3",
        notice="Meta Llama 3 is licensed under the Meta Llama 3 Community License,"
        " Copyright © Meta Platforms, Inc. All Rights Reserved.",
    ),
    "llama3.1": _llama("3.1"),
    "llama3.2": _llama("3.2"),
    "llama3.3": _llama("3.3"),
    "llama4": _llama("4"),
}
"""Licence id on the Hub -> its terms."""


def license_name(card: BaseCard) -> str | None:
    """Return the licence by its most telling name: `license_name` where `license` only says `other`."""
    return card.license_name if card.license in (None, "other") and card.license_name else card.license


def attribution_line(card: BaseCard) -> str | None:
    """Return the line that the base's licence asks for, or None."""
    terms = _terms(card)
    return terms.attribution if terms else None


def notice_text(card: BaseCard) -> str | None:
    """Return the one line that the base's licence wants in a NOTICE file, or None."""
    terms = _terms(card)
    return terms.notice if terms else None


def check_name(name: str, *, card: BaseCard) -> None:
    """Refuse a name that the base's licence does not allow; upper and lower case count as the same.

    Args:
        name: of the result, without its namespace.
        card: the base's.

    Raises:
        RecipeError: with a name that is allowed.
    """
    terms = _terms(card)
    if terms and not _begins(name, terms.prefix):
        bare = name.removeprefix("Meta-")
        allowed = bare if _begins(bare, terms.prefix) else f"{terms.prefix}-{name}"
        raise RecipeError(
            f"Under the licence {license_name(card)}, {name!r} has to begin with {terms.prefix!r}.",
            hint=f"Pass --repo-id {allowed}, for example.",
        )


def _begins(name: str, prefix: str) -> bool:
    return name.lower().startswith(prefix.lower())


def _terms(card: BaseCard) -> _Terms | None:
    return TERMS.get((license_name(card) or "").lower())
