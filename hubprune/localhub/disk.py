"""Write files so that a reader sees the old content or the new, never half of one."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a new file for writing that takes the place of `path` when the block ends without an error.

    The file can be read by its owner only (mode 0600).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".incoming-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink()
        raise


def write_bytes(path: Path, content: bytes) -> None:
    """Give `path` this content at once."""
    with replacing(path) as file:
        file.write(content)
