"""Measure what every number of drops costs: one base in memory, one scoring pass, many points.

In comes a request; out comes a report with a recommendation per method, and its files.

    points      what is asked for, and the plan of every point
    measuring   benchmarks, perplexity and speed of each, on the base in memory

Here: the way through, and what was found: changes against the base, which count to take, sweep.json and sweep.csv.
"""

from __future__ import annotations

import csv
import io
import shlex
from collections.abc import Mapping, Sequence
from math import ceil, inf
from pathlib import Path
from statistics import mean
from typing import Any

from hubprune.cards.markdown import plain, signed
from hubprune.core.architectures import Architecture

# fmt: off
# isort: off
from hubprune.core.artifacts import (
    BY_LOSS, BenchmarkAnswers, Estimate, HeldOutDocuments, LayerScores, PerplexityAnswers, Ranking, Recommendation,
    SublayerKind, SweepPoint, SweepReport, SweepTask, main_rows,
)
# isort: on
# fmt: on
from hubprune.core.console import Reporter
from hubprune.core.errors import MissingDependencyError, RecipeError
from hubprune.core.files import write_atomically
from hubprune.core.options import as_typed
from hubprune.core.recipe import CalibrationMix
from hubprune.core.requests import SweepRequest
from hubprune.core.specs import OPTIONS
from hubprune.core.weights import Weights
from hubprune.evaluation import compare
from hubprune.plots.pictures import draw_sweep
from hubprune.pruning import calibration, documents
from hubprune.pruning.aggregation import KINDS
from hubprune.pruning.checkpoint import count_parameters
from hubprune.pruning.selection import shape_of
from hubprune.pruning.variants import RANKED
from hubprune.workflows.recipes import recipe_of
from hubprune.workflows.run import Run, check_data, open_run, say_computing, scores_if_needed
from hubprune.workflows.sweep.measuring import Measured, held_out, measure_all, overlaps, read_mix

# fmt: off
# isort: off
from hubprune.workflows.sweep.points import (
    REPORT, Point, Ranked, check_counts, check_measures, check_out, make_points, order_of, parse_counts,
    parse_methods,
)
# isort: on
# fmt: on

STAGES = ("Base and checks", "Scores", "Points", "Report")
CSV = "sweep.csv"
PASSED_ON = (
    "base_revision", "protect", "calibration", "num_samples", "max_tokens", "metric", "aggregation", "tasks",
    "num_fewshot", "include_path", "batch_size", "eval_backend", "apply_chat_template", "calibration_chat_template",
    "endpoint", "seed", "device", "dtype",
)  # fmt: skip
"""Options of a sweep that a publish after it needs, too, so that it drops the same and measures the same."""


def sweep(request: SweepRequest, *, reporter: Reporter) -> SweepReport:
    """Run a sweep, or go on with one that was stopped, and write its files where a folder was named.

    Raises:
        HubpruneError: the first thing that is wrong; what can be checked without weights is checked first.
    """
    method, *_ = parse_methods(request.method)
    parse_counts(request.counts)  # which are refused before anything is looked up
    # A recipe has to drop something; which point it is makes no difference.
    recipe = recipe_of(request, drop={f"{method}_drop": "1"})
    if recipe.metric == "angular":
        raise RecipeError(
            "A sweep goes down one order, and --metric angular has another run of layers for every count.",
            hint="Pass another metric, or prune with --block-drop N for one count at a time.",
        )
    return sweep_run(open_run(recipe, request.endpoint, reporter), request)


