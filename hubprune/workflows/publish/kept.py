"""Checkpoints that are kept in the work folder, so that another run of the same recipe need not write them again."""

from __future__ import annotations

import glob
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from hubprune.core.artifacts import DropPlan, PrunedCheckpoint
from hubprune.core.errors import RecipeError
from hubprune.core.files import short_name
from hubprune.core.stages import key_of
from hubprune.workflows.run import Run, write_verified


@contextmanager
def kept_checkpoint(run: Run, plan: DropPlan) -> Iterator[tuple[Path, PrunedCheckpoint]]:
    """Yield the checkpoint of a plan in the work folder: that of an earlier run where all its files are there.

    While the block runs, no other run can use the folder.

    Raises:
        RecipeError: another run uses it.
    """
    key = key_of(run.circumstances, plan.content, plan.widths, plan.layout)
    folder = run.store.folder / "checkpoints" / f"{short_name(run.recipe.default_name)}-{key}"
    folder.parent.mkdir(exist_ok=True)
    with _alone(folder):
        made = _written_before(run, plan, folder, key)
        _remove_all_but(folder, {f.path for f in made.written.files})
        yield folder, made


def has_checkpoint(run: Run) -> bool:
    """Tell whether an earlier run left a checkpoint of as many drops, so that little new room is needed on the disk."""
    name = glob.escape(short_name(run.recipe.default_name))
    return any((run.store.folder / "checkpoints").glob(f"{name}-*"))


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise RecipeError(
            "Another run is working on the same base and drops.", hint="Wait for it, or set another HUBPRUNE_HOME."
        ) from None
    try:
        yield
    finally:
        lock.release()


def _written_before(run: Run, plan: DropPlan, folder: Path, key: str) -> PrunedCheckpoint:
    def write() -> PrunedCheckpoint:
        shutil.rmtree(folder, ignore_errors=True)
        return write_verified(run, plan, folder)

    def complete(kept: PrunedCheckpoint) -> bool:
        return all(_same_size(folder / f.path, f.size) for f in kept.written.files)

    return run.store.run("checkpoint", key, PrunedCheckpoint, write, valid=complete)


def _same_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _remove_all_but(folder: Path, paths: set[str]) -> None:
    """Remove what an earlier run added to a checkpoint: its card, its manifest, its tasks."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_file() and path.relative_to(folder).as_posix() not in paths:
            path.unlink()
        elif path.is_dir() and not any(path.iterdir()):
            path.rmdir()
