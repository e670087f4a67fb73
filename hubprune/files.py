"""Write folders and files so that they exist completely or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hubprune.errors import DiskSpaceError, RecipeError

PARTIAL = ".partial-"


@contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `target` that becomes `target` when the block ends well.

    Whatever ends the block early, the temporary folder goes; one that a killed process left is swept up next time.

    Raises:
        RecipeError: `target` exists and is no empty folder, or its parent cannot be written.
        DiskSpaceError: the disk filled up.
    """
    check_new_folder(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target)
        staged = Path(tempfile.mkdtemp(prefix=f".{target.name}{PARTIAL}{os.getpid()}-", dir=target.parent))
    except OSError as error:
        raise RecipeError(f"Cannot write to {target.parent}: {error.strerror}.") from error
    try:
        yield staged
        staged.chmod(0o777 & ~_umask())  # mkdtemp makes it private; a published folder is an ordinary one
        staged.replace(target)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskSpaceError(f"The disk is full: {target} was not written.") from error
        raise
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def check_new_folder(target: Path) -> None:
    """Raise RecipeError unless `target` is free: absent, or an empty folder."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise RecipeError(f"{target} exists already.", hint="Choose another --out, or remove it.")


def _sweep(target: Path) -> None:
    for left in target.parent.glob(f".{target.name}{PARTIAL}*"):
        pid = left.name.rsplit(PARTIAL, 1)[1].split("-")[0]
        if pid.isdigit() and not _alive(int(pid)):
            shutil.rmtree(left, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_atomically(path: Path, text: str) -> None:
    """Write a text file under a temporary name and rename it, so that readers see the old or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        staged.write_text(text, encoding="utf-8")
        staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)
