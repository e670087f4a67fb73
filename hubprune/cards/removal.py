"""What was removed, by which scores, and on which texts these were computed."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Literal
from urllib.parse import quote

from hubprune.cards.context import Calibration, Credit, Link, Picture, Removal, Table, VerificationSummary
from hubprune.cards.markdown import NONE, change_percent, count, listing, plain, with_error
from hubprune.core.artifacts import (
    BY_LOSS,
    AdoptedForm,
    CalibrationRecord,
    DroppedSublayer,
    DropPlan,
    LayerScores,
    Margin,
    Metric,
    SublayerKind,
    Unit,
    Verification,
    WidthMetric,
)
from hubprune.core.privacy import is_local_data, page, public_name
from hubprune.core.specs import Adopted

NAMES: Mapping[SublayerKind, str] = {"attn": "attention", "mlp": "MLP"}
"""Kind of sublayer -> what the card calls it."""
SCORES: Mapping[Literal["attn", "mlp", "block"], str] = {"attn": "Attention", "mlp": "MLP", "block": "Block"}
SCORE_DIGITS = 6
MEASURES: Mapping[Metric, str] = {
    "relative-magnitude": "norms were", "loss": "logits and losses were", "kl": "logits and divergences were",
    "angular": "angles were",
}  # fmt: skip
"""What is computed for a metric, where it is no cosine."""
WITHOUT_SCORES: Mapping[Metric, str] = {
    "reverse-order": "from the last one upwards, and by nothing else",
    "random": "at random, by the seed of the recipe",
}
PER: Mapping[Unit, str] = {
    "params": "million parameters", "bytes": "MB", "flops": "million operations", "kv": "MB of KV cache",
    "latency": "millisecond",
}  # fmt: skip
"""What scores are divided by where they are ranked by that."""
AGGREGATIONS: Mapping[str, str] = {
    "document": "S is averaged over a {sample}'s tokens, then over a subset's {sample}s, then by the weights of the"
    " mix.",
    "token": "S is averaged over all tokens of a subset, then by the weights of the mix.",
}
FORMS: Mapping[AdoptedForm, str] = {
    "llm-drop": "pruned by LLM-Drop, in whose files the dropped tensors were left.",
    "anymodel": "pruned with ModelOpt, whose files load with its own patcher.",
    "fewer": "pruned to fewer layers, sublayers or neurons.",
}
FORMULAS: Mapping[WidthMetric, str] = {
    "max_abs": "max|g| + max|u|",
    "ppm": "max g + |min g| + max u + |min u|",
    "vow": "var g + var u",
    "pon": "the L1 norm of g times the L1 norm of u",
    "l2": "the L2 norm of g plus the L2 norm of u",
}
"""Importance of a neuron, of whose rows g is the gate's and u the up projection's."""


def removal(
    plan: DropPlan,
    *,
    scores: LayerScores | None,
    verification: Verification,
    by_hand: Collection[SublayerKind] = (),
    adopted: Adopted | None = None,
    endpoint: str = "",
    picture: str | None = None,
) -> Removal:
    """Describe the plan, the full score table where there is one, and what verification saw.

    Args:
        by_hand: kinds of sublayers whose layers were named, beside others that were ranked.
        adopted: whose choice the plan follows, with the endpoint of their repo.
    """
    marked = f"; {gone} marked as dropped" if (gone := _named_sublayers(plan)) else ""
    drawn = scores.mean.kinds if scores else ()
    whose = listing([{"attn": "attention", "mlp": "MLP", "block": "whole block"}[kind] for kind in drawn])
    whole = "run of as many layers" if plan.metric == "angular" else f"layer's {whose}"
    text = f"Bars of the scores of every {whole}{marked}"
    passed = sum(c.passed for c in verification.checks)
    sentence = (
        f"A fresh process loaded the files with transformers {verification.transformers} and compared them with the"
        f" base whose removed {plan.parts} are bypassed: {passed} of {len(verification.checks)} checks passed; the"
        f" largest absolute difference of a logit is {verification.max_logit_difference:.2g} in {verification.dtype}."
    )
    rows = tuple((c.name, "passed" if c.passed else "failed", c.detail) for c in verification.checks)
    checks = Table(columns=("Check", "Result", "Seen"), align="lll", rows=rows)
    return Removal(
        sentences=(*_sentences(plan, by_hand, adopted), *_width_sentences(plan)),
        credit=_credit(adopted, endpoint) if adopted else None,
        methods=plan.methods,
        metric=scores.metric if scores else plan.metric,
        scores=_score_table(plan, scores=scores) if scores else None,
        picture=Picture(path=picture, text=text) if scores and picture else None,
        score_notes=tuple(_score_notes(plan, scores=scores)) if scores else (),
        verification=VerificationSummary(sentence=sentence, checks=checks),
    )


def calibration(record: CalibrationRecord | None, *, endpoint: str) -> Calibration | None:
    """Describe the texts behind the scores, or those that a model was quantized with; None where there are none."""
    if record is None:
        return None
    if record.packed:
        texts = count(sum(source.texts or 0 for source in record.sources))
        length = f"{texts} documents joined and cut into sequences of exactly {count(record.max_tokens)} tokens"
    else:
        length = f"each document cut off after {count(record.max_tokens)} tokens"
    if record.chat_template:
        length += ", all of them as the base's chat template writes them"
    sentence = (
        f"Mix {record.mix}: {count(record.documents)} {record.unit}, {count(record.tokens)} tokens, {length};"
        f" seed {record.seed}, shuffle buffer {count(record.shuffle_buffer)}."
    )
    columns = ("Subset", "Data set", "Weight", record.unit.capitalize(), "Tokens", "Commit")
    rows, links = [], {}
    for source in record.sources:
        figures = (plain(source.weight, digits=3), count(source.documents), count(source.tokens))
        rows.append((source.config or source.split, public_name(source.dataset), *figures, (source.commit or NONE)[:8]))
        url = page(f"datasets/{quote(source.dataset, errors='replace')}", endpoint=endpoint)
        if url and source.commit and not is_local_data(source.dataset):
            links[source.commit[:8]] = f"{url}/tree/{source.commit}"
    table = Table(columns=columns, align="llrrrl", rows=tuple(rows), links=links)
    return Calibration(sentence=sentence, table=table)


def layers_named(layers: Sequence[int]) -> str:
    """Name some layers: layer 5, or layers 5 and 8."""
    return f"{'layer' if len(layers) == 1 else 'layers'} {listing(layers)}"


def _named_sublayers(plan: DropPlan) -> str:
    """Name what went by kind and layer: the attention of layers 5 and 8 and the MLP of layer 3."""
    rows = [(name, plan.layers(kind)) for kind, name in NAMES.items()]
    return " and ".join(f"the {name} of {layers_named(layers)}" for name, layers in rows if layers)


def _credit(adopted: Adopted, endpoint: str) -> Credit:
    """Name whoever published the choice, with their repo at the commit that was read."""
    url = page(quote(adopted.repo_id, errors="replace"), endpoint=endpoint) if adopted.revision else None
    named = f" Its card names the licence {adopted.license}." if adopted.license else ""
    told = (
        f"{FORMS[adopted.form]} What goes was chosen by its authors: hubprune did not score it, took no code of theirs,"
        f" and wrote and measured everything here anew from the base.{named}"
    )
    link = Link(name=adopted.repo_id, url=f"{url}/tree/{adopted.revision}" if url else None)
    return Credit(source=link, told=told)


def _sentences(plan: DropPlan, by_hand: Collection[SublayerKind], adopted: Adopted | None = None) -> Iterator[str]:
    """Name the sublayers that went, the layers that are gone with them, and how these were chosen."""
    whole = plan.removed_layers
    if whole and sorted(sublayer.layer for sublayer in plan.dropped) == sorted(2 * whole):
        yield f"Removed: {layers_named(whole)}, counted from 0 in the base, with both sublayers; later layers moved up."
    else:
        if gone := _named_sublayers(plan):
            yield f"Removed: {gone}, counted from 0 in the base."
        if whole:
            is_gone = f"lost both sublayers and {'is' if len(whole) == 1 else 'are'} gone altogether"
            yield f"{layers_named(whole).capitalize()} {is_gone}; later layers moved up."
    for kind, name in NAMES.items():
        if layers := plan.absent_layers[kind]:
            yield f"The base had lost the {name} of {layers_named(layers)} before."
    if plan.protected:
        what = "losing a sublayer" if plan.widths else "removal"
        yield f"Protected from {what}: {layers_named(plan.protected)}."
    if plan.dropped and by_hand and plan.selected_by != "hand":
        named = " and ".join(name for kind, name in NAMES.items() if kind in by_hand)
        yield f"The layers that lose their {named} were given by hand; the others were chosen {_way(plan)}."
    elif plan.dropped and adopted is None:
        yield f"{'The layer was' if len(plan.dropped) == 1 else 'The layers were'} chosen {_way(plan)}."


def _way(plan: DropPlan) -> str:
    if plan.selected_by == "hand":
        return "by hand"
    if plan.target:
        return "together, as what reaches the target at the least loss"
    if plan.per:
        what = "nats" if plan.metric in BY_LOSS else "score"
        rounds = ", the lowest in every round" if plan.schedule == "iterative" else ", lowest first"
        return f"by what they save: ranked by {what} per {PER[plan.per]} saved{rounds}"
    if plan.metric in WITHOUT_SCORES:
        return WITHOUT_SCORES[plan.metric]
    if plan.metric == "angular":
        return "as the run of consecutive layers with the lowest score"
    if plan.schedule == "iterative":
        return "by score, the lowest in every round, and what was left was scored again after every drop"
    return "by score, lowest first"


def _widths(plan: DropPlan) -> list[tuple[int, int]]:
    """List the neurons before and after of every MLP that stays."""
    if plan.widths is None:
        return []
    pairs = enumerate(zip(plan.widths.before, plan.widths.kept, strict=True))
    return [pair for layer, pair in pairs if layer not in plan.gone("mlp")]


def width_share(plan: DropPlan) -> str | None:
    """Say which share of the neurons is removed, and the width before and after; None where none are."""
    if not (pairs := _widths(plan)):
        return None
    before, now = (sum(column) for column in zip(*pairs, strict=True))
    said = f"{plain(100 * (1 - now / before), digits=2)} % of the neurons of its MLPs removed"
    if len(set(pairs)) == 1:
        return f"{said} ({count(pairs[0][0])} → {count(pairs[0][1])} in each)"
    return f"{said} ({count(before)} → {count(now)} in all)"


def width_rows(plan: DropPlan) -> list[tuple[str, ...]]:
    """Compare the widths: one row where any changed."""
    if not (pairs := _widths(plan)):
        return []
    alike = len(set(pairs)) == 1
    before, now = pairs[0] if alike else (sum(column) for column in zip(*pairs, strict=True))
    label = "Neurons per MLP" if alike else "Neurons of the MLPs that stay"
    return [(label, count(before), count(now), change_percent(before, now))]


def _width_sentences(plan: DropPlan) -> Iterator[str]:
    """Say how many neurons of which MLP stay, and why these."""
    if plan.widths is None:
        return
    alike = len(set(_widths(plan))) == 1
    kept = [
        f"{count(now)} of {count(before)} in {'every MLP' if alike else layers_named(layers)}"
        for (before, now), layers in plan.widths.changes.items()
        if not set(layers) & set(plan.gone("mlp"))
    ]
    yield f"Neurons that stay: {'; '.join(kept)}."
    if plan.widths.neurons:
        yield "Which ones they are is named in config.json: no metric of hubprune chose them."
        return
    yield (
        f"They have the highest {plan.widths.metric}: {FORMULAS[plan.widths.metric]}, where g and u are a"
        " neuron's rows of the gate and the up projection."
    )
    if plan.widths.multiple > 1:
        yield f"Widths were rounded to a multiple of {plan.widths.multiple}: another share may have been asked for."


def _score_table(plan: DropPlan, *, scores: LayerScores) -> Table:
    """All layers, ascending by what they were ranked by first; those that lack it already come last.

    Of the lists of scores that something was chosen by, a reader needs the errors too.  Outcomes are those of the kinds
    of sublayers that went, or else of the attention.
    """
    main: Literal["attn", "mlp", "block"] = "mlp" if plan.methods[:1] == ("mlp-drop",) else "attn"
    main = "block" if "block-drop" in plan.methods else main
    main = main if main in scores.mean.kinds else scores.mean.kinds[0]
    both = "joint-drop" in plan.methods or {"attn-drop", "mlp-drop"} <= {*plan.methods}
    ranked = ("attn", "mlp") if both else (main,)
    shown: list[SublayerKind] = [kind for kind in NAMES if plan.layers(kind)] or ["attn"]
    if scores.metric == "angular":
        return _run_table(plan, scores=scores)
    known = {kind: name for kind, name in SCORES.items() if kind in scores.mean.kinds}
    figures = [label for kind, name in known.items() for label in (f"{name} S", *(["± SE"] if kind in ranked else []))]
    absent = plan.absent_layers.get(main, ()) if main != "block" else ()
    order = [layer for layer in scores.mean.ascending(main) if layer not in absent]
    rows = []
    for rank, layer in [*enumerate(order, start=1), *((NONE, layer) for layer in absent)]:
        cells = [str(rank), str(layer)]
        for kind in known:
            values = [scores.mean, *([scores.standard_error] if kind in ranked else [])]
            # A sublayer that the base lacks turns nothing: its 0 would say that it is there and does not matter.
            gone = kind != "block" and (kind, layer) in plan.absent
            cells += [NONE if gone else plain(getattr(v, kind)[layer], digits=SCORE_DIGITS) for v in values]
        rows.append((*cells, *(_outcome(plan, kind=kind, layer=layer) for kind in shown)))
    columns = ("Rank", "Layer", *figures, *(NAMES[kind][0].upper() + NAMES[kind][1:] for kind in shown))
    return Table(columns=columns, align="rr" + "r" * len(figures) + "l" * len(shown), rows=tuple(rows))


def _run_table(plan: DropPlan, *, scores: LayerScores) -> Table:
    """All runs of as many layers as went, by their first layer and ascending."""
    length, gone = plan.num_hidden_layers + 1 - len(scores.mean.block), min(row.layer for row in plan.dropped)
    rows = []
    for rank, first in enumerate(scores.mean.ascending("block"), start=1):
        last, hit = first + length - 1, set(range(first, first + length)) & set(plan.protected)
        figures = (plain(v.block[first], digits=SCORE_DIGITS) for v in (scores.mean, scores.standard_error))
        outcome = "dropped" if first == gone else "kept, holds a protected layer" if hit else "kept"
        rows.append((str(rank), str(first), str(last), *figures, outcome))
    columns = ("Rank", "First layer", "Last layer", "Run S", "± SE", "Run")
    return Table(columns=columns, align="rrrrrl", rows=tuple(rows))


def _outcome(plan: DropPlan, *, kind: SublayerKind, layer: int) -> str:
    if layer in plan.layers(kind):
        return "dropped"
    if layer in plan.absent_layers[kind]:
        return "not in the base"
    return "kept, protected" if layer in plan.protected else "kept"


def _score_notes(plan: DropPlan, *, scores: LayerScores) -> Iterator[str]:
    yield AGGREGATIONS[scores.aggregation].format(sample=scores.calibration.unit.removesuffix("s"))
    yield f"SE is the standard error over {count(scores.calibration.documents)} {scores.calibration.unit}."
    yield f"The layers ran in {scores.dtype}; {MEASURES.get(scores.metric, 'cosines were')} taken in float32."
    if any(source.documents < 2 for source in scores.calibration.sources):
        yield "Subsets with one document add nothing to the standard errors."
    if plan.selected_by == "hand":
        what = "layer was" if len(plan.dropped) == 1 else "layers were"
        yield f"The scores did not decide here: the {what} given by hand."
    yield from _order(plan)
    for margin in plan.margins:
        last, first = (ranked_thing(margin, place, metric=plan.metric) for place in (0, 1))
        said = (
            f"Between {last} {margin.last_dropped}, the last one dropped, and {first} {margin.first_kept}, the first"
            f" one kept, the difference is {with_error(margin.difference, margin.standard_error, digits=SCORE_DIGITS)}"
        )
        tie = "a near tie, within two standard errors. Other documents might have swapped the two."
        yield f"{said}: {tie}" if margin.near_tie else f"{said}, more than two standard errors."


def _order(plan: DropPlan) -> Iterator[str]:
    """Say in which order things went, and with which scores, where a table by layers cannot show it."""
    scored = [row for row in plan.dropped if row.score is not None]
    at_once = [row for row in scored if row.round is None]
    if "joint-drop" in plan.methods and at_once:
        yield "Attentions and MLPs were ranked in one list; the ranks in the table are those of the attentions alone."
        yield f"Dropped, lowest first: {', '.join(_with_score([row]) for row in at_once)}."
    rounds: dict[int, list[DroppedSublayer]] = {}
    for row in scored:
        if row.round is not None:
            rounds.setdefault(row.round, []).append(row)
    if rounds:
        told = (_with_score(rows) for _, rows in sorted(rounds.items()))
        yield "The table has the scores of the whole base; each round had its own, those of what was left."
        yield f"Dropped round by round, each with its score by then: {', '.join(told)}."
        if plan.margins:
            yield "Margins are those of the last round."


def _with_score(rows: Sequence[DroppedSublayer]) -> str:
    """Name what went of one layer at once, and its score."""
    score = plain(rows[0].score or 0.0, digits=SCORE_DIGITS)
    return f"the {' and the '.join(NAMES[row.kind] for row in rows)} of layer {rows[0].layer} at {score}"


def ranked_thing(margin: Margin, place: int, *, metric: Metric = "cosine") -> str:
    """Name what is ranked; where one ranking holds more than attentions, a number alone would not tell."""
    if metric == "angular":
        return "the run from layer"
    if margin.ranking in ("attn", "block"):
        return "layer"
    return f"the {NAMES[margin.kinds[place]]} of layer"
