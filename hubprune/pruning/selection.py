"""Turn a request, and scores where it asks for them, into a plan: which sublayers go, and how wide MLPs become.

`workflows.run` calls it and adds widths and layout.  Pure arithmetic, no torch.  A request is
checked as far as possible before anything is downloaded.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from hubprune.core.amounts import count_of
from hubprune.core.artifacts import (
    BaseCheckpoint,
    DroppedSublayer,
    DropPlan,
    ImportanceScores,
    LayerScores,
    Margin,
    Metric,
    Ranking,
    SublayerKind,
    WidthPlan,
)
from hubprune.core.config import Structure, read_structure
from hubprune.core.errors import PlanError
from hubprune.core.specs import HAND, OPTIONS, DropSpec, WidthSpec
from hubprune.pruning.aggregation import stratified_standard_error

KINDS: tuple[SublayerKind, ...] = ("attn", "mlp")
PARTS: Mapping[Ranking, tuple[SublayerKind, ...]] = {
    "attn": ("attn",), "mlp": ("mlp",), "block": KINDS, "joint": KINDS,
}  # fmt: skip
"""Kinds of sublayers that a ranking can choose."""
NOUNS: Mapping[Ranking, str] = {
    "attn": "attention sublayers", "mlp": "MLP sublayers", "block": "whole layers", "joint": "sublayers",
}  # fmt: skip
OWN: Mapping[SublayerKind, str] = {"attn": "attention", "mlp": "MLP"}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a selection has to know of a base."""

    num_hidden_layers: int
    name: str
    """How error messages call the base."""
    absent: tuple[tuple[SublayerKind, int], ...] = ()
    """Kind and layer of sublayers that the base lacks already."""
    attention_kinds: tuple[str, ...] = ()
    """Full or sliding, per layer; empty where all attentions are of one kind."""
    saved: Mapping[tuple[SublayerKind, int], float] | None = None
    """Kind and layer -> what goes with a sublayer, where scores are ranked by that; None where they are not."""

    def worth(self, candidate: Candidate) -> float:
        """Return what scores of a candidate are divided by: what it saves, where they are ranked by that."""
        return 1.0 if self.saved is None else sum(self.saved[kind, candidate.layer] for kind in candidate.kinds)

    def needed(self, kind: SublayerKind, layer: int) -> str:
        """Name what a sublayer is one of, of which one has to stay: an MLP, or an attention of its kind."""
        return self.attention_kinds[layer] if kind == "attn" and self.attention_kinds else kind

    def has(self, kind: SublayerKind, layer: int) -> bool:
        """Tell whether a layer has its sublayer of a kind."""
        return (kind, layer) not in self.absent

    def layers(self, kind: SublayerKind) -> list[int]:
        """Layers that have their sublayer of a kind."""
        return [layer for layer in range(self.num_hidden_layers) if self.has(kind, layer)]

    def count(self, ranking: Ranking) -> int:
        """How many things a ranking ranks."""
        if ranking == "block":
            return self.num_hidden_layers
        return sum(len(self.layers(kind)) for kind in PARTS[ranking])

    @property
    def text(self) -> str:
        """The base with its size, for messages."""
        return f"{self.name} has {self.num_hidden_layers} layers"


def shape_of(base: BaseCheckpoint) -> Shape:
    """Return what a selection has to know of a base."""
    structure = read_structure(base.config, name=base.name)
    return Shape(
        num_hidden_layers=structure.num_hidden_layers,
        name=base.name,
        absent=structure.absences,
        attention_kinds=tuple(structure.architecture.attention_kinds(base.config)),
    )


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """Something that can go at once: one sublayer, or a layer with all that it has."""

    ranking: Ranking
    layer: int
    kinds: tuple[SublayerKind, ...]

    def of(self, scores: ImportanceScores) -> float:
        """Return the score that ranks it."""
        return float(getattr(scores, "block" if self.ranking == "block" else self.kinds[0])[self.layer])


