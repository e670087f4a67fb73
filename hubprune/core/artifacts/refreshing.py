"""Artifacts of `hubprune refresh`: what a newer version writes for a repo that is out, beside what is there."""

from __future__ import annotations

from typing import Any, Literal

from hubprune.core.artifacts.artifact import Artifact

FileOutcome = Literal["added", "changed", "removed", "same"]
RefreshOutcome = Literal["up to date", "would change", "committed", "proposed", "failed"]
"""`would change`: of a check that found something to do; `proposed`: in a pull request."""


class FileChange(Artifact):
    """One file of a repo, as it is and as it would be."""

    path: str
    outcome: FileOutcome
    before: str | None
    """SHA-256; None for one that is not there."""
    after: str | None
    """SHA-256; None for one that goes."""
    size: int = 0
    """Bytes that are sent for it."""


class ConfigChange(Artifact):
    """One key of config.json that is another, with dots where it is inside of another key."""

    key: str
    before: Any = None
    """None where there is none."""
    after: Any = None


class Refreshed(Artifact):
    """One refresh, as hubprune.json keeps it."""

    from_version: str
    """hubprune that wrote the files before."""
    to_version: str
    commit: str
    """Commit that the refresh went on top of."""
    tag: str | None
    """Name of the files as they were; None where they had none."""
    files: tuple[FileChange, ...]
    """Files of the checkpoint that changed; card and manifest follow from them."""
    config: tuple[str, ...] = ()
    """Keys of config.json that changed."""


class RefreshReport(Artifact):
    """What became of one repo."""

    repo_id: str
    outcome: RefreshOutcome
    from_version: str | None = None
    to_version: str | None = None
    parent: str | None = None
    """Commit that was looked at."""
    files: tuple[FileChange, ...] = ()
    """All that were looked at, card and manifest included where something changes."""
    config: tuple[ConfigChange, ...] = ()
    notes: tuple[str, ...] = ()
    """What could not be done, and what readers may meet."""
    commit: str | None = None
    """The new commit; None where there is none."""
    url: str | None = None
    """Of the commit or the pull request."""
    tag: str | None = None
    sent_bytes: int = 0
    """Size of the files of the commit."""
    loaded_back: str | None = None
    """What it wrote when a fresh process had loaded it from the Hub; None where that was left out."""
    seconds: float = 0.0
    error: str | None = None
    hint: str | None = None
    exit_code: int = 0
    """What the command line ends with for a repo that failed."""

    @property
    def changed(self) -> tuple[FileChange, ...]:
        """The files that are not the same."""
        return tuple(file for file in self.files if file.outcome != "same")
