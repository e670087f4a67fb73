"""Measure what every number of drops costs: one base in memory, one scoring pass, many points.

In comes a request; out comes a report with a recommendation per method, and its files.

    points      what is asked for, and the plan of every point
    measuring   benchmarks, perplexity and speed of each, on the base in memory
    report      changes against the base, which count to take, sweep.json and sweep.csv
"""

from __future__ import annotations

from pathlib import Path

from hubprune.core.artifacts import SweepReport
from hubprune.core.console import Reporter
from hubprune.core.errors import MissingDependencyError
from hubprune.core.recipe import CalibrationMix
from hubprune.core.requests import SweepRequest
from hubprune.plots.pictures import draw_sweep
from hubprune.pruning import calibration, documents
from hubprune.workflows.recipes import recipe_of
from hubprune.workflows.run import Run, check_data, open_run, scores_if_needed, shape_of
from hubprune.workflows.sweep.measuring import held_out, measure_all, overlaps, read_mix
from hubprune.workflows.sweep.points import (
    Ranked,
    check_counts,
    check_measures,
    check_out,
    make_points,
    parse_counts,
    parse_methods,
)
from hubprune.workflows.sweep.report import assemble, write_files

STAGES = ("Base and checks", "Scores", "Points", "Report")


def sweep(request: SweepRequest, *, reporter: Reporter) -> SweepReport:
    """Run a sweep, or go on with one that was stopped, and write its files where a folder was named.

    Raises:
        HubpruneError: the first thing that is wrong; what can be checked without weights is checked first.
    """
    method, *_ = parse_methods(request.method)
    parse_counts(request.counts)  # which are refused before anything is looked up
    # A recipe has to drop something; which point it is makes no difference.
    recipe = recipe_of(request, drop={f"{method}_drop": "1"})
    return sweep_run(open_run(recipe, request.endpoint, reporter), request)


def sweep_run(run: Run, request: SweepRequest) -> SweepReport:
    """Do the same over a run that is open already."""
    recipe, out = run.recipe, Path(request.out) if request.out else None
    _stage(run, 1)
    mix = _check(run, request)
    _stage(run, 2)
    scores = scores_if_needed(run)
    ranked = Ranked(
        shape=shape_of(run.base),
        scores=scores,
        metric=recipe.metric,
        seed=recipe.seed,
        protect=recipe.drop.protect,
        config=run.base.config,
    )
    points = make_points(request, ranked)
    texts = held_out(run, mix) if mix else None
    _stage(run, 3)
    measured = measure_all(run, request, points, texts)
    _stage(run, 4)
    report = assemble(run, request, points, measured, scores=scores, documents=texts)
    if out:
        write_files(report, out)
        try:
            paths = draw_sweep(report, out)
            run.reporter.note(f"{len(paths)} files of pictures in {out}")
        except MissingDependencyError as error:
            run.reporter.warn(f"No pictures: {error.message} {error.hint or ''}")
    return report


def _stage(run: Run, number: int) -> None:
    run.reporter.stage(number, len(STAGES), STAGES[number - 1])


def _check(run: Run, request: SweepRequest) -> CalibrationMix | None:
    """Check all that needs no weights, and return the mix that the perplexity is measured on."""
    check_measures(request, run.recipe.evaluation.tasks)
    check_counts(request, shape_of(run.base), protect=run.recipe.drop.protect)
    check_out(Path(request.out) if request.out else None)
    check_data(run)
    run.task_texts, run.task_sources, run.environment  # noqa: B018
    run.reporter.note(f"base {run.base.name} at {str(run.base.commit)[:12]}")
    if not request.perplexity:
        return None
    mix = read_mix(request.perplexity, num_samples=request.perplexity_samples)
    overlaps(run, mix)
    documents.check_subsets(mix, calibration.resolve_commits(mix))
    return mix
