"""Where the hidden states of a base and its variants are: those on their way, and those that a later run begins with.

All of them are there at once where the memory budget allows it.  Otherwise documents are taken in chunks, each with a
walk of its own over the layers; and where not even one batch fits, its states are in a mapped file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from hubprune.core.memory import available_bytes, device_bytes
from hubprune.core.streaming import STATES_SHARE, StreamedModel, empty_states


class Rooms:
    """The hidden states of a base and its variants: those on their way, and those that a later run begins with."""

    def __init__(
        self, model: StreamedModel, ids: Sequence[torch.Tensor], layers: Sequence[int], *, in_rounds: bool
    ) -> None:
        """Plan; nothing is taken before it is entered.

        Args:
            model: runs them.
            ids: token ids per batch, [documents, tokens].
            layers: of each variant, the layer that it changes; the first of them is in slot 1, behind the base.
            in_rounds: whether states are to be kept for later runs, as many as there is room for.
        """
        self._model, self._ids, self._layers, self.variants = model, ids, layers, len(layers)
        tokens, slots = [batch.numel() for batch in ids], 1 + len(layers)
        free = int(STATES_SHARE * max(available_bytes(), device_bytes(str(model.device))))
        room = free // (model.hidden_size * model.dtype.itemsize)  # tokens
        self.chunks: list[list[int]] = [[]]
        """Batches that are taken together."""
        for place, size in enumerate(tokens):
            if self.chunks[-1] and slots * (size + sum(tokens[other] for other in self.chunks[-1])) > room:
                self.chunks.append([])
            self.chunks[-1].append(place)
        self.levels: tuple[int, ...] = ()
        """Layers at which states are kept, beside the first."""
        if in_rounds and len(self.chunks) == 1:
            left = room // max(1, sum(tokens)) - slots - 1  # one for what leaves the last layer of the whole base
            fitting = (levels for levels in _spread(len(model)) if sum(map(self._below, levels)) <= left)
            self.levels = next(fitting, ())
        self.now: dict[int, torch.Tensor] = {}
        """Batch -> what enters the next layer, [slots, documents, tokens, hidden_size]; of the chunk at hand."""
        self._kept: dict[int, dict[int, torch.Tensor]] = {}
        self._warm = False

    def _below(self, level: int) -> int:
        """Count the states that enter a layer, the base's among them."""
        return 1 + sum(layer < level for layer in self._layers)

    def first(self, start: int) -> int:
        """Return the layer that a run really begins at, where it has to begin at `start` or below."""
        return max((level for level in self.levels if level <= start), default=0) if self._warm else 0

    def enter(self, chunk: Sequence[int], begun: int) -> None:
        """Set up the states that enter the layer which a run begins at: 0, or one where they were kept.

        Raises:
            DiskSpaceError: they fit neither into memory nor into the temporary folder.
        """
        if set(self.now) != set(chunk):
            self.now.clear()
            heights = {0: 1 + len(self._layers), **{level: self._below(level) for level in self.levels}}
            size = self._model.hidden_size
            shapes = [(count, *self._ids[place].shape, size) for count in heights.values() for place in chunk]
            made = iter(empty_states(shapes, self._model.dtype, self._model.device))
            found = {level: {place: next(made) for place in chunk} for level in heights}
            self.now, self._kept = found.pop(0), found
        if begun:
            for place, states in self._kept[begun].items():
                self.now[place][: len(states)] = states
        else:
            (embedded,) = self._model.embed([self._ids[place] for place in chunk])
            for place, states in zip(chunk, embedded, strict=True):
                self.now[place][0] = states
        self._warm = len(self.chunks) == 1

    def keep(self, level: int) -> None:
        """Keep what enters a layer, where it is one of those that later runs may begin at."""
        for place, states in self._kept.get(level, {}).items():
            states.copy_(self.now[place][: len(states)])


def _spread(layers: int) -> Iterator[tuple[int, ...]]:
    """Yield layers to keep states at, evenly spread, from all of them down to none."""
    for count in range(layers - 1, -1, -1):
        yield tuple(round((number + 1) * layers / (count + 1)) for number in range(count))