def sweep_run(run: Run, request: SweepRequest) -> SweepReport:
    """Do the same over a run that is open already."""
    recipe, out = run.recipe, Path(request.out) if request.out else None
    _stage(run, 1)
    mix = _check(run, request)
    _stage(run, 2)
    kinds = {kind for method in parse_methods(request.method) for kind in RANKED[method]}
    scores = scores_if_needed(run, tuple(kind for kind in KINDS if kind in kinds or recipe.metric not in BY_LOSS))
    ranked = Ranked(
        shape=shape_of(run.base), scores=scores, metric=recipe.metric, seed=recipe.seed, protect=recipe.drop.protect,
        config=run.base.config,
    )  # fmt: skip
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
    say_computing(run)
    run.reporter.note(f"base {run.base.name} at {str(run.base.commit)[:12]}")
    if not request.perplexity:
        return None
    mix = read_mix(request.perplexity, num_samples=request.perplexity_samples)
    overlaps(run, mix)
    documents.check_subsets(mix, calibration.resolve_commits(mix))
    return mix


# ---- report --------------------------------------------------------------------------------------------------------


def assemble(
    run: Run,
    request: SweepRequest,
    points: Sequence[Point],
    measured: Sequence[Measured],
    *,
    scores: LayerScores | None,
    documents: HeldOutDocuments | None,
) -> SweepReport:
    """Make the report of a sweep from what was measured at each of its points.

    Scores are None where nothing was chosen by them, documents where no perplexity was measured.
    """
    recipe, base = run.recipe, measured[0]
    whole, parts = _sublayer_parameters(run.runnable.weights(), run.downloaded.config, run.architecture)
    rows = [
        _point(point, found, base, parameters=whole - sum(parts.get(place, 0) for place in point.plan.sublayers))
        for point, found in zip(points, measured, strict=True)
    ]
    rule, methods = rule_text(request, rows), parse_methods(request.method)
    where: dict[str, Any] = {"base": recipe.base.repo_id, "publishable": run.base.commit is not None}
    recommendations = tuple(
        recommend(method, [row for row in rows if row.method == method], request, **where) for method in methods
    )
    return SweepReport(
        base=run.base.name, commit=run.base.commit, base_parameters=whole,
        num_hidden_layers=points[0].plan.num_hidden_layers, absent=points[0].plan.absent, metric=recipe.metric,
        seed=recipe.seed, mix=recipe.calibration.name if scores else None, tasks=recipe.evaluation.tasks,
        limit=recipe.evaluation.limit, chat=run.benchmark_chat if recipe.evaluation.tasks else None,
        chance=mean_chance(base.benchmarks) if base.benchmarks else None,
        perplexity_on=f"{len(documents.documents)} documents of {documents.name}" if documents else None,
        orders=tuple(order_of(points, method) for method in methods), points=tuple(rows), rule=rule,
        recommendations=recommendations if rule else (), environment=run.environment,
        device=run.device, dtype=run.dtype,
    )  # fmt: skip


def _sublayer_parameters(
    weights: Weights, config: Mapping[str, Any], architecture: Architecture
) -> tuple[int, dict[tuple[SublayerKind, int], int]]:
    """Return the base's parameters, and those of every sublayer by kind and layer."""
    owners = {part: kind for kind, names in architecture.parts.items() for part in names}
    found: dict[tuple[SublayerKind, int], int] = {}
    for _, tensor in weights:
        if tensor.name.startswith(architecture.layers_prefix) and architecture.is_parameter(tensor.name):
            layer, part = tensor.name.removeprefix(architecture.layers_prefix).split(".")[:2]
            if part in owners:
                place = (owners[part], int(layer))
                found[place] = found.get(place, 0) + tensor.parameters
    return count_parameters(weights, config, architecture), found


# ---- a point against the base ----------------------------------------------------------------------------------------


def _point(point: Point, found: Measured, base: Measured, *, parameters: int) -> SweepPoint:
    own, other = found.benchmarks, base.benchmarks
    tasks = compare_tasks(own, other) if own and other else ()
    read, before = found.perplexity, base.perplexity
    return SweepPoint(
        method=point.method, count=point.count, dropped=point.plan.sublayers, parameters=parameters,
        mean=mean_percent(own) if own else None, mean_change=mean_change(tasks), tasks=tasks,
        perplexity=read.perplexity if read else None,
        perplexity_change=perplexity_change(read, before) if read and before else None, speed=found.speed,
    )  # fmt: skip


