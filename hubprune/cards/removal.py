"""What was removed, by which scores, and on which texts these were computed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal

from hubprune.cards.context import Calibration, Picture, Removal, Table, VerificationSummary
from hubprune.cards.markdown import NONE, count, listing, plain, with_error
from hubprune.cards.overview import NAMES
from hubprune.cards.overview import sentences as width_sentences
from hubprune.core.artifacts import (
    CalibrationRecord,
    CalibrationSource,
    DroppedSublayer,
    DropPlan,
    LayerScores,
    Margin,
    Metric,
    SublayerKind,
    Verification,
)
from hubprune.core.privacy import public_name

__all__ = ["calibration", "removal"]

SCORE_DIGITS = 6

MEASURES: Mapping[Metric, str] = {"relative-magnitude": "norms"}
"""What is computed for a metric, where it is no cosine."""

AGGREGATIONS: Mapping[str, str] = {
    "document": "S is averaged over a {sample}'s tokens, then over a subset's {sample}s, then by the weights of the"
    " mix.",
    "token": "S is averaged over all tokens of a subset, then by the weights of the mix.",
}


def removal(
    plan: DropPlan,
    *,
    scores: LayerScores | None,
    verification: Verification,
    by_hand: Collection[SublayerKind] = (),
    picture: str | None = None,
) -> Removal:
    """Describe the plan, the full score table where there is one, and what verification saw.

    Args:
        plan: what was removed.
        scores: None where nothing was scored.
        verification: what a fresh process saw.
        by_hand: kinds of sublayers whose layers were named, beside others that were ranked.
        picture: path of a picture of the scores among the published files.
    """
    return Removal(
        sentences=tuple(_sentences(plan, by_hand)),
        methods=plan.methods,
        metric=scores.metric if scores else plan.metric,
        scores=_score_table(plan, scores=scores) if scores else None,
        picture=_picture(plan, picture) if scores and picture else None,
        score_notes=tuple(_score_notes(plan, scores=scores)) if scores else (),
        verification=_verification(verification, plan=plan),
    )


def _picture(plan: DropPlan, path: str) -> Picture:
    gone = _named_layers(plan)
    marked = f"; {gone} marked as dropped" if gone else ""
    return Picture(path=path, text=f"Bars of the scores of every layer's attention, MLP and whole block{marked}")


def _named_layers(plan: DropPlan) -> str:
    """Name what went by kind and layer: the attention of layers 5 and 8 and the MLP of layer 3."""
    return " and ".join(
        f"the {name} of layer{'s'[: len(layers) - 1]} {listing(layers)}"
        for kind, name in NAMES
        if (layers := plan.layers(kind))
    )


def _sentences(plan: DropPlan, by_hand: Collection[SublayerKind]) -> list[str]:
    said = _what_went(plan)
    said += [
        f"The base had lost the {name} of layer{'s'[: len(layers) - 1]} {listing(layers)} before."
        for kind, name in NAMES
        if (layers := plan.absent_layers[kind])
    ]
    if plan.protected:
        what = "losing a sublayer" if plan.widths else "removal"
        said.append(f"Protected from {what}: {listing(plan.protected)}.")
    if plan.dropped and by_hand and plan.selected_by != "hand":
        named = " and ".join(name for kind, name in NAMES if kind in by_hand)
        said.append(f"The layers that lose their {named} were given by hand; the others were chosen {_way(plan)}.")
    elif plan.dropped:
        said.append(f"{'The layer was' if len(plan.dropped) == 1 else 'The layers were'} chosen {_way(plan)}.")
    return [*said, *width_sentences(plan)]


def _what_went(plan: DropPlan) -> list[str]:
    """Name the sublayers that went, and the layers that are gone with them."""
    whole, one = plan.removed_layers, len(plan.removed_layers) == 1
    layers = f"layer{'s'[: len(whole) - 1]} {listing(whole)}" if whole else ""
    if whole and sorted(sublayer.layer for sublayer in plan.dropped) == sorted(2 * whole):
        return [f"Removed: {layers}, counted from 0 in the base, with both sublayers; later layers moved up."]
    said = [f"Removed: {gone}, counted from 0 in the base."] if (gone := _named_layers(plan)) else []
    if whole:
        is_gone = f"lost both sublayers and {'is' if one else 'are'} gone altogether; later layers moved up."
        said.append(f"{layers.capitalize()} {is_gone}")
    return said


def _way(plan: DropPlan) -> str:
    """Say how the layers were chosen."""
    if plan.selected_by == "hand":
        return "by hand"
    if plan.metric in WITHOUT_SCORES:
        return WITHOUT_SCORES[plan.metric]
    if plan.schedule == "iterative":
        return "by score, the lowest in every round, and what was left was scored again after every drop"
    return "by score, lowest first"


WITHOUT_SCORES: Mapping[Metric, str] = {
    "reverse-order": "from the last one upwards, and by nothing else",
    "random": "at random, by the seed of the recipe",
}


def _score_table(plan: DropPlan, *, scores: LayerScores) -> Table:
    """All layers, ascending by what they were ranked by first; those that lack it already come last."""
    main = _main_kind(plan)
    absent = plan.absent_layers.get(main, ()) if main != "block" else ()
    order = [layer for layer in scores.mean.ascending(main) if layer not in absent]
    ranked = _ranked_kinds(plan)
    figures = [label for kind, name in SCORES.items() for label in (f"{name} S", *(["± SE"] if kind in ranked else []))]
    outcomes = [name[0].upper() + name[1:] for _, name in _shown_kinds(plan)]
    rows = [_score_row(plan, scores=scores, layer=layer, rank=str(n)) for n, layer in enumerate(order, start=1)]
    rows += [_score_row(plan, scores=scores, layer=layer, rank=NONE) for layer in absent]
    columns = ("Rank", "Layer", *figures, *outcomes)
    return Table(columns=columns, align="rr" + "r" * len(figures) + "l" * len(outcomes), rows=tuple(rows))


SCORES: Mapping[Literal["attn", "mlp", "block"], str] = {"attn": "Attention", "mlp": "MLP", "block": "Block"}


def _main_kind(plan: DropPlan) -> Literal["attn", "mlp", "block"]:
    """Return the list of scores that the table goes by."""
    if "block-drop" in plan.methods:
        return "block"
    return "mlp" if plan.methods[:1] == ("mlp-drop",) else "attn"


def _ranked_kinds(plan: DropPlan) -> tuple[str, ...]:
    """Return the lists of scores that something was chosen by, whose errors a reader needs."""
    both = "joint-drop" in plan.methods or {"attn-drop", "mlp-drop"} <= {*plan.methods}
    return ("attn", "mlp") if both else (_main_kind(plan),)


def _shown_kinds(plan: DropPlan) -> list[tuple[SublayerKind, str]]:
    """Kinds of sublayers that something is to be said of: those that went, or else the attention."""
    return [(kind, name) for kind, name in NAMES if plan.layers(kind)] or [NAMES[0]]


def _score_row(plan: DropPlan, *, scores: LayerScores, layer: int, rank: str) -> tuple[str, ...]:
    figures: list[str] = []
    for kind in SCORES:
        values = [scores.mean, *([scores.standard_error] if kind in _ranked_kinds(plan) else [])]
        # A sublayer that the base lacks turns nothing: its 0 would say that it is there and does not matter.
        gone = kind != "block" and (kind, layer) in plan.absent
        figures += [NONE if gone else plain(getattr(v, kind)[layer], digits=SCORE_DIGITS) for v in values]
    return rank, str(layer), *figures, *(_outcome(plan, kind=kind, layer=layer) for kind, _ in _shown_kinds(plan))


def _outcome(plan: DropPlan, *, kind: SublayerKind, layer: int) -> str:
    if layer in plan.layers(kind):
        return "dropped"
    if layer in plan.absent_layers[kind]:
        return "not in the base"
    return "kept, protected" if layer in plan.protected else "kept"


def _score_notes(plan: DropPlan, *, scores: LayerScores) -> list[str]:
    notes = [
        AGGREGATIONS[scores.aggregation].format(sample=scores.calibration.unit.removesuffix("s")),
        f"SE is the standard error over {count(scores.calibration.documents)} {scores.calibration.unit}.",
        f"The layers ran in {scores.dtype}; {MEASURES.get(scores.metric, 'cosines')} were taken in float32.",
    ]
    if any(source.documents < 2 for source in scores.calibration.sources):
        notes.append("Subsets with one document add nothing to the standard errors.")
    if plan.selected_by == "hand":
        what = "layer was" if len(plan.dropped) == 1 else "layers were"
        notes.append(f"The scores did not decide here: the {what} given by hand.")
    return [*notes, *_joint_order(plan), *_rounds(plan), *map(_margin, plan.margins)]


def _joint_order(plan: DropPlan) -> list[str]:
    """Say what one list of attentions and MLPs came to, which a table by layers cannot show."""
    rows = [row for row in plan.dropped if row.score is not None and row.round is None]
    if "joint-drop" not in plan.methods or not rows:
        return []
    told = (
        f"the {dict(NAMES)[row.kind]} of layer {row.layer} at {plain(row.score or 0.0, digits=SCORE_DIGITS)}"
        for row in rows
    )
    return [
        "Attentions and MLPs were ranked in one list; the ranks in the table are those of the attentions alone.",
        f"Dropped, lowest first: {', '.join(told)}.",
    ]


def _rounds(plan: DropPlan) -> list[str]:
    """Say in which order things went in rounds, and with which scores."""
    names = dict(NAMES)
    steps: dict[int, list[DroppedSublayer]] = {}
    for row in plan.dropped:
        if row.round is not None and row.score is not None:
            steps.setdefault(row.round, []).append(row)
    if not steps:
        return []
    told = (
        f"the {' and the '.join(names[row.kind] for row in rows)} of layer {rows[0].layer} at"
        f" {plain(rows[0].score or 0.0, digits=SCORE_DIGITS)}"
        for _, rows in sorted(steps.items())
    )
    return [
        "The table has the scores of the whole base; each round had its own, those of what was left.",
        f"Dropped round by round, each with its score by then: {', '.join(told)}.",
        *(["Margins are those of the last round."] if plan.margins else []),
    ]


def _margin(margin: Margin) -> str:
    last, first = ranked_thing(margin, 0), ranked_thing(margin, 1)
    said = (
        f"Between {last} {margin.last_dropped}, the last one dropped, and {first} {margin.first_kept}, the first one"
        f" kept, lie {with_error(margin.difference, margin.standard_error, digits=SCORE_DIGITS)}"
    )
    if margin.near_tie:
        return f"{said}: a near tie, within two standard errors. Other documents might have swapped the two."
    return f"{said}, more than two standard errors."


def ranked_thing(margin: Margin, place: int) -> str:
    """Name what is ranked; where one ranking holds more than attentions, a number alone would not tell."""
    if margin.ranking in ("attn", "block"):
        return "layer"
    return f"the {dict(NAMES)[margin.kinds[place]]} of layer"


def _verification(verification: Verification, *, plan: DropPlan) -> VerificationSummary:
    passed = sum(c.passed for c in verification.checks)
    sentence = (
        f"A fresh process loaded the files with transformers {verification.transformers} and compared them with the"
        f" base whose removed {plan.parts} are bypassed: {passed} of {len(verification.checks)} checks passed; the"
        f" largest absolute difference of a logit is {verification.max_logit_difference:.2g} in {verification.dtype}."
    )
    rows = tuple((c.name, "passed" if c.passed else "failed", c.detail) for c in verification.checks)
    return VerificationSummary(
        sentence=sentence, checks=Table(columns=("Check", "Result", "Seen"), align="lll", rows=rows)
    )


def calibration(scores: LayerScores | None) -> Calibration | None:
    """Describe the texts behind the scores; None where nothing was scored."""
    if scores is None:
        return None
    record = scores.calibration
    sentence = (
        f"Mix {record.mix}: {count(record.documents)} {record.unit}, {count(record.tokens)} tokens, {_length(record)};"
        f" seed {record.seed}, shuffle buffer {count(record.shuffle_buffer)}."
    )
    columns = ("Subset", "Data set", "Weight", record.unit.capitalize(), "Tokens", "Commit")
    rows = tuple(_source_row(source) for source in record.sources)
    return Calibration(sentence=sentence, table=Table(columns=columns, align="llrrrl", rows=rows))


def _length(record: CalibrationRecord) -> str:
    if not record.packed:
        return f"each document cut off after {count(record.max_tokens)} tokens"
    texts = count(sum(source.texts or 0 for source in record.sources))
    return f"{texts} documents joined and cut into sequences of exactly {count(record.max_tokens)} tokens"


def _source_row(source: CalibrationSource) -> tuple[str, ...]:
    dataset = public_name(source.dataset)
    figures = (plain(source.weight, digits=3), count(source.documents), count(source.tokens))
    return source.config or source.split, dataset, *figures, source.commit or NONE
