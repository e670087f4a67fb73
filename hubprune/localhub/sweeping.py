"""What a server that was killed leaves lying about, and the next one clears away before it starts."""

import shutil
from collections.abc import Iterator
from pathlib import Path

_UNFINISHED = (".incoming-*", "lfs/.incoming-*", "xet/*/.incoming-*", "repos/.new-*", "repos/.old-*")
"""Files that were being written, repositories on their way in or out."""
_UNFINISHED_IN_A_REPO = ("incoming-*", ".incoming-*")
_LOCKS = ("*.lock", "refs/**/*.lock")
"""Files with which git keeps others from a reference while it moves: nobody is left to take them away."""


def sweep(directory: Path) -> None:
    """Remove what is half-done below a hub's directory; no server may be running there.

    Nothing that was ever visible is touched: every file and repository takes its name in one step, at its end.
    """
    for path in _leftovers(directory):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _leftovers(directory: Path) -> Iterator[Path]:
    for pattern in _UNFINISHED:
        yield from directory.glob(pattern)
    for repo in directory.glob("repos/*/*/*.git"):
        for pattern in (*_UNFINISHED_IN_A_REPO, *_LOCKS):
            yield from repo.glob(pattern)
