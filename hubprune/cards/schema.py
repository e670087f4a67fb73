"""The JSON schema of what a card template sees, for those who write templates of their own."""

from __future__ import annotations

import json

from hubprune.cards.context import CardContext

__all__ = ["SCHEMA", "context_schema"]

SCHEMA = "context.schema.json"
"""File among the card templates that holds the schema."""


def context_schema() -> str:
    """Write the JSON schema of the context, with what every field holds, as it is kept beside the templates."""
    from pydantic import TypeAdapter

    schema = TypeAdapter(CardContext).json_schema(mode="serialization")
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
