"""The plans that save most for the least loss, where the losses of what goes are added up.

What a model loses without two sublayers is not the sum of what it loses without each: the sum is what one pass can
tell of all plans at once, and the plan that it leads to is measured afterwards.  Of the sums, the search is exact.  It
goes up the layers with, for every saving that some choice so far comes to, the least loss of those that save as much:
a knapsack with one choice per layer.  Sublayers of one kind save the same, so there are few such savings.  What lowers
the loss counts as free, and no more goes than is needed: that several such changes help together, no sum can tell.

Every layer keeps what it has, or loses its attention, its MLP or both, or neurons of its MLP.  One attention of every
kind stays, and one MLP.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import ge

from hubprune.core.artifacts import FrontierPoint, LeftOut, Part, SublayerKind
from hubprune.core.specs import DropSpec
from hubprune.pruning.selection import Shape

SHARES_GONE = (1 / 8, 1 / 4, 1 / 2)
"""Shares of an MLP's neurons that may go."""
MULTIPLE = 64
"""Widths are rounded to a multiple of this; narrow MLPs to less."""
MOST_POINTS = 24
"""Of a frontier that is shown, beside the base."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What may happen to one layer."""

    layer: int
    part: Part | None = None
    """None where it keeps all; `block` for both sublayers at once."""
    width: int = 0
    """Neurons that stay, where its MLP gets narrower."""
    attn_too: bool = False
    """Whether the attention goes beside the neurons or the MLP, each by its own loss."""
    loss: float = 0.0
    saved: tuple[int, ...] = ()
    """Of every target."""

    @property
    def gone(self) -> tuple[SublayerKind, ...]:
        """Sublayers that go."""
        attn: tuple[SublayerKind, ...] = ("attn",) if self.part in ("attn", "block") or self.attn_too else ()
        return (*attn, *(("mlp",) if self.part in ("mlp", "block") else ()))


Cost = tuple[float, tuple[int, ...], float]
"""Rises of the loss, added up; what is saved of every target; the sum of all losses, which may be negative."""


@dataclass(frozen=True, slots=True)
class _Link:
    """The choices of a plan so far, the last one first."""

    choice: Choice
    before: _Link | None


@dataclass(frozen=True, slots=True)
class Found:
    """A plan."""

    loss: float
    saved: tuple[int, ...]
    choices: tuple[Choice, ...] = field(default=())
    """Of the layers that lose something."""

    def layers(self, kind: SublayerKind) -> tuple[int, ...]:
        """Layers that lose a sublayer of a kind."""
        return tuple(choice.layer for choice in self.choices if kind in choice.gone)

    @property
    def cost(self) -> Cost:
        """By what it is preferred to others."""
        return sum(max(0.0, choice.loss) for choice in self.choices), self.saved, self.loss

    @property
    def widths(self) -> tuple[tuple[int, int], ...]:
        """Layers whose MLP gets narrower, each with the neurons that stay."""
        return tuple((choice.layer, choice.width) for choice in self.choices if choice.part == "width")

    def point(self, *, measured: float | None = None) -> FrontierPoint:
        """Describe it, as a point of the frontier of its first target."""
        gone = {"attn": self.layers("attn"), "mlp": self.layers("mlp")}
        return FrontierPoint(saved=self.saved[0], loss=self.loss, widths=self.widths, measured=measured, **gone)


