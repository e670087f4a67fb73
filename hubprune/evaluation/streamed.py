"""Log-likelihoods of models that are never in memory: many requests go through one layer after the other.

The hidden states of a chunk of requests are in memory, as many as there is room for.  Each layer is read once for all
of them and for all variants that have it, then the head in blocks of rows, on the tokens that predict something.  So
the weights are read once for a chunk, where a model that is spread over memory and disk reads them for every batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from hubprune.core.console import Advance, size
from hubprune.core.devices import local_world_size
from hubprune.core.memory import available_bytes, device_bytes
from hubprune.core.streaming import Load, OtherBytesError, Stored, empty, read_ahead, read_rows
from hubprune.evaluation import models
from hubprune.evaluation.batch import Batch, Part, collate, piece_size
from hubprune.evaluation.computing import CPU_SLOTS, GPU_SLOTS, Models, Share
from hubprune.evaluation.layer_tree import Passage, Tally, Trunk, Variant, head_alone
from hubprune.evaluation.panel import Names, Prompt, Scored, not_told, tokens_of
from hubprune.evaluation.requests import Answer, Request, Row, batches, make_rows, slots
from hubprune.evaluation.skeletons import Move, Program, Slot, Twins, fill, program, skeleton
from hubprune.evaluation.skeletons import slots as parameters_of

if TYPE_CHECKING:
    from hubprune.evaluation.pair import ModelFolder

RESERVE = 96 * 2**20
"""Bytes of memory that are left alone."""
WORK = 6
"""Times hidden and MLP width together that a token of a batch takes while a layer runs."""
CHUNK_WORK = 3e14
"""Multiplications after which what a CPU answered is kept: some half an hour of a few cores."""
GPU_CHUNK = 2**20
"""Tokens after which it is kept elsewhere, and reading hides behind computing."""
SINGLE_BUFFER = 0.25
"""Share of the free memory from which on layers are read in turns with computing, into one buffer."""
HEAD_BYTES = 2**25
"""Bytes of the head that are read at a time."""
TOKENS_AT_ONCE = 4096
"""Rows of the embedding that are read at a time, and states that they are written to."""


def chunk_tokens(
    *, each: int, layer: int, cast: int, parameters: int, slots: int, work: int, free: int, device_free: int | None
) -> int:
    """Return how many tokens a chunk has at most, padding included.

    Args:
        each: bytes that a token's states take.
        layer: bytes of the largest layer; `cast` those of its copy in another dtype.
        parameters: of the model.
        slots: tokens of a batch, which takes `work` bytes while a layer runs.
        free: bytes of the machine's memory; `device_free` those of a GPU, None where the CPU computes.
    """
    free -= RESERVE
    room = free - _buffers(layer, free) * layer
    most = max(slots, int(CHUNK_WORK / parameters))
    if device_free is None:
        room -= work + cast
    else:
        most, room = GPU_CHUNK, max(room, device_free - 2 * layer - work)
    return int(max(1, min(most, room // each)))


def _buffers(layer: int, free: int) -> int:
    return 1 if 2 * layer > SINGLE_BUFFER * free else 2


class Stream:
    """Scores requests for variants of skeletons, chunk by chunk."""

    def __init__(self, variants: Sequence[Variant], twins: Twins, *, device: str, most_rows: int | None = None) -> None:
        self.variants, self._twins, self._device = tuple(variants), twins, torch.device(device)
        self._most_rows, self._fits = most_rows, 2**62
        self._dtype: torch.dtype = variants[0].model.dtype
        self._trunks = [Trunk(variant) for variant in variants]

    @cached_property
    def _program(self) -> Program:
        return program(self.variants, self._twins)

    # ---- chunks ----------------------------------------------------------------------------------------------------

    def plan(self, requests: Sequence[Request]) -> list[list[Row]]:
        """Divide requests into chunks, as many at a time as memory holds the states of."""
        room, chunks, used = self.chunk_tokens, list[list[Row]](), 0
        for batch in self._batches(make_rows(requests, most=room)):
            if not chunks or used + slots(batch) > room:
                chunks.append([])
                used = 0
            chunks[-1] += batch
            used += slots(batch)
        return chunks

    def _batches(self, rows: Sequence[Row]) -> Iterator[list[Row]]:
        return batches(rows, most_slots=self._most_slots, most_rows=self._most_rows)

    @cached_property
    def _most_slots(self) -> int:
        wanted = CPU_SLOTS if self._device.type == "cpu" else GPU_SLOTS
        return max(1, min(wanted, device_bytes(str(self._device)) // (4 * self._work_bytes)))

    @cached_property
    def _work_bytes(self) -> int:
        config = self.variants[0].decoder.config
        return WORK * int(config.hidden_size + config.intermediate_size) * int(self._dtype.itemsize)

    @cached_property
    def _largest(self) -> int:
        return max(load.size for load in self._layer_loads())

    @property
    def weight_bytes(self) -> int:
        """What is read for a chunk."""
        return sum(load.size for load in (*self._layer_loads(), *self._head_loads()))

    @cached_property
    def chunk_tokens(self) -> int:
        """How many tokens a chunk has, padding included; it stays so, since the first one is known beforehand."""
        on_cpu = self._device.type == "cpu"
        return chunk_tokens(
            each=self._program.room_count * self._width * self._dtype.itemsize, layer=self._largest,
            # Weights of another dtype are cast, a layer at a time.
            cast=self._largest * self._dtype.itemsize if self._casts else 0,
            parameters=self.weight_bytes // self._dtype.itemsize, slots=self._most_slots,
            work=self._most_slots * self._work_bytes, free=available_bytes() // local_world_size(),
            device_free=None if on_cpu else device_bytes(str(self._device)),
        )  # fmt: skip

    def _piece(self, rows: Sequence[Row]) -> int:
        config, on_cpu = self.variants[0].decoder.config, self._device.type == "cpu"
        free = available_bytes() // local_world_size() if on_cpu else self._device_room()
        return piece_size(config, rows, itemsize=self._dtype.itemsize, on_cpu=on_cpu, free=free)

    @property
    def _casts(self) -> bool:
        return any(stored.dtype != self._dtype for step in self._program.steps for *_, stored in step.places)

    def _device_room(self) -> int:
        return device_bytes(str(self._device)) - 2 * self._largest - self._most_slots * self._work_bytes

    @cached_property
    def _width(self) -> int:
        return self._embedding(0).shape[1]

    def _embedding(self, number: int) -> Stored:
        return next(stored for *_, stored in parameters_of(self.variants[number].decoder.embed_tokens))

    # ---- one chunk -------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def answer(
        self, rows: Sequence[Row], requests: Sequence[Request], advance: Callable[[float], None] = lambda share: None
    ) -> Scored:
        """Return the answers of all variants to a chunk of the plan; `advance` is told shares of the work.

        Raises:
            EvaluationError: a single row does not fit into memory, or a log-likelihood is not finite.
        """
        while True:
            try:
                with models.memory_errors("over a single row", hint="Pass --dtype bfloat16, or --device cpu."):
                    return self._answer(rows, advance)
            except OtherBytesError as error:
                self._twins.forget(error.stored)
                for name in ("_program", "_largest"):
                    vars(self).pop(name, None)

    def _answer(self, rows: Sequence[Row], advance: Callable[[float], None]) -> Scored:
        parts, start = [], 0
        for batch in self._batches(rows):
            parts.append(Part(collate(batch, self._device, piece=self._piece(batch)), start))
            start += slots(batch)
        steps, loads, heads = self._program.steps, self._layer_loads(), self._head_loads()
        work = [len(step.moves) * load.size for step, load in zip(steps, loads, strict=True)]
        whole = sum(work) + len(self.variants) * sum(load.size for load in heads)
        rooms = self._embed(parts, start)
        buffers = _buffers(self._largest, available_bytes())
        with closing(read_ahead(loads, buffers=buffers)) as reading:
            for step, load, cost, tensors in zip(steps, loads, work, reading, strict=True):
                self._fill(step.places, load, tensors)
                del tensors
                for part in parts:
                    for move in step.moves:
                        self._move(move, part, rooms)
                    advance(cost / whole * part.batch.ids.numel() / start)
                for move in step.moves:
                    for layer in move.layers:
                        empty(self.variants[move.variant].layers[layer])
                models.give_back()
                self._twins.proved |= {twin for _, twin in load.twins}
        del reading
        return self._read_out(parts, rooms, heads, lambda share: advance(share * (1 - sum(work) / whole)))

    def _layer_loads(self) -> list[Load]:
        return [self._twins.load([stored for *_, stored in step.places]) for step in self._program.steps]

    def _fill(self, places: Sequence[Slot], load: Load, tensors: Sequence[torch.Tensor]) -> None:
        ready = {s: t.to(self._device, self._dtype) for s, t in zip(load.tensors, tensors, strict=True)}
        fill(places, {stored: ready[self._twins.read_for(stored)] for *_, stored in places})

    def _embed(self, parts: Sequence[Part], total: int) -> list[torch.Tensor]:
        """Make room for the states of a chunk and look its tokens up; only the rows that it has are read."""
        needed = total * self._width * self._dtype.itemsize * self._program.room_count
        there = self._device.type == "cpu" or needed <= self._device_room()
        place = self._device if there else torch.device("cpu")
        used, tokens = torch.cat([part.batch.ids.flatten().cpu() for part in parts]).unique(return_inverse=True)
        # On a CPU, memory is only taken where something is written.
        shape, count = (total, self._width), self._program.room_count
        rooms = [torch.empty(shape, dtype=self._dtype, device=place) for _ in range(count)]
        for room, group in zip(rooms, self._program.beginnings, strict=False):
            for start in range(0, len(used), TOKENS_AT_ONCE):
                ids = used[start : start + TOKENS_AT_ONCE].tolist()
                rows = self._rows(group, ids).to(self._device, self._dtype)
                table = self._trunks[group[0]].embed(rows).to(place)
                found = ((tokens >= start) & (tokens < start + TOKENS_AT_ONCE)).nonzero()[:, 0]
                for some in found.split(TOKENS_AT_ONCE):
                    room[some] = table[tokens[some] - start]
        return rooms

    def _rows(self, group: Sequence[int], ids: Sequence[int]) -> torch.Tensor:
        """Read rows of the embedding of some variants, and compare those of its twins."""
        own = dict.fromkeys(self._embedding(number) for number in group)
        rows = read_rows(self._twins.read_for(next(iter(own))), ids)
        for stored in own:
            unproved = stored in self._twins.base_of and stored not in self._twins.proved
            if unproved and not torch.equal(read_rows(stored, ids).view(torch.uint8), rows.view(torch.uint8)):
                raise OtherBytesError(stored)
        return rows

    def _move(self, move: Move, part: Part, rooms: Sequence[torch.Tensor]) -> None:
        states = part.of(rooms[move.source]).to(self._device)
        part.of(rooms[move.target]).copy_(self._run(move, part.batch, states))

    def _run(self, move: Move, batch: Batch, states: torch.Tensor) -> torch.Tensor:
        """Run layers on the states of a batch, divided where it does not fit into memory."""
        if not move.layers:
            return states
        if batch.ids.numel() <= self._fits or len(batch.ids) == 1:
            try:
                passage = Passage(self._trunks[move.variant], batch, states)
                for layer in move.layers:
                    states = passage.run(self.variants[move.variant].layers[layer], layer, states)
                return states
            except RuntimeError as error:
                if not models.is_memory_error(error) or len(batch.ids) == 1:
                    raise
            models.release_memory()
            self._fits = batch.ids.numel() // 2
        middle = len(batch.ids) // 2
        halves = (slice(None, middle), slice(middle, None))
        return torch.cat([self._run(move, batch.some(half), states[half]) for half in halves])

    # ---- the head --------------------------------------------------------------------------------------------------

    @cached_property
    def _heads(self) -> list[list[Slot]]:
        return [list(parameters_of(variant.model.get_output_embeddings())) for variant in self.variants]

    def _blocks(self) -> list[tuple[int, int]]:
        stored = [stored for head in self._heads for *_, stored in head]
        rows, each = max(s.shape[0] for s in stored), max(s.size // s.shape[0] for s in stored)
        step = max(1, HEAD_BYTES // each)
        return [(start, min(start + step, rows)) for start in range(0, rows, step)]

    def _whole_head(self) -> Load:
        return self._twins.load([stored for head in self._heads for *_, stored in head])

    def _head_loads(self) -> list[Load]:
        whole = self._whole_head()
        return [
            Load(
                tuple(stored.rows(*block) for stored in whole.tensors),
                tuple((number, twin.rows(*block)) for number, twin in whole.twins),
            )
            for block in self._blocks()
        ]

    def _read_out(
        self, parts: Sequence[Part], rooms: Sequence[torch.Tensor], loads: Sequence[Load],
        advance: Callable[[float], None],
    ) -> Scored:  # fmt: skip
        """Say how likely the targets are by the states that predict them, which gather at the beginning of a room."""
        places, count = list[torch.Tensor](), 0
        for part in parts:
            found, inverse = part.batch.selected.unique(return_inverse=True)
            for room in rooms:
                room[count : count + len(found)] = room[part.start + found.to(room.device)]
            places.append(inverse + count)
            count += len(found)
        asked = torch.cat(places), torch.cat([part.batch.targets for part in parts])
        tallies = [Tally(rooms[self._program.rooms[number]][:count], *asked) for number in range(len(self.variants))]
        norms = [place for variant in self.variants for place in parameters_of(variant.decoder.norm)]
        behind = self._twins.load([stored for *_, stored in norms])
        self._fill(norms, behind, next(read_ahead([behind], buffers=1)))
        with closing(read_ahead(loads)) as reading:
            for block, load, tensors in zip(self._blocks(), loads, reading, strict=True):
                ready = [tensor.to(self._device, self._dtype) for tensor in tensors]
                for variant, head, tally in zip(self.variants, self._heads, tallies, strict=True):
                    rows = {self._twins.read_for(s).rows(*block): s for *_, s in head}
                    fill(head, {rows[s]: tensor for s, tensor in zip(load.tensors, ready, strict=True) if s in rows})
                    with head_alone(variant) as logits_of:
                        tally.read(block, logits_of)
                advance(1 / len(loads))
        for variant in self.variants:
            empty(variant.decoder.norm)
            empty(variant.model.get_output_embeddings())
        self._twins.proved |= {twin for _, twin in (*behind.twins, *self._whole_head().twins)}
        owners = [owner for part in parts for owner in part.batch.owners]
        return {v.name: tally.answers(owners, v.name) for v, tally in zip(self.variants, tallies, strict=True)}


# ---- the models ------------------------------------------------------------------------------------------------------


class StreamedModels(Models):
    """Variants that read their layers from files; what lm-eval's own backend is asked for goes through transformers.

    One model at a time is loaded for that, spread over memory and disk by accelerate.
    """

    def __init__(self, folders: Mapping[str, ModelFolder], *, device: str, dtype: str, batch_size: int | None) -> None:
        self._folders, self._device, self._dtype = folders, models.own_device(device), dtype
        self._twins, self._spread, self._streams = Twins(), dict[str, Models](), dict[Names, Stream]()
        made = {
            name: skeleton(folder.path, own_code=folder.own_code, dtype=dtype, device=self._device)
            for name, folder in folders.items()
        }
        base, *others = made.values()
        for other in others:
            self._twins.find(base, other)
        tokenizer = models.tokenizer_of(base, next(iter(folders.values())).path)
        super().__init__([Variant.of(name, m) for name, m in made.items()], tokenizer, batch_size=batch_size)

    def scorer(self, names: Names) -> Stream:
        """Return what scores requests for some variants."""
        self._spread.clear()
        models.release_memory()
        if names not in self._streams:
            chosen = [self.variants[name] for name in names]
            self._streams[names] = Stream(chosen, self._twins, device=self._device, most_rows=self._batch_size)
        return self._streams[names]

    def first(self, names: Names, requests: Sequence[Request]) -> Sequence[Request]:
        """Return the requests of the first chunk."""
        rows = self.scorer(names).plan(requests)[0]
        return [requests[member.request] for row in rows for member in row.members]

    def score(self, names: Names, requests: Sequence[Request], advance: Advance = not_told) -> Iterator[Scored]:
        """Yield the answers of some variants to all requests, chunk by chunk; `advance` is told tokens on the way."""
        stream = self.scorer(names)
        for rows in stream.plan(requests):
            tokens = len(names) * tokens_of(requests[m.request] for row in rows for m in row.members)
            share = Share(tokens, advance)
            found = stream.answer(rows, requests, share)
            share.told_all()
            yield found

    def outlook(self, names: Names, requests: Sequence[Request]) -> str:
        """Say how often the weights will be read."""
        stream = self.scorer(names)
        sizes = [sum(map(len, rows)) for rows in stream.plan(requests)]
        times = "once" if len(sizes) == 1 else f"{len(sizes)} times, for up to {max(sizes):,} tokens each"
        return f"layer by layer from the files: {size(stream.weight_bytes)} are read {times} ({sum(sizes):,} tokens)"

    def plain(self, name: str, requests: Sequence[Request]) -> list[Answer]:
        """Return a variant's answers as lm-eval's own backend computes them, with the model spread over disk, too."""
        return self._loaded(name).plain(name, requests)

    def write(self, name: str, prompts: Sequence[Prompt]) -> list[str]:
        """Return what a variant writes after each prompt, in the same way."""
        return self._loaded(name).write(name, prompts)

    def text_outlook(self, name: str, prompts: Sequence[Prompt]) -> str | None:
        """Say what writing texts will take, where that is worth saying."""
        return self._loaded(name).text_outlook(name, prompts)

    def _loaded(self, name: str) -> Models:
        if name not in self._spread:
            self._spread.clear()
            models.release_memory()
            of = self._folders[name]
            loaded = models.load_model(of.path, device=self._device, dtype=self._dtype, trust_remote_code=of.own_code)
            variant = Variant.of(name, loaded.model)
            self._spread[name] = Models([variant], loaded.tokenizer, batch_size=self._batch_size)
        return self._spread[name]
