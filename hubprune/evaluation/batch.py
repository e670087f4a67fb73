"""Rows as tensors: which token sees which, and long rows in pieces.

A token sees those before it in its own request.  In a row that is a tree, whose branches come one after the other,
these are the tokens before it that end behind it.  So of all that was read, a piece of a long row sees nothing but the
way from the root to its first token: thousands of questions behind the same examples keep those examples, and each
piece the few tokens of its own branch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from hubprune.evaluation.requests import Row

PIECE = 512
"""Tokens of a piece on a CPU; fewer where memory is small."""
GPU_PIECE = 4096
LEAST_PIECE = 16
ROOM = 8
"""A piece may take one part in so many of the free memory."""


@dataclass(frozen=True, eq=False)
class Piece:
    """Tokens of a long row that are read together, and those before them that they see."""

    start: int
    stop: int
    kept: torch.Tensor
    """Places in the row of the tokens before the piece that it sees, [kept]."""
    found: torch.Tensor
    """Where those are among the tokens that the piece before had kept and read, [kept]."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows as tensors."""

    ids: torch.Tensor
    """Token ids, [rows, tokens], padded on the right with zeros."""
    positions: torch.Tensor | None
    """Position ids of the same shape; None where all rows are plain."""
    ends: torch.Tensor | None
    """Places up to which each token is seen; padding is seen by itself alone; None where all rows are plain."""
    selected: torch.Tensor
    """Where the hidden states are that predict something, in the flattened batch, [targets]."""
    targets: torch.Tensor
    """Token ids that they should predict, [targets]."""
    owners: tuple[int, ...]
    """The request that each target is of."""
    pieces: tuple[Piece, ...] = ()
    """How a long row, which is a batch of its own, is read; nothing where all is read at once."""
    whole: tuple[Batch, Piece] | None = None
    """What this is a piece of."""

    def some(self, rows: slice) -> Batch:
        """Return some of its rows, as far as layers look at them."""
        positions, ends = (None if t is None else t[rows] for t in (self.positions, self.ends))
        return replace(self, ids=self.ids[rows], positions=positions, ends=ends)

    def part(self, piece: Piece) -> Batch:
        """Return a piece of a long row, as far as layers look at it."""
        tokens = slice(piece.start, piece.stop)
        positions = None if self.positions is None else self.positions[:, tokens]
        return replace(self, ids=self.ids[:, tokens], positions=positions, pieces=(), whole=(self, piece))

    def mask(self, window: int | None) -> torch.Tensor | None:
        """Return which token sees which, bool of shape [rows, 1, tokens, tokens]; None where causal says it all.

        Of a piece, the last dimension has the tokens that were kept before its own.  With a sliding window, a token
        sees only those at less than `window` positions' distance.  Padding sees itself, since a softmax over nothing
        is NaN.
        """
        batch, piece = self.whole or (self, None)
        if batch.ends is None or batch.positions is None:
            return None
        start, stop = (piece.start, piece.stop) if piece else (0, batch.ids.shape[1])
        queries = torch.arange(start, stop, device=batch.ids.device)
        keys = torch.cat([piece.kept, queries]) if piece else queries
        seen = (keys <= queries[:, None]) & (queries[:, None] < batch.ends[:, None, keys])
        if window is not None:
            seen &= batch.positions[:, queries, None] - batch.positions[:, None, keys] < window
        return seen[:, None]


@dataclass(frozen=True, eq=False)
class Part:
    """A batch of many whose states are in memory one behind the other, and where its own begin."""

    batch: Batch
    start: int

    def of(self, room: torch.Tensor) -> torch.Tensor:
        """Return its states in a room, [rows, tokens, hidden_size]."""
        return room[self.start : self.start + self.batch.ids.numel()].view(*self.batch.ids.shape, -1)


class Kept:
    """Keys and values of one layer, of the tokens that are still to be seen: what a layer takes for its KV cache."""

    def __init__(self) -> None:
        self._states: tuple[torch.Tensor, torch.Tensor] | None = None
        self._found: torch.Tensor | None = None

    def go_on(self, piece: Piece) -> None:
        """Say which piece is read next."""
        self._found = piece.found

    def update(self, keys: torch.Tensor, values: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Put keys and values of a piece, [rows, heads, tokens, size], behind those that it sees, and return both."""
        if self._states is not None and self._found is not None and len(self._found):
            before = (states.index_select(2, self._found) for states in self._states)
            keys, values = (torch.cat(pair, dim=2) for pair in zip(before, (keys, values), strict=True))
        self._states = keys, values
        return keys, values


def collate(rows: Sequence[Row], device: torch.device, *, piece: int = PIECE) -> Batch:
    """Make tensors of rows; a long one is by itself and comes in pieces of so many tokens."""
    width = max(map(len, rows))
    plain = all(row.is_plain for row in rows)
    members = [(number * width, member) for number, row in enumerate(rows) for member in row.members]

    def padded(values: Sequence[Sequence[int]], filler: Sequence[int]) -> torch.Tensor:
        return torch.tensor([[*row, *filler[len(row) :]] for row in values]).to(device)

    zeros = [0] * width
    return Batch(
        ids=padded([row.tokens for row in rows], zeros),
        positions=None if plain else padded([row.positions for row in rows], zeros),
        ends=None if plain else padded([row.ends for row in rows], range(1, width + 1)),
        selected=torch.tensor([start + place for start, m in members for place in m.places]).to(device),
        targets=torch.tensor([target for _, m in members for target in m.targets]).to(device),
        owners=tuple(m.request for _, m in members for _ in m.targets),
        pieces=tuple(_pieces(rows[0], device, piece)) if len(rows) == 1 and rows[0].is_long else (),
    )


def _pieces(row: Row, device: torch.device, size: int) -> Iterator[Piece]:
    ends = torch.tensor(row.ends)
    there = torch.empty(0, dtype=torch.int64)  # places of the tokens that the piece before had, in their order
    for start in range(0, len(row), size):
        stop = min(start + size, len(row))
        found = (ends[there] > start).nonzero()[:, 0]
        yield Piece(start, stop, there[found].to(device), found.to(device))
        there = torch.cat([there[found], torch.arange(start, stop)])


def piece_size(config: Any, rows: Sequence[Row], *, itemsize: int, on_cpu: bool, free: int) -> int:
    """Return how many tokens of long rows are read together, so that masks and scores fit into a part of what is free.

    Args:
        config: of the decoder.
        rows: what is read.
        itemsize: bytes of a number of the states.
        on_cpu: whether a CPU computes.
        free: bytes of the memory that is computed in.
    """
    most = PIECE if on_cpu else GPU_PIECE
    keys = most + max((max(row.positions) + 1 for row in rows if row.is_long), default=0)
    eager = config._attn_implementation == "eager"
    scores = 3 * config.num_attention_heads * 4 if eager else 2 * itemsize
    each = keys * (4 + scores) + 6 * (config.hidden_size + config.intermediate_size) * itemsize
    return int(max(LEAST_PIECE, min(most, free // (ROOM * each))))
