"""Score one base under several circumstances: training checkpoints, calibration mixes, numbers of samples.

Every pass over the base is a stage of its own, so that a study that was stopped goes on after the last finished pass,
and shares its passes with other commands.  Numbers of samples take one pass, with the largest: a draw reads each
subset's shuffled stream from its start, so that what a smaller draw takes is the beginning of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hubprune import plots
from hubprune.core.amounts import count_of
from hubprune.core.artifacts import BY_LOSS, DropPlan, Frontier, LayerScores, ScoreStudy, StudyEntry, StudyKind
from hubprune.core.console import Reporter
from hubprune.core.errors import BaseNotFoundError, PlanError, RecipeError
from hubprune.core.files import make_writable
from hubprune.core.requests import ScoreRequest
from hubprune.plots.pictures import draw_frontier, draw_scores, draw_study
from hubprune.pruning.aggregation import KINDS, aggregate, agreements
from hubprune.workflows.choosing import say_plan
from hubprune.workflows.recipes import passes_of
from hubprune.workflows.run import Run, check_data, frontier, make_plan, open_run, say_computing, score


@dataclass(frozen=True)
class Scored:
    """What was found."""

    value: LayerScores | ScoreStudy | Frontier
    plan: DropPlan | None = None
    """What these scores would drop; None of a study."""


def conduct(request: ScoreRequest, *, reporter: Reporter) -> Scored:
    """Score what is asked for, and draw it where that is asked for too.

    Raises:
        MissingDependencyError: pictures are asked for and matplotlib is not installed; nothing was scored then.
        RecipeError: revisions are asked for and the base is a folder, which has none.
        BaseNotFoundError: a revision does not exist.
        PlanError: the revisions have different numbers of layers.
        CalibrationError: a data set cannot be read.
    """
    asked, plot = passes_of(request), Path(request.plot) if request.plot else None
    kind, counts = asked.kind, asked.counts
    runs = {label: open_run(recipe, request.endpoint, reporter) for label, recipe in asked.recipes.items()}
    run = next(iter(runs.values()))
    if plot:
        plots.require_matplotlib()
        make_writable(plot)
    if kind is not None and run.recipe.drop.target:
        raise RecipeError("A target is of one base and one mix.", hint="Keep one value of the option that is a list.")
    if request.frontier:
        say_computing(run)
        value = frontier(run)
        drawn = draw_frontier(value, plot) if plot else ()
        found = Scored(value)
    elif kind is None:
        say_computing(run)
        scores = score(run, KINDS)
        plan = make_plan(run, scores)
        say_plan(plan, reporter=run.reporter)
        drawn = draw_scores(scores, plan, plot, base=run.base.name) if plot else ()
        found = Scored(scores, plan)
    else:
        study = by_samples(runs, counts) if kind == "samples" else by_pass(kind, runs)
        drawn = draw_study(study, plot) if plot else ()
        found = Scored(study)
    for path in drawn:
        run.reporter.note(f"drawn: {path}")
    return found


def by_pass(kind: StudyKind, runs: Mapping[str, Run]) -> ScoreStudy:
    """Score a base at several of its commits, or on several mixes; all are found before the first is scored."""
    labels = list(runs)
    if kind == "revisions" and (base := runs[labels[0]].base).commit is None:
        raise RecipeError(f"{base.name} is a folder, which has no revisions.", hint="Name a repo on the Hub.")
    _resolve(runs)
    entries = []
    for number, (label, run) in enumerate(runs.items(), start=1):
        run.reporter.stage(number, len(runs), f"Scores of {label}")
        scores = score(run, KINDS)
        entries.append(_entry(label, scores, run))
    reference = labels[-1] if kind == "revisions" else labels[0]
    return _study(kind, entries, scores, runs[reference], reference=reference)


def by_samples(runs: Mapping[str, Run], counts: Sequence[int]) -> ScoreStudy:
    """Score a base once, with the largest number of samples, and average the first documents of it for the smaller."""
    _resolve(runs)
    (run,) = runs.values()
    scores = score(run, KINDS)
    entries = [_entry(f"{count}", first_samples(scores, run, count), run) for count in counts]
    return _study("samples", entries, scores, run, reference=entries[-1].label)


def first_samples(scores: LayerScores, run: Run, count: int) -> LayerScores:
    """Average the documents that a draw of `count` samples takes out of those that were scored.

    The mix says how many documents that is of each subset.  A subset of which it is none is left out, and the weights
    of the others are scaled up, as in a draw of that size.
    """
    mix = run.recipe.calibration
    drawn = [i for i, documents in enumerate(mix.counts()) if documents]
    wanted = mix.model_copy(update={"num_samples": count}).counts()
    kept = [place for place, subset in enumerate(drawn) if wanted[subset]]
    rows = [
        row.model_copy(update={"source": new})
        for new, place in enumerate(kept)
        for row in [r for r in scores.per_document if r.source == place][: wanted[drawn[place]]]
    ]
    record = scores.calibration
    total = sum(record.sources[place].weight for place in kept)
    sources = []
    for new, place in enumerate(kept):
        own, source = [row for row in rows if row.source == new], record.sources[place]
        tokens = sum(row.tokens for row in own) + (len(own) if scores.metric in BY_LOSS else 0)  # all, predicted or not
        seen = {"documents": len(own), "tokens": tokens, "weight": source.weight / total}
        sources.append(source.model_copy(update=seen))
    return aggregate(
        rows, record.model_copy(update={"sources": tuple(sources)}), aggregation=scores.aggregation,
        dtype=scores.dtype, device=scores.device, metric=scores.metric,
    )  # fmt: skip


def _resolve(runs: Mapping[str, Run]) -> None:
    """Find all bases and all data before anything is downloaded or computed."""
    missing: dict[str, BaseNotFoundError] = {}
    for label, run in runs.items():
        try:
            run.base  # noqa: B018
        except BaseNotFoundError as error:
            missing[label] = error
    if missing:
        first = next(iter(missing.values()))
        if len(missing) in (1, len(runs)):  # one has its own sentence; where all are missing, the repo itself may be
            raise first
        name = next(iter(runs.values())).recipe.base.repo_id
        raise BaseNotFoundError(f"{name} has no revisions {', '.join(missing)}.", hint=first.hint)
    layers = {label: run.base.num_hidden_layers for label, run in runs.items()}
    if len(set(layers.values())) > 1:
        raise PlanError(
            f"Scores cannot be put side by side: {', '.join(f'{k} has {n} layers' for k, n in layers.items())}."
        )
    for run in runs.values():
        check_data(run)
    say_computing(next(iter(runs.values())))


def _entry(label: str, scores: LayerScores, run: Run) -> StudyEntry:
    record = scores.calibration
    return StudyEntry(
        label=label, commit=run.base.commit, mix=record.mix, documents=record.documents, tokens=record.tokens,
        mean=scores.mean, standard_error=scores.standard_error,
    )  # fmt: skip


def _study(
    kind: StudyKind, entries: Sequence[StudyEntry], scores: LayerScores, run: Run, *, reference: str
) -> ScoreStudy:
    """Put passes side by side, each compared with the reference."""
    against, layers = next(entry for entry in entries if entry.label == reference), run.base.num_hidden_layers
    # As many of the lowest are compared as are marked, or a quarter of the layers if that is one.
    lowest = count_of(run.recipe.drop.attn_drop or 1, of=layers)
    lowest = lowest if lowest > 1 else max(1, layers // 4)
    compared = [
        entry
        if entry is against
        else entry.model_copy(update={"agreements": agreements(entry.mean, against.mean, lowest=lowest)})
        for entry in entries
    ]
    return ScoreStudy(
        kind=kind, base=run.base.name, metric=scores.metric, aggregation=scores.aggregation, seed=run.recipe.seed,
        dtype=scores.dtype, device=scores.device, entries=tuple(compared), reference=reference,
        nested=kind == "samples",
    )  # fmt: skip
