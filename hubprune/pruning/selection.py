"""Turn scores and a request into a plan; pure arithmetic, no torch."""

from __future__ import annotations

from hubprune.artifacts import DroppedSublayer, DropPlan, LayerScores, Margin, SublayerKind
from hubprune.errors import PlanError
from hubprune.pruning.aggregation import stratified_standard_error
from hubprune.recipe import DropSpec

Absent = tuple[tuple[SublayerKind, int], ...]
"""Kind and layer of sublayers that a base lacks already."""


def check_request(drop: DropSpec, *, num_hidden_layers: int, name: str, absent: Absent = ()) -> None:
    """Refuse a request that cannot fit the base; needs no scores, so it is made before anything is downloaded.

    Args:
        drop: the request.
        num_hidden_layers: decoder layers of the base.
        name: how error messages call the base.
        absent: sublayers that the base lacks already.

    Raises:
        PlanError: a layer that does not exist or has no attention any more, or more attentions than may go.
    """
    last = num_hidden_layers - 1
    for option, layers in (("--drop-attn", drop.drop_attn or ()), ("--protect", drop.protect)):
        if outside := [layer for layer in layers if layer > last]:
            raise PlanError(
                f"{option} names layer {outside[0]}: {name} has {num_hidden_layers} layers, 0 to {last}.",
                hint=f"Pass layers between 0 and {last}.",
            )
    without = {layer for kind, layer in absent if kind == "attn"}
    if again := sorted(without & set(drop.drop_attn or ())):
        raise PlanError(
            f"--drop-attn names layer {again[0]}, whose attention {name} has lost already.",
            hint=f"Layers without attention: {', '.join(map(str, sorted(without)))}.",
        )
    attentions = num_hidden_layers - len(without)
    # One attention has to stay, or no token would ever see another.
    most = min(attentions - len(set(drop.protect) - without), attentions - 1)
    if drop.count > most:
        lost = f", {attentions} of them with attention" if without else ""
        protected = f", {len(drop.protect)} of them protected" if drop.protect else ""
        raise PlanError(
            f"Cannot drop {drop.count} attention sublayers: {name} has {num_hidden_layers} layers{lost}{protected}.",
            hint=f"Pass --attn-drop {most} or less." if most else "Nothing is left to drop.",
        )


def make_plan(
    drop: DropSpec, scores: LayerScores | None, *, num_hidden_layers: int, name: str, absent: Absent = ()
) -> DropPlan:
    """Select the attention sublayers that go: the given ones, or those with the lowest importance.

    Ties go to the deeper layer.  Scores may be absent where the layers are given.  A sublayer that the base lacks
    already scores 0 and is neither ranked nor chosen.

    Raises:
        PlanError: the request does not fit the base.
        ValueError: layers are to be selected by score and there are no scores.
    """
    check_request(drop, num_hidden_layers=num_hidden_layers, name=name, absent=absent)
    order = [i for i in scores.mean.ascending("attn") if ("attn", i) not in absent] if scores else []
    if drop.drop_attn is not None:
        chosen, margin = list(drop.drop_attn), None
    elif scores is None:
        raise ValueError("selection by score needs scores")
    else:
        candidates = [layer for layer in order if layer not in drop.protect]
        chosen = candidates[: drop.count]
        margin = _margin(scores, chosen[-1], candidates[drop.count]) if drop.count < len(candidates) else None
    dropped = tuple(
        DroppedSublayer(
            kind="attn",
            layer=layer,
            score=scores.mean.attn[layer] if scores else None,
            rank=order.index(layer) + 1 if scores else None,
        )
        for layer in chosen
    )
    return DropPlan(
        selected_by="score" if drop.drop_attn is None else "hand",
        num_hidden_layers=num_hidden_layers,
        dropped=dropped,
        absent=absent,
        protected=drop.protect,
        margin=margin,
    )


def _margin(scores: LayerScores, last_dropped: int, first_kept: int) -> Margin:
    attn = scores.mean.attn
    return Margin(
        last_dropped=last_dropped,
        first_kept=first_kept,
        difference=attn[first_kept] - attn[last_dropped],
        standard_error=_paired_standard_error(scores, first_kept, last_dropped),
    )


def _paired_standard_error(scores: LayerScores, one: int, other: int) -> float:
    """Standard error of the difference of two layers' means; both were seen on the same documents."""
    rows = scores.per_document
    differences = [row.scores.attn[one] - row.scores.attn[other] for row in rows]
    weights = [source.weight for source in scores.calibration.sources]
    return stratified_standard_error(rows, differences, weights=weights, by_token=scores.aggregation == "token")
