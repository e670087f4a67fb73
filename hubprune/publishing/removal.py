"""What was removed, by which scores, and on which texts these were computed."""

from __future__ import annotations

from collections.abc import Mapping

from hubprune.artifacts import CalibrationSource, DropPlan, LayerScores, Margin, Verification
from hubprune.publishing.context import Calibration, Removal, Table, VerificationSummary
from hubprune.publishing.numbers import NONE, count, listing, plain, with_error
from hubprune.publishing.overview import NAMES
from hubprune.publishing.privacy import public_name

__all__ = ["calibration", "removal"]

SCORE_DIGITS = 6

AGGREGATIONS: Mapping[str, str] = {
    "document": "Averaged over a document's tokens, then over a subset's documents, then by the weights of the mix.",
    "token": "Averaged over all tokens of a subset, then by the weights of the mix.",
}


def removal(plan: DropPlan, *, scores: LayerScores | None, verification: Verification) -> Removal:
    """Describe the plan, the full score table where there is one, and what verification saw."""
    return Removal(
        sentences=tuple(_sentences(plan)),
        scores=_score_table(plan, scores=scores) if scores else None,
        score_notes=tuple(_score_notes(plan, scores=scores)) if scores else (),
        verification=_verification(verification),
    )


def _sentences(plan: DropPlan) -> list[str]:
    said = [
        f"Removed: the {name} of layer{'s'[: len(layers) - 1]} {listing(layers)}, counted from 0 in the base."
        for kind, name in NAMES
        if (layers := plan.layers(kind))
    ]
    said += [
        f"The base had lost the {name} of layer{'s'[: len(layers) - 1]} {listing(layers)} before."
        for kind, name in NAMES
        if (layers := plan.absent_layers[kind])
    ]
    if plan.removed_layers:
        gone = listing(plan.removed_layers)
        said.append(f"Layers {gone} lost both sublayers and are gone altogether; later layers moved up.")
    if plan.protected:
        said.append(f"Protected from removal: {listing(plan.protected)}.")
    chosen = "by hand" if plan.selected_by == "hand" else "by score, lowest first"
    return [*said, f"The layers were chosen {chosen}."]


def _score_table(plan: DropPlan, *, scores: LayerScores) -> Table:
    """All layers ascending by the score of their attention."""
    absent = plan.absent_layers["attn"]
    order = [layer for layer in scores.mean.ascending("attn") if layer not in absent]
    columns = ("Rank", "Layer", "Attention S", "± SE", "MLP S", "Block S", "Attention")
    rows = [_score_row(plan, scores=scores, layer=layer, rank=str(n)) for n, layer in enumerate(order, start=1)]
    rows += [_score_row(plan, scores=scores, layer=layer, rank=NONE) for layer in absent]
    return Table(columns=columns, align="rrrrrrl", rows=tuple(rows))


def _score_row(plan: DropPlan, *, scores: LayerScores, layer: int, rank: str) -> tuple[str, ...]:
    attn, error = scores.mean.attn[layer], scores.standard_error.attn[layer]
    cells = (
        ("attn", attn), ("attn", error), ("mlp", scores.mean.mlp[layer]), (None, scores.mean.block[layer]),
    )  # fmt: skip
    # A sublayer that the base lacks turns nothing: its 0 would say that it is there and does not matter.
    figures = (NONE if (kind, layer) in plan.absent else plain(value, digits=SCORE_DIGITS) for kind, value in cells)
    return rank, str(layer), *figures, _outcome(plan, layer=layer)


def _outcome(plan: DropPlan, *, layer: int) -> str:
    if layer in plan.layers("attn"):
        return "dropped"
    if layer in plan.absent_layers["attn"]:
        return "not in the base"
    return "kept, protected" if layer in plan.protected else "kept"


def _score_notes(plan: DropPlan, *, scores: LayerScores) -> list[str]:
    notes = [
        AGGREGATIONS[scores.aggregation],
        f"SE is the standard error over {count(scores.calibration.documents)} documents.",
        f"The layers ran in {scores.dtype}; cosines were taken in float32.",
    ]
    if any(source.documents < 2 for source in scores.calibration.sources):
        notes.append("Subsets with one document add nothing to the standard errors.")
    if plan.selected_by == "hand":
        notes.append("The scores did not decide here: the layers were given by hand.")
    return [*notes, *map(_margin, plan.margins)]


def _margin(margin: Margin) -> str:
    said = (
        f"Between layer {margin.last_dropped}, the last one dropped, and layer {margin.first_kept}, the first one kept,"
        f" lie {with_error(margin.difference, margin.standard_error, digits=SCORE_DIGITS)}"
    )
    if margin.near_tie:
        return f"{said}: a near tie, within two standard errors. Other documents might have swapped the two."
    return f"{said}, more than two standard errors."


def _verification(verification: Verification) -> VerificationSummary:
    passed = sum(c.passed for c in verification.checks)
    sentence = (
        f"A fresh process loaded the files with transformers {verification.transformers} and compared them with the"
        f" base whose removed sublayers are bypassed: {passed} of {len(verification.checks)} checks passed; the largest"
        f" absolute difference of a logit is {verification.max_logit_difference:.2g} in {verification.dtype}."
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
        f"Mix {record.mix}: {count(record.documents)} documents, {count(record.tokens)} tokens, each document cut off"
        f" after {count(record.max_tokens)} tokens; seed {record.seed}, shuffle buffer {count(record.shuffle_buffer)}."
    )
    columns = ("Subset", "Data set", "Weight", "Documents", "Tokens", "Commit")
    rows = tuple(_source_row(source) for source in record.sources)
    return Calibration(sentence=sentence, table=Table(columns=columns, align="llrrrl", rows=rows))


def _source_row(source: CalibrationSource) -> tuple[str, ...]:
    dataset = public_name(source.dataset)
    figures = (plain(source.weight, digits=3), count(source.documents), count(source.tokens))
    return source.config or source.split, dataset, *figures, source.commit or NONE
