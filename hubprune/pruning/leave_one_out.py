"""What a model loses when one layer changes: the loss of many variants of a base in one walk over its layers.

A variant is the base with a change in a single layer: without its attention, its MLP or both, or with fewer neurons in
its MLP.  Below that layer it computes what the base does, so only what follows is run again.  All variants go up
together: whatever is open so far, the base first, passes one layer after the other, and each layer's weights are read
once for all of them.  For the attentions of n layers that is n / 2 + 3 / 2 passes over the base in all.

    loss = mean over a document's tokens but the first of -log q(token), in nats
    KL   = mean over the same places of sum over the vocabulary of p * (log p - log q), p the base's, q the variant's

The head and both sums are float32, whatever the layers run in, and sums over tokens are float64; logits exist for a few
tokens at a time.  Ranking sublayers by the loss without them is that of SLEB (Song et al. 2024, arXiv 2402.09025) and
of Shortened LLaMA (Kim et al. 2024, arXiv 2402.02834), who take whole layers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hubprune.core.artifacts import SublayerKind, WidthMetric, WidthPlan
from hubprune.core.bypass import layer_without
from hubprune.core.console import Advance, Reporter
from hubprune.core.errors import ScoringError
from hubprune.core.head import Head
from hubprune.core.streaming import StreamedModel
from hubprune.core.weights import open_weights
from hubprune.pruning.calibration import CalibrationSet
from hubprune.pruning.importance import Batch, Passage, Scoring, make_batches, pass_through
from hubprune.pruning.rooms import Rooms
from hubprune.pruning.variants import Losses, Variant, VariantKind
from hubprune.pruning.width import Neurons, highest

LOSS_LOGIT_BYTES = 2**26
"""Of logits in float32 at a time; there are four such tables."""
TOKENS_AT_ONCE = 4096
"""Tokens that pass a layer together, as many variants of a batch as that takes; a batch alone may have more."""


def losses_of(
    folder: Path, calibration: CalibrationSet, scoring: Scoring, variants: Collection[Variant], *,
    reporter: Reporter, width_metric: WidthMetric = "max_abs",
) -> Losses:  # fmt: skip
    """Compute what a base, whose files are in the folder, and its variants lose on a calibration set.

    Raises:
        ScoringError: a loss is not finite.
        CheckpointError: the weights do not fit the config.
        DiskSpaceError: the states of a single batch fit neither into memory nor into the temporary folder.
    """
    left_out = LeaveOneOut(folder, calibration, scoring, variants, width_metric=width_metric)
    with reporter.progress("leaving out", total=left_out.cost(), unit="batches") as advance:
        return left_out.run(advance)


class LeaveOneOut:
    """A base and the states of its variants, which can be run from any layer on again.

    Hidden states are kept where memory, the disk or both have room for them; documents are taken in chunks otherwise,
    and the weights read once for each of them.

    Raises:
        CheckpointError: the embedding does not have the tokens.
    """

    def __init__(
        self,
        folder: Path,
        calibration: CalibrationSet,
        scoring: Scoring,
        variants: Collection[Variant],
        *,
        in_rounds: bool = False,
        to_whole: bool = False,
        width_metric: WidthMetric = "max_abs",
    ) -> None:
        """Open a base; no layer is read yet.

        Args:
            folder: the base's files.
            calibration: what it is scored on.
            scoring: how; the metric of it does not matter here.
            variants: what to compute; of each, the layer has to have what it goes without.
            in_rounds: whether states are kept for further runs that begin at a higher layer.
            to_whole: whether the divergence is from the base as it was opened, whatever `bypass` took of it since.
            width_metric: importance of neurons, for variants with fewer of them.
        """
        self._how, self._folder, self._documents = scoring, folder, len(calibration.documents)
        self._batches = make_batches(calibration.documents, scoring.batch_size)
        self._predicted = tuple(len(document.ids) - 1 for document in calibration.documents)
        self._in_rounds, self._width_metric = in_rounds, width_metric
        self._slots = {variant: slot for slot, variant in enumerate(sorted(variants), start=1)}
        self._left = tuple(self._slots)
        """What is run: variants in the order of their layers."""
        self._ran: frozenset[Variant] = frozenset()
        self.model = self._open()
        self._neurons: dict[int, torch.Tensor] = {}
        self._to_whole, self._changed = to_whole, False
        self._narrower: dict[int, int] = {}
        """Layer -> neurons that stay in its MLP, in the base and so in all variants of other layers."""
        self._whole: dict[int, torch.Tensor] = {}
        """Batch -> the states that leave the last layer of the base as it was opened."""
        self._passed = 0

    def _open(self) -> StreamedModel:
        how = self._how
        return StreamedModel(
            self._folder, architecture=how.architecture, dtype=how.dtype, device=how.device, own_code=how.own_code,
            tensor_names=how.tensor_names,
        )  # fmt: skip

    @property
    def layer_runs(self) -> float:
        """How often a layer was run so far, in runs over the whole calibration set; scoring by cosine takes one each.

        A layer that lacks a sublayer counts as a whole one.
        """
        return self._passed / self._documents

    def bypass(self, kind: SublayerKind, layer: int) -> None:
        """Let a sublayer be gone from the base, and so from all variants; none goes without what is gone already."""
        self.model.bypass(kind, layer)
        self._changed = True
        lost = {Variant(layer, kind)}
        if self.model.does_nothing(layer):
            lost.add(Variant(layer, "block"))
        slots = {variant: slot for variant, slot in self._slots.items() if variant not in lost}
        # Before anything was run, no room is taken yet for those that are lost.
        self._slots = slots if "_rooms" in vars(self) else {v: slot for slot, v in enumerate(slots, start=1)}
        self._left = tuple(variant for variant in self._left if variant not in lost)

    def narrow(self, layer: int, width: int) -> None:
        """Let an MLP of the base have so many neurons; no variant of that layer may be run then."""
        self._narrower[layer], self._changed = width, True

    def choose(self, kinds: Collection[VariantKind]) -> None:
        """Let only variants of these kinds be run from now on."""
        self._left = tuple(variant for variant in self._slots if variant.kind in kinds)

    # ---- what is run -------------------------------------------------------------------------------------------------

    def cost(self, start: int = 0) -> int:
        """Return how many batches pass a layer, or the head, in a run from the layer `start` on."""
        through = sum(self._moved(layer) for layer in range(self._begun(start), len(self.model)))
        whole = len(self.model) if self._needs_whole else 0
        return len(self._batches) * (through + 1 + len(self._left) + whole)

    def _begun(self, start: int) -> int:
        """Return the layer that a run begins at: the highest up to `start` whose states are there for all variants."""
        return self._rooms.first(start) if self._ran.issuperset(self._left) else 0

    def _moved(self, layer: int) -> int:
        """Count the states that pass a layer."""
        if self.model.does_nothing(layer):
            return 0
        opened = sum(v.layer == layer and v.kind in ("attn", "width") for v in self._left)
        return 1 + opened + sum(v.layer < layer for v in self._left)

    def run(self, advance: Advance, *, start: int = 0) -> Losses:
        """Run the base and all variants through the layers from `start` on, and compute what they lose.

        What enters the layer `start` has to be as in an earlier run, where it is not 0.

        Raises:
            ScoringError: a loss is not finite.
            CheckpointError: the weights do not fit the config.
            DiskSpaceError: the states of a single batch fit neither into memory nor into the temporary folder.
        """
        rooms, found = self._rooms, torch.zeros(1 + self._rooms.variants, self._documents, 2, dtype=torch.float64)
        begun = self._begun(start)
        active = [n for n in range(begun, len(self.model)) if not self.model.does_nothing(n)]
        with torch.inference_mode():
            for chunk in rooms.chunks:
                whole = self._walk_whole(chunk, advance) if self._needs_whole else self._whole
                rooms.enter(chunk, begun)
                with closing(self.model.layers(active)) as layers:
                    for number in range(begun, len(self.model)):
                        rooms.keep(number)
                        layer = next(layers) if number in active else None
                        for place in chunk:
                            advance(self._pass(number, layer, self._batches[place], rooms.now[place]))
                for place in chunk:
                    room = rooms.now[place]
                    advance(self._read_out(self._batches[place], room, whole.get(place, room[0]), found))
            if self._to_whole and len(rooms.chunks) == 1 and not self._whole:
                self._whole = whole or {place: states[0].clone() for place, states in rooms.now.items()}
        self._ran = frozenset(self._left)
        return self._losses(found)

    @property
    def _needs_whole(self) -> bool:
        return self._to_whole and self._changed and not self._whole

    def _walk_whole(self, chunk: Sequence[int], advance: Advance) -> dict[int, torch.Tensor]:
        """Return the states that leave the last layer of the base as it was opened, by batch."""
        model = self._open()
        (states,) = model.embed([self._batches[place].ids for place in chunk])
        with closing(model.layers(range(len(model)))) as layers:
            for number, layer in enumerate(layers):
                for place, state in zip(chunk, states, strict=True):
                    batch = self._batches[place]
                    arguments = model.arguments(number, batch.ids.shape[1])
                    state.copy_(_states(layer(state.to(model.device), **arguments)))
                    self._passed += len(batch.documents)
                    advance(1)
        return dict(zip(chunk, states, strict=True))

    def _pass(self, number: int, layer: nn.Module | None, batch: Batch, room: torch.Tensor) -> int:
        """Take all open states of a batch through one layer, [slots, documents, tokens, hidden_size], in place."""
        opened = [variant for variant in self._left if variant.layer == number]
        if layer is None:  # a layer that only hands on
            for variant in opened:
                room[self._slots[variant]] = room[0]
            return 0
        arguments, device = self.model.arguments(number, batch.ids.shape[1]), self.model.device
        narrower = self._narrower.get(number)
        with self._fewer_neurons(layer, number, narrower) if narrower else nullcontext():
            passage = pass_through(
                layer, room[0].to(device), arguments, architecture=self._how.architecture, metric="cosine"
            )
            for variant in opened:
                room[self._slots[variant]] = self._leaving(layer, variant, passage, arguments)
            below = torch.tensor([self._slots[v] for v in self._left if v.layer < number], device=room.device)
            for some in below.split(max(1, TOKENS_AT_ONCE // batch.ids.numel())) if len(below) else ():
                states = room[some].to(device)
                room[some] = _states(layer(states.flatten(0, 1), **arguments)).view_as(states).to(room.device)
        room[0] = passage.leaving
        moved = self._moved(number)
        self._passed += moved * len(batch.documents)
        return moved

    def _leaving(
        self, layer: nn.Module, variant: Variant, passage: Passage, arguments: Mapping[str, Any]
    ) -> torch.Tensor:
        """Return what leaves a changed layer, [documents, tokens, hidden_size], by what passes the whole one."""
        if variant.kind == "block":
            return passage.entering
        if variant.kind == "mlp":
            return passage.between
        mlp_alone = layer_without("attn", layer, self._how.architecture)
        if variant.kind == "attn":
            return _states(mlp_alone(passage.entering, **arguments))
        with self._fewer_neurons(mlp_alone, variant.layer, variant.width):
            return _states(mlp_alone(passage.between, **arguments))

    @contextmanager
    def _fewer_neurons(self, layer: nn.Module, number: int, width: int) -> Iterator[None]:
        """Let an MLP compute as if it had its most important neurons alone, while the block runs."""
        # A neuron that hands nothing to the last projection is one that is not there.
        stays = torch.zeros_like(importance := self._importance(number))
        stays[highest(importance, width)] = 1
        stays = stays.to(self.model.device)
        output = layer.get_submodule(self._how.architecture.mlp_output.removesuffix(".weight"))
        hook = output.register_forward_pre_hook(lambda _, inputs: (inputs[0] * stays.to(inputs[0]), *inputs[1:]))
        try:
            yield
        finally:
            hook.remove()

    def _importance(self, layer: int) -> torch.Tensor:
        """Return the importance of an MLP's neurons, from the files as whoever cuts them reads it."""
        if layer not in self._neurons:
            weights = open_weights(self._folder).used(self._how.tensor_names)
            widths = WidthPlan(before=(), kept=(), metric=self._width_metric)
            self._neurons[layer] = Neurons(weights, widths, self._how.architecture).importance(layer)
        return self._neurons[layer]

    # ---- what they lose ----------------------------------------------------------------------------------------------

    @cached_property
    def _head(self) -> Head:
        how = self._how
        return Head(
            self._folder, architecture=how.architecture, dtype="float32", device=how.device, own_code=how.own_code,
            tensor_names=how.tensor_names,
        )  # fmt: skip

    def _read_out(self, batch: Batch, room: torch.Tensor, whole: torch.Tensor, found: torch.Tensor) -> int:
        """Add the loss and the divergence of every token that a batch predicts to the sums of its documents.

        The divergence is from what the states `whole` make expect, [documents, tokens, hidden_size].
        """
        device, seen = self.model.device, batch.mask[:, 1:]
        owners = torch.tensor(batch.documents)[:, None].expand_as(seen)[seen]
        targets, slots = batch.ids[:, 1:][seen].to(device), [0] + [self._slots[variant] for variant in self._left]
        rows, columns = seen.nonzero(as_tuple=True)
        row_bytes = 4 * self._head.vocabulary
        step = max(1, LOSS_LOGIT_BYTES // row_bytes)
        for start in range(0, len(targets), step):
            some = slice(start, start + step)
            chosen, places, owner = targets[some, None], (rows[some], columns[some]), owners[some]

            def told(states: Sequence[torch.Tensor], places: tuple[torch.Tensor, ...] = places) -> torch.Tensor:
                """Return the logarithms of what is expected, [states, tokens, vocabulary]."""
                picked = torch.stack([state[places] for state in states]).to(device).float()
                logits = self._head.logits(picked.flatten(0, 1))
                return logits.log_softmax(-1).view(*picked.shape[:2], -1)

            first = told([whole])[0]
            share = first.exp()
            together = max(1, LOSS_LOGIT_BYTES // (row_bytes * len(chosen)))
            for group in (slots[i : i + together] for i in range(0, len(slots), together)):
                for slot, second in zip(group, told([room[slot] for slot in group]), strict=True):
                    divergence = (share * (first - second)).sum(-1)
                    found[slot].index_add_(0, owner, _columns(-second.gather(1, chosen)[:, 0], divergence))
        return len(slots)

    def _losses(self, found: torch.Tensor) -> Losses:
        means = found / torch.tensor(self._predicted).clamp(min=1)[:, None]
        of, divergence = {}, {}
        for variant in (None, *self._left):
            values = means[self._slots[variant] if variant else 0]
            if not values.isfinite().all():
                place = f" without the {variant.kind} of layer {variant.layer}" if variant else ""
                raise ScoringError(
                    f"The loss{place} is not a finite number.",
                    hint="The weights are broken, or overflow: try --dtype float32.",
                )
            if variant:
                of[variant], divergence[variant] = (tuple(column) for column in values.T.tolist())
        return Losses(self._predicted, tuple(means[0, :, 0].tolist()), of, divergence)

    # ---- where states are --------------------------------------------------------------------------------------------

    @cached_property
    def _rooms(self) -> Rooms:
        self._head  # noqa: B018  # takes memory of its own, which states must not count on
        layers = [variant.layer for variant in self._slots]
        return Rooms(self.model, [batch.ids for batch in self._batches], layers, in_rounds=self._in_rounds)


def _states(output: Any) -> torch.Tensor:
    found: torch.Tensor = output if isinstance(output, torch.Tensor) else output[0]
    return found


def _columns(loss: torch.Tensor, divergence: torch.Tensor) -> torch.Tensor:
    return torch.stack([loss.cpu().double(), divergence.cpu().double()], dim=1)