def check_request(drop: DropSpec, shape: Shape) -> None:
    """Refuse a request that cannot fit the base; needs no scores, so it is made before anything is downloaded.

    Raises:
        PlanError: a layer that does not exist or has lost its sublayer already, or more than may go.
    """
    _check_layers("--protect", drop.protect, shape)
    for kind, layers in drop.by_hand.items():
        _check_layers(HAND[kind], layers, shape)
        if again := [layer for layer in layers if not shape.has(kind, layer)]:
            without = [str(layer) for k, layer in shape.absent if k == kind]
            raise PlanError(
                f"{HAND[kind]} names layer {again[0]}, whose {OWN[kind]} {shape.name} has lost already.",
                hint=f"Layers without {OWN[kind]}: {', '.join(without)}.",
            )
        _check_count(kind, len(layers), drop, shape, option=HAND[kind])
    for ranking, amount in drop.amounts.items():
        _check_count(ranking, count_of(amount, of=shape.count(ranking)), drop, shape, option=OPTIONS[ranking])


def _check_layers(option: str, layers: Sequence[int], shape: Shape) -> None:
    last = shape.num_hidden_layers - 1
    if outside := [layer for layer in layers if layer > last]:
        raise PlanError(
            f"{option} names layer {outside[0]}: {shape.text}, 0 to {last}.", hint=f"Pass layers between 0 and {last}."
        )


def _check_count(ranking: Ranking, count: int, drop: DropSpec, shape: Shape, *, option: str) -> None:
    there, most = shape.count(ranking), len(droppable(candidates(ranking, shape), drop, shape))
    if count <= most:
        return
    own = ranking in ("attn", "mlp") and there < shape.num_hidden_layers
    lost = f", {there} of them with {OWN['attn' if ranking == 'attn' else 'mlp']}" if own else ""
    total = f" with {there} sublayers" if ranking == "joint" else ""
    protected = f", {len(drop.protect)} of them protected" if drop.protect else ""
    reason = " One attention of each kind has to stay." if len(set(shape.attention_kinds)) > 1 else ""
    fitting = f"Name {most} or fewer in {option}." if option in HAND.values() else f"Pass {option} {most} or less."
    raise PlanError(
        f"Cannot drop {count} {NOUNS[ranking]}: {shape.text}{total}{lost}{protected}.",
        hint=(fitting if most > 0 else "Nothing is left to drop.") + reason,
    )


def make_plan(
    drop: DropSpec, scores: LayerScores | None, shape: Shape, *, metric: Metric = "cosine", seed: int = 0
) -> DropPlan:
    """Select what goes: the sublayers that are named, and so many as are asked for from the low end of each ranking.

    The metrics `reverse-order` and `random`, which depends on the seed, need no scores.

    Raises:
        PlanError: the request does not fit the base.
        ValueError: something is to be selected by score and there are no scores.
    """
    check_request(drop, shape)
    if drop.amounts and scores is None and metric not in ("reverse-order", "random"):
        raise ValueError("selection by score needs scores")
    dropped, margins = by_hand(drop, scores, shape), []
    for ranking, amount in drop.amounts.items():
        order = ranked(ranking, shape, scores, metric=metric, seed=seed)
        free = droppable(order, drop, shape)
        if (count := count_of(amount, of=shape.count(ranking))) > len(free):
            raise PlanError(
                f"Only {len(free)} {NOUNS[ranking]} of {shape.name} can go in this order.",
                hint=f"Pass {OPTIONS[ranking]} {len(free)} or less.",
            )
        dropped += [row for c in free[:count] for row in rows_of(c, scores, rank=order.index(c) + 1)]
        behind = order[order.index(free[count - 1]) + 1 :]
        following = next((c for c in behind if c.kinds and c.layer not in drop.protect and shape.worth(c) > 0), None)
        if scores and metric not in ("reverse-order", "random") and following:
            margins.append(margin(scores, free[count - 1], following, shape=shape))
    return finish(drop, dropped, shape, margins=margins, metric=metric)


def candidates(ranking: Ranking, shape: Shape) -> list[Candidate]:
    """List everything that a ranking ranks, in the order of the layers."""
    if ranking == "block":
        present = [tuple(k for k in KINDS if shape.has(k, layer)) for layer in range(shape.num_hidden_layers)]
        return [Candidate(ranking=ranking, layer=layer, kinds=kinds) for layer, kinds in enumerate(present)]
    found = [(kind, layer) for kind in PARTS[ranking] for layer in shape.layers(kind)]
    return [Candidate(ranking=ranking, layer=layer, kinds=(kind,)) for kind, layer in found]


