"""Join documents and cut them into sequences of one length."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence


def pack(documents: Iterable[Sequence[int]], *, length: int) -> Iterator[tuple[int, ...]]:
    """Join the tokens of documents in their order and yield them in pieces of exactly `length` tokens.

    Nothing is left out or added between documents, and a piece may hold the end of one and the start of the next.
    Documents are taken only as pieces are asked for; what is left at the very end is too short and left out.

    Raises:
        ValueError: a length below 1.
    """
    if length < 1:
        raise ValueError(f"a sequence has at least one token, not {length}")
    waiting: list[int] = []
    for ids in documents:
        waiting += ids
        whole = len(waiting) - len(waiting) % length
        for start in range(0, whole, length):
            yield tuple(waiting[start : start + length])
        del waiting[:whole]


def end_of_document(ids: Sequence[int], *, eos: int | None) -> tuple[int, ...]:
    """Return a document's tokens with the end-of-text token behind them, where there is one and it is not there yet."""
    return tuple(ids) if eos is None or (ids and ids[-1] == eos) else (*ids, eos)
