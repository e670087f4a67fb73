"""Remember on this machine that a publish was sent and not yet loaded back, in case that it is killed in between."""

from __future__ import annotations

from pathlib import Path

from hubprune.core.files import write_atomically
from hubprune.core.stages import key_of
from hubprune.hub.target import Target

__all__ = ["Unfinished"]


class Unfinished:
    """A mark in the work folder, from the moment before a commit until its result was loaded back."""

    def __init__(self, work_folder: Path, target: Target, *, endpoint: str) -> None:
        self._path = work_folder / "unfinished" / key_of(endpoint, target.repo_id, target.revision, target.create_pr)

    def begin(self) -> None:
        """Set the mark."""
        write_atomically(self._path, "")

    def end(self) -> None:
        """Take it away."""
        self._path.unlink(missing_ok=True)

    def __bool__(self) -> bool:
        """Tell whether an earlier run did not come to its end."""
        return self._path.exists()