def ranked(
    ranking: Ranking, shape: Shape, scores: LayerScores | None, *, metric: Metric = "cosine", seed: int = 0
) -> list[Candidate]:
    """Order everything that a ranking ranks, the first to go first.

    Ties go to the deeper layer, and in a layer to the attention.  `reverse-order` goes from the last layer to the
    first; `random` is a shuffle that depends on the seed and the ranking alone.
    """
    made = candidates(ranking, shape)
    if metric == "random":
        random.Random(f"{seed} {ranking}").shuffle(made)
        return made
    if metric == "reverse-order" or scores is None:
        return sorted(made, key=lambda c: -c.layer)
    return sorted(made, key=lambda c: (_per_saved(c.of(scores.mean), shape.worth(c)), -c.layer))


def _per_saved(score: float, worth: float) -> float:
    """Divide a score by what it is for; what saves nothing goes last, and what helps by going first, as it is."""
    if worth <= 0:
        return math.inf
    return score / worth if score > 0 else score


def droppable(order: Sequence[Candidate], drop: DropSpec, shape: Shape) -> list[Candidate]:
    """Return those of a ranking that may go one after the other.

    Protected layers stay, and so does the last MLP, and the last attention of every kind: without it no token would
    ever see another, or transformers would not know how long the text is.
    """
    left = Counter(shape.needed(kind, layer) for kind in KINDS for layer in shape.layers(kind))
    free = []
    for candidate in order:
        taken = Counter(shape.needed(kind, candidate.layer) for kind in candidate.kinds)
        useful = candidate.kinds and shape.worth(candidate) > 0
        if useful and candidate.layer not in drop.protect and all(left[k] > n for k, n in taken.items()):
            left -= taken
            free.append(candidate)
    return free


def rows_of(
    candidate: Candidate, scores: LayerScores | None, *, rank: int | None, in_round: int | None = None
) -> list[DroppedSublayer]:
    """Return the sublayers that go with a candidate."""
    score, layer, ranking = candidate.of(scores.mean) if scores else None, candidate.layer, candidate.ranking
    return [
        DroppedSublayer(kind=kind, layer=layer, score=score, rank=rank, ranking=ranking, round=in_round)
        for kind in candidate.kinds
    ]


def finish(
    drop: DropSpec,
    dropped: Sequence[DroppedSublayer],
    shape: Shape,
    *,
    margins: Sequence[Margin] = (),
    metric: Metric = "cosine",
) -> DropPlan:
    """Make a plan of what was chosen.

    Raises:
        PlanError: no attention or no MLP would be left.
    """
    plan = DropPlan(
        methods=drop.methods,
        selected_by="score" if drop.amounts else "hand",
        num_hidden_layers=shape.num_hidden_layers,
        dropped=tuple(dropped),
        absent=shape.absent,
        protected=drop.protect,
        margins=tuple(margins),
        metric=metric,
        per=drop.per,
    )
    for kind in KINDS:
        if len(plan.gone(kind)) == shape.num_hidden_layers:
            raise PlanError(f"No {OWN[kind]} would be left in {shape.name}.", hint="Drop less, or --protect a layer.")
    return plan


def by_hand(drop: DropSpec, scores: LayerScores | None, shape: Shape) -> list[DroppedSublayer]:
    """Return the sublayers that are named, with their ranks where there are scores of their kind."""
    rows: list[DroppedSublayer] = []
    for kind, layers in drop.by_hand.items():
        known = scores if scores and kind in scores.mean.kinds else None
        order = [c.layer for c in ranked(kind, shape, known)] if known else []
        for layer in layers:
            candidate = Candidate(ranking=kind, layer=layer, kinds=(kind,))
            rows += rows_of(candidate, known, rank=order.index(layer) + 1 if known else None)
    return rows


