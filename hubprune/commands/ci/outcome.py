"""How a publish ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from hubprune.core.errors import EditedError, HubpruneError, OverBudgetError

if TYPE_CHECKING:
    from hubprune.core.artifacts import PublishReport

__all__ = ["Ending", "Outcome"]

Ending = Literal["published", "up to date", "dry run", "ran elsewhere", "over budget", "edited", "failed"]
OF_ERRORS: Mapping[type[HubpruneError], Ending] = {OverBudgetError: "over budget", EditedError: "edited"}
"""Errors that are an outcome of their own: nothing is broken, and somebody has to decide."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a publish came to."""

    report: PublishReport | None
    """The last that was known of it; None where it ended before there was any result."""
    error: BaseException | None
    """What ended it early."""
    warnings: tuple[str, ...] = ()

    @property
    def ending(self) -> Ending:
        """The outcome in two words."""
        if self.error is not None:
            return next((ending for kind, ending in OF_ERRORS.items() if isinstance(self.error, kind)), "failed")
        if self.report is None:
            return "ran elsewhere"
        if self.report.published is None:
            return "dry run"
        # A pull request that is there already is what was asked for, and nothing that the branch has.
        is_there = not (self.report.published.created or self.report.published.pull_request_url)
        return "up to date" if is_there else "published"

    @property
    def problem(self) -> tuple[str, str | None] | None:
        """What went wrong and what to do about it; None where nothing did."""
        if self.error is None:
            return None
        if isinstance(self.error, HubpruneError):
            return self.error.message, self.error.hint
        if isinstance(self.error, KeyboardInterrupt):
            return "It was interrupted.", "Run it again: it goes on after the last finished stage."
        return f"It broke off with {type(self.error).__name__}; the log has the traceback.", None
