"""hubprune: prune a language model from the Hugging Face Hub, measure what it cost, publish the result."""

from __future__ import annotations

__version__ = "0.1.0"
