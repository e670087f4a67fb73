"""What a base's licence asks of a model that is built from it."""

from __future__ import annotations

from collections.abc import Mapping

from hubprune.artifacts import BaseCard

__all__ = ["attribution_line", "license_name"]

ATTRIBUTION: Mapping[str, str] = {
    "llama3": "Built with Meta Llama 3",
    "llama3.1": "Built with Llama",
    "llama3.2": "Built with Llama",
    "llama3.3": "Built with Llama",
    "llama4": "Built with Llama",
}
"""Licence id on the Hub -> the line that the licence wants to see prominently."""


def license_name(card: BaseCard) -> str | None:
    """Return the licence by its most telling name: `license_name` where `license` only says `other`."""
    return card.license_name if card.license in (None, "other") and card.license_name else card.license


def attribution_line(card: BaseCard) -> str | None:
    """Return the line that the base's licence asks for, or None."""
    return ATTRIBUTION.get((license_name(card) or "").lower())
