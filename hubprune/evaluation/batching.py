"""Run a model over rows in batches that fit into memory, however little of it there is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from hubprune.evaluation.models import is_memory_error, release_memory

__all__ = ["Batches", "run_batches", "similar_length"]

Result = TypeVar("Result")
Batch = tuple[int, ...]
"""Indices of rows that are run together."""
Batches = tuple[Batch, ...]


def similar_length(lengths: Sequence[int], *, tokens: int | None = None, rows: int | None = None) -> Batches:
    """Put rows of similar length together, so that little of a batch is padding; the longest come first.

    A batch has one row, or as many as take at most `tokens` tokens once all are padded to the longest of them, and
    `rows` at most.
    Where memory is too small, the longest rows tell at once.
    """
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        members = len(batches[-1]) if batches else 0
        if members and members != rows and (tokens is None or (members + 1) * lengths[batches[-1][0]] <= tokens):
            batches[-1].append(i)
        else:
            batches.append([i])
    return tuple(map(tuple, batches))


def run_batches(
    batches: Batches, work: Callable[[Batch], Sequence[Result]], *, on_split: Callable[[int], None]
) -> tuple[list[Result], Batches]:
    """Run all batches, with fewer rows at a time from where memory ran out on.

    Args:
        batches: every row from 0 on in exactly one of them.
        work: returns one result per row of a batch.
        on_split: told the number of rows that a batch has from now on at most.

    Returns:
        The results in the order of the rows, and the batches that they come from.

    Raises:
        RuntimeError: whatever `work` raises; that memory ran out only where it did for a single row.
    """
    waiting, done = list(batches), []
    results: dict[int, Result] = {}
    while waiting:
        found = _attempt(work, waiting[0])
        if found is None:
            rows = (len(waiting[0]) + 1) // 2
            waiting = list(_split(waiting, rows=rows))
            on_split(rows)
            continue
        results.update(zip(waiting[0], found, strict=True))
        done.append(waiting.pop(0))
    return [results[i] for i in range(len(results))], tuple(done)


def _attempt(work: Callable[[Batch], Sequence[Result]], batch: Batch) -> Sequence[Result] | None:
    """Run a batch; None where memory ran out, and what it held is free again."""
    try:
        return work(batch)
    except RuntimeError as error:
        if len(batch) == 1 or not is_memory_error(error):
            raise
    # Here the error is gone, and with its traceback the tensors of the frames that it came through.
    release_memory()
    return None


def _split(batches: Iterable[Batch], *, rows: int) -> Iterable[Batch]:
    for batch in batches:
        yield from (batch[start : start + rows] for start in range(0, len(batch), rows))