def widths_of(width: int, *, multiple: int = MULTIPLE) -> tuple[int, ...]:
    """Return the widths that an MLP may get, ascending."""
    step = max(1, min(multiple, width // 8))
    found = {int(width * (1 - share) / step + 0.5) * step for share in SHARES_GONE}
    return tuple(sorted(kept for kept in found if 0 < kept < width))


Saved = Callable[[Part, int, int], tuple[int, ...]]
"""What every target gains by a part of a layer, and the width that is left of its MLP."""


def choices_of(
    parts: Sequence[Part], shape: Shape, drop: DropSpec, *, saved: Saved, left_out: LeftOut | None,
    widths: Mapping[int, Sequence[int]],
) -> list[list[Choice]]:  # fmt: skip
    """List what may happen to every layer, with what it loses; without losses, all cost nothing."""
    narrower = {(row.layer, row.width): row.loss for row in left_out.narrower} if left_out else {}

    def loss(part: Part, layer: int, width: int = 0) -> float:
        if left_out is None:
            return 0.0
        return narrower[layer, width] if part == "width" else float(getattr(left_out.scores.mean, part)[layer])

    def made(part: Part, layer: int, width: int = 0, *, attn_too: bool = False) -> Choice:
        rows: tuple[Part, ...] = (part, "attn") if attn_too else (part,)
        gains = [saved(row, layer, width) for row in rows]
        return Choice(
            layer, part, width, attn_too, sum(loss(row, layer, width) for row in rows),
            tuple(map(sum, zip(*gains, strict=True))),
        )  # fmt: skip

    def of(layer: int) -> Iterator[Choice]:
        attn, mlp = (shape.has(kind, layer) for kind in ("attn", "mlp"))
        beside = [False, *([True] if attn and "attn" in parts else [])]
        if attn and "attn" in parts:
            yield made("attn", layer)
        if mlp and "mlp" in parts:
            # Both together are a block, whose own loss is known where blocks are looked at.
            yield from (made("mlp", layer, attn_too=too) for too in beside if not (too and "block" in parts))
        if attn and mlp and "block" in parts:
            yield made("block", layer)
        if mlp and "width" in parts:
            yield from (made("width", layer, width, attn_too=too) for width in widths[layer] for too in beside)

    nothing = tuple(0 for _ in saved("attn", next(iter(shape.layers("attn"))), 0))
    return [
        [Choice(layer, saved=nothing), *(of(layer) if layer not in drop.protect else ())]
        for layer in range(shape.num_hidden_layers)
    ]


def search(choices: Sequence[Sequence[Choice]], shape: Shape, need: Sequence[int]) -> Found | None:
    """Return the plan of the least loss that saves so much of every target; None where none does."""
    found = _climb(choices, shape, need=tuple(need))
    enough = [one for one in found if all(s >= n for s, n in zip(one.saved, need, strict=True))]
    return min(enough, key=lambda one: one.cost, default=None)


def frontier(choices: Sequence[Sequence[Choice]], shape: Shape) -> list[Found]:
    """Return all plans of which no other saves as much of the first target for less, ascending by what they save."""
    best: list[Found] = []
    for one in sorted(_climb(choices, shape, need=None), key=lambda one: (-one.saved[0], one.cost)):
        if not best or one.cost < best[-1].cost:
            best.append(one)
    return best[::-1]


def thinned(points: Sequence[Found], *, most: int = MOST_POINTS) -> list[Found]:
    """Take some of a frontier: of even steps up to the most, the cheapest that save as much."""
    if not points:
        return []
    last = points[-1].saved[0]
    levels = [last * step / most for step in range(1, most + 1)]
    picked = [next(one for one in points if one.saved[0] >= level) for level in levels]
    return list(dict.fromkeys(picked))


def most_saved(choices: Sequence[Sequence[Choice]], shape: Shape, place: int = 0) -> int:
    """Return the most that can go of a target, whatever it costs."""
    alone = [
        [Choice(c.layer, c.part, c.width, c.attn_too, 0.0, (c.saved[place],)) for c in options] for options in choices
    ]
    return max(one.saved[0] for one in _climb(alone, shape, need=None))


def _climb(choices: Sequence[Sequence[Choice]], shape: Shape, *, need: tuple[int, ...] | None) -> list[Found]:
    """Return the plans that are left at the top; of a `need`, what is saved beyond it does not count."""
    needed = sorted({shape.needed(kind, layer) for kind in _KINDS for layer in shape.layers(kind)})
    bits = {what: 1 << number for number, what in enumerate(needed)}
    nothing = tuple(0 for _ in choices[0][0].saved)
    states: _States = {(0, nothing): ((0.0, nothing, 0.0), None)}
    for options in choices:
        layer, following = options[0].layer, _States()
        there = {kind: bits[shape.needed(kind, layer)] for kind in _KINDS if shape.has(kind, layer)}
        stay = [sum({bit for kind, bit in there.items() if kind not in choice.gone}) for choice in options]
        for (mask, _), ((rise, saved, loss), link) in states.items():
            for choice, staying in zip(options, stay, strict=True):
                total = tuple(map(sum, zip(saved, choice.saved, strict=True)))
                cost = rise + max(0.0, choice.loss), total, loss + choice.loss
                key = mask | staying, total if need is None else tuple(map(min, total, need))
                if key not in following or cost < following[key][0]:
                    following[key] = cost, link if choice.part is None else _Link(choice, link)
        states = _without_worse(following)
    whole = sum(bits.values())
    return [_found(cost, link) for (mask, _), (cost, link) in states.items() if mask == whole]


_KINDS: tuple[SublayerKind, ...] = ("attn", "mlp")
_States = dict[tuple[int, tuple[int, ...]], tuple[Cost, _Link | None]]
"""What has to stay and does, and what is saved of every target -> the best plan so far that does so."""


def _without_worse(states: _States) -> _States:
    """Leave out what saves no more of any target than another of the same kinds, and costs no less."""
    kept, fronts = _States(), dict[int, list[tuple[tuple[int, ...], Cost]]]()
    for key in sorted(states, key=lambda key: (-key[1][0], states[key][0])):
        (mask, (_, *others)), (cost, _) = key, states[key]
        front, own = fronts.get(mask, []), (tuple(others), cost)
        if not any(least <= cost and all(map(ge, saved, others)) for saved, least in front):
            kept[key] = states[key]
            fronts[mask] = [row for row in front if not (cost <= row[1] and all(map(ge, others, row[0])))] + [own]
    return kept


def _found(cost: Cost, link: _Link | None) -> Found:
    choices: list[Choice] = []
    while link is not None:
        choices.append(link.choice)
        link = link.before
    _, saved, loss = cost
    return Found(loss, saved, tuple(reversed(choices)))