def margin(scores: LayerScores, last_dropped: Candidate, first_kept: Candidate, *, shape: Shape) -> Margin:
    """Say how clearly two neighbours of a ranking are told apart; both were seen on the same documents."""
    ranked_by = [shape.worth(c) if c.of(scores.mean) > 0 else 1.0 for c in (first_kept, last_dropped)]

    def difference(found: ImportanceScores) -> float:
        return float(first_kept.of(found) / ranked_by[0] - last_dropped.of(found) / ranked_by[1])

    differences = [difference(row.scores) for row in scores.per_document]
    weights, by_token = [source.weight for source in scores.calibration.sources], scores.aggregation == "token"
    error = stratified_standard_error(scores.per_document, differences, weights=weights, by_token=by_token)
    return Margin(
        ranking=last_dropped.ranking,
        last_dropped=last_dropped.layer,
        first_kept=first_kept.layer,
        kinds=(last_dropped.kinds[0], first_kept.kinds[0]),
        difference=difference(scores.mean),
        standard_error=error,
    )


def plan_widths(
    spec: WidthSpec, structure: Structure, config: Mapping[str, Any], *, name: str, gone: Collection[int] = ()
) -> WidthPlan:
    """Decide how many neurons every MLP keeps; a base that was narrowed before counts from its own widths.

    Structure and config, of which the hidden size is read, are the base's.  Where an MLP is dropped, as in the layers
    of `gone`, its width does not matter.

    Raises:
        PlanError: more neurons than there are, another number of widths than of layers, no neuron left, or none gone.
    """
    before, layers, hidden_size = structure.mlp_widths, structure.num_hidden_layers, config["hidden_size"]
    # A fraction, since 0.6 * 8190 is less than 4914 in binary.
    share = Fraction((spec.neuron_drop or "0%").removesuffix("%")) / 100
    if isinstance(spec.width, tuple) and len(spec.width) != layers:
        raise PlanError(
            f"--mlp-width lists {len(spec.width)} widths: {name} has {layers} layers.",
            hint=f"Pass one number for all layers, or {layers} of them.",
        )
    if share == 1:
        raise PlanError(
            f"--neuron-drop {spec.neuron_drop} leaves no neuron in {name}.",
            hint="Pass less, or drop whole MLPs with --mlp-drop.",
        )
    kept = list(before)
    for layer in (layer for layer, width in enumerate(before) if width and layer not in gone):
        if spec.neuron_drop:  # the rounded-down number goes: 60 % of 8192 leaves 8192 - floor(4915.2) = 3277
            wanted = Fraction(before[layer] - int(share * before[layer]))
        elif spec.expansion_ratio:
            wanted = Fraction(str(spec.expansion_ratio)) * hidden_size
        else:
            wanted = Fraction(spec.width[layer] if isinstance(spec.width, tuple) else spec.width or 0)
        if wanted > before[layer]:
            least = min(w for w in before if w)
            ratio = int(Fraction(least, hidden_size) * 1000) / 1000
            most = f"--expansion-ratio {ratio:g}" if spec.expansion_ratio else f"--mlp-width {least}"
            raise PlanError(
                f"Cannot keep {float(wanted):g} neurons: the MLP of layer {layer} of {name} has {before[layer]}.",
                hint=f"Pass {most} or less.",
            )
        if spec.width is not None:
            kept[layer] = int(wanted)
        else:  # the nearest multiple, at least one of them and at most the width that there is; halves go up
            nearest = int(wanted / spec.multiple + Fraction(1, 2)) * spec.multiple
            kept[layer] = min(max(nearest, spec.multiple), before[layer])
    if kept == list(before):
        raise _nothing_goes(spec, before, name)
    for layer, mask in enumerate(spec.neurons or ()):
        if int(mask, 16).bit_length() > before[layer]:
            raise PlanError(f"The neurons of layer {layer} are not all there: {name} has {before[layer]} in it.")
    multiple = spec.multiple if spec.width is None else 1
    return WidthPlan(before=before, kept=tuple(kept), metric=spec.metric, multiple=multiple, neurons=spec.neurons)


def _nothing_goes(spec: WidthSpec, before: Sequence[int], name: str) -> PlanError:
    widths = sorted({width for width in before if width})
    text = " to ".join(str(w) for w in dict.fromkeys((widths[0], widths[-1])))
    said = f"No neuron would go: the MLPs of {name} have {text}"
    if spec.width is not None or spec.multiple == 1:
        return PlanError(f"{said}.", hint="Ask for fewer.")
    return PlanError(
        f"{said}, and widths are rounded to a multiple of {spec.multiple}.",
        hint="Ask for fewer, or pass --width-multiple 1.",
    )