def mean_percent(answers: BenchmarkAnswers) -> float | None:
    """Return the mean of the main metrics that are shares, in percent; None where there is none."""
    shares = [row.result.value for row in main_rows(answers.tasks) if row.is_share]
    return 100 * mean(shares) if shares else None


def mean_chance(answers: BenchmarkAnswers) -> float | None:
    """Return what guessing gets in the same mean, in percent; None where a task has no such value."""
    values = [row.chance for row in main_rows(answers.tasks) if row.is_share]
    known = [value for value in values if value is not None]
    return 100 * mean(known) if known and len(known) == len(values) else None


def compare_tasks(point: BenchmarkAnswers, base: BenchmarkAnswers) -> tuple[SweepTask, ...]:
    """Compare the main metric of every task with the base's.

    Raises:
        EvaluationError: the two answered different documents.
    """
    others = {(row.task, row.metric): row for row in base.tasks}
    compared = []
    for row in main_rows(point.tasks):
        other = others.get((row.task, row.metric)) if row.is_share else None
        change = None
        if other and row.answers and other.answers:
            before, after = (dict(zip(r.documents, r.answers, strict=True)) for r in (other, row))
            change = compare.difference(compare.pair(before, after, of=row.task)).affine(times=100)
        elif other:
            change = Estimate(value=100 * (row.result.value - other.result.value))
        guesses = False
        if row.chance is not None and row.answers and {*row.answers} <= {0.0, 1.0}:
            guesses = compare.at_chance(round(sum(row.answers)), documents=len(row.answers), chance=row.chance)
        compared.append(SweepTask(
            task=row.task, metric=row.metric, value=row.result.value, change_points=change, at_chance=guesses
        ))  # fmt: skip
    return tuple(compared)


def mean_change(tasks: Sequence[SweepTask]) -> Estimate | None:
    """Average the changes in points; tasks count as independent of each other."""
    changes = [task.change_points for task in tasks if task.change_points]
    return compare.combine(changes, [1 / len(changes)] * len(changes)) if changes else None


def perplexity_change(point: PerplexityAnswers, base: PerplexityAnswers) -> Estimate:
    """Return perplexity over the base's minus one in percent, from the nats and tokens of every document."""
    nats = compare.difference(compare.Pairs(base.nats, point.nats, point.tokens))
    return compare.as_ratio(nats).affine(times=100, plus=-100)


# ---- which count to take ---------------------------------------------------------------------------------------------


def rule_text(request: SweepRequest, points: Sequence[SweepPoint]) -> str:
    """State the rule, as far as what was measured decides."""
    parts = []
    if any(point.mean_change for point in points):
        noun = "point" if request.max_loss == 1 else "points"
        parts.append(f"the mean loses at most {request.max_loss:g} {noun}")
    if any(point.perplexity_change for point in points):
        parts.append(f"the perplexity rises by at most {request.max_rise:g} %")
    return f"The largest count at which, as at every smaller one measured, {' and '.join(parts)}." if parts else ""


def recommend(
    method: Ranking, points: Sequence[SweepPoint], request: SweepRequest, *, base: str, publishable: bool = True
) -> Recommendation:
    """Pick a count for a method by the rule, and say what decided.

    The points are those of the method, the base among them.  The next command is a publish; of a folder, a prune.
    """
    ordered = sorted(points, key=lambda point: point.count)
    kept, beyond = ordered[0], None
    for point in ordered:
        change, rise = point.mean_change, point.perplexity_change
        within = change is None or -change.value <= request.max_loss
        if not (within and (rise is None or rise.value <= request.max_rise)):
            beyond = point
            break
        kept = point
    limits = {"max_loss": request.max_loss, "max_rise": request.max_rise}
    words = [_numbers(kept, **limits)] if kept.count else []
    words.append(_numbers(beyond, **limits) if beyond else "no larger count was measured")
    reason, takes = too_much(beyond, **limits) if beyond and not kept.count else ("; ".join(words), None)
    verb, rest = ("publish", as_typed(request, *PASSED_ON)) if publishable else ("prune", ("--out", "pruned"))
    command = ["hubprune", verb, base, OPTIONS[method], str(kept.count), *rest]
    return Recommendation(
        method=method, count=kept.count, reason=reason, command=shlex.join(command) if kept.count else None,
        takes=takes,
    )  # fmt: skip


