"""Which documents are trained on: as batches, and none that shares a passage with a benchmark.

A passage is 13 words in a row, lower case and without punctuation, as in the check of Brown et al. 2020 (arXiv
2005.14165, appendix C).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

WORDS = 13
"""In a row."""
WORD = re.compile(r"\w+")


def passages(text: str) -> Iterator[str]:
    """Yield every run of so many words of a text; a shorter text is none."""
    words = WORD.findall(text.lower())
    for start in range(len(words) - WORDS + 1):
        yield " ".join(words[start : start + WORDS])


@dataclass(frozen=True)
class Seen:
    """The passages of benchmarks."""

    hashes: frozenset[int]

    @classmethod
    def of(cls, texts: Iterable[str]) -> Seen:
        """Collect the passages of all texts."""
        return cls(frozenset(hash(passage) for text in texts for passage in passages(text)))

    def holds(self, text: str) -> bool:
        """Tell whether a text shares a passage with them."""
        return any(hash(passage) in self.hashes for passage in passages(text))


def batches_of(documents: Sequence[Sequence[int]], *, size: int) -> list[list[Sequence[int]]]:
    """Group documents of similar length, so many at a time, the longest first."""
    order = sorted(documents, key=lambda ids: -len(ids))
    return [order[start : start + size] for start in range(0, len(order), size)]
