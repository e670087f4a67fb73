"""Artifact of the machine and its software."""

from __future__ import annotations

from hubprune.core.artifacts.artifact import Artifact


class Environment(Artifact):
    """Where a run took place."""

    hubprune: str
    python: str
    platform: str
    machine: str
    """Processor or GPU by name."""
    threads: int
    versions: dict[str, str]
    """Library -> version."""