def too_much(point: SweepPoint, *, max_loss: float, max_rise: float = inf) -> tuple[str, str]:
    """Say which limits the smallest count breaks already, and which ones it would keep to."""
    broken, options = [], []
    if (change := point.mean_change) and -change.value > max_loss:
        lost = with_error(change.affine(times=-1)).removeprefix("+")
        broken.append(f"the mean loses {lost} points (limit {max_loss:g})")
        options.append(f"--max-loss {ceil(-10 * change.value) / 10:g}")
    if (change := point.perplexity_change) and change.value > max_rise:
        risen = with_error(change).removeprefix("+")
        broken.append(f"the perplexity rises by {risen} % (limit {max_rise:g} %)")
        options.append(f"--max-rise {ceil(change.value)}")
    return f"already with {point.count}, {' and '.join(broken)}", f"It would need {' '.join(options)}."


def _numbers(point: SweepPoint, *, max_loss: float, max_rise: float) -> str:
    """Say what a count costs, as far as the rule looks at it."""
    words = []
    if change := point.mean_change:
        words.append(f"mean {with_error(change)} points (limit −{max_loss:g})")
    if change := point.perplexity_change:
        words.append(f"perplexity {with_error(change)} % (limit +{max_rise:g})")
    return f"with {point.count}, {', '.join(words)}"


def with_error(change: Estimate) -> str:
    """Write a change with its paired standard error, where it has one."""
    text = signed(change.value)
    return text if change.standard_error is None else f"{text} ± {plain(change.standard_error, digits=2)}"


# ---- files -----------------------------------------------------------------------------------------------------------


def write_files(report: SweepReport, folder: Path) -> None:
    """Write sweep.json and sweep.csv."""
    write_atomically(folder / REPORT, to_json(report))
    write_atomically(folder / CSV, to_csv(report))


def to_json(report: SweepReport) -> str:
    """Write a report as JSON."""
    return report.model_dump_json(indent=2) + "\n"


def to_csv(report: SweepReport) -> str:
    """Write one line per point: what went, what it cost, what it won; cells of what was not measured are empty."""
    names = [task.task for task in report.points[0].tasks]
    head = [
        *("method", "count", "dropped", "parameters", "mean_percent", "mean_change_points", "mean_change_se"),
        *names,
        *("perplexity", "perplexity_change_percent", "perplexity_change_se"),
        *("speed_ratio", "speed_low", "speed_high", "control_low", "control_high"),
        *("sdr", "sdr_low", "sdr_high"),
    ]
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow(head)
    for point in report.points:
        values = {task.task: task.value for task in point.tasks}
        change, rise, speed, sdr = point.mean_change, point.perplexity_change, point.speed, point.sdr
        dropped = " ".join(f"{kind}{layer}" for kind, layer in point.dropped)
        row = [
            *(point.method, point.count, dropped, point.parameters, point.mean),
            *((change.value, change.standard_error) if change else (None, None)),
            *(values.get(name) for name in names),
            point.perplexity,
            *((rise.value, rise.standard_error) if rise else (None, None)),
            *((speed.ratio.median, speed.ratio.low, speed.ratio.high) if speed else (None,) * 3),
            *((speed.control.low, speed.control.high) if speed else (None,) * 2),
            *((sdr.value, sdr.low, sdr.high) if sdr else (None,) * 3),
        ]
        writer.writerow(row)
    return written.getvalue()
