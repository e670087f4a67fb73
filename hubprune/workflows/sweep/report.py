"""Put what was measured together, and write it as JSON and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from hubprune.core.artifacts import HeldOutDocuments, LayerScores, Recommendation, SweepPoint, SweepReport
from hubprune.core.devices import resolve_device, resolve_dtype
from hubprune.core.files import write_atomically
from hubprune.workflows.run import Run
from hubprune.workflows.sweep.measuring import (
    Measured,
    compare_tasks,
    mean_chance,
    mean_change,
    mean_percent,
    perplexity_change,
)
from hubprune.workflows.sweep.points import Point, order_of, recommend, rule_text, sublayer_parameters
from hubprune.workflows.sweep.request import REPORT, SweepPlan

CSV = "sweep.csv"


def assemble(
    run: Run,
    request: SweepPlan,
    points: Sequence[Point],
    measured: Sequence[Measured],
    *,
    scores: LayerScores | None,
    documents: HeldOutDocuments | None,
) -> SweepReport:
    """Make the report of a sweep.

    Args:
        run: with the base and what it was scored by.
        request: of the sweep.
        points: in the order of the request.
        measured: one per point.
        scores: of the base; None where nothing was chosen by them.
        documents: that perplexity was measured on.
    """
    recipe, base = run.recipe, measured[0]
    whole, parts = sublayer_parameters(run.runnable.weights(), run.downloaded.config, run.architecture)
    rows = [
        _point(point, found, base, parameters=whole - sum(parts.get(place, 0) for place in point.plan.sublayers))
        for point, found in zip(points, measured, strict=True)
    ]
    return SweepReport(
        base=run.base.name,
        commit=run.base.commit,
        base_parameters=whole,
        num_hidden_layers=points[0].plan.num_hidden_layers,
        absent=points[0].plan.absent,
        metric=recipe.metric,
        seed=recipe.seed,
        mix=recipe.calibration.name if scores else None,
        tasks=recipe.evaluation.tasks,
        limit=recipe.evaluation.limit,
        chance=mean_chance(base.benchmarks) if base.benchmarks else None,
        perplexity_on=f"{len(documents.documents)} documents of {documents.name}" if documents else None,
        orders=tuple(order_of(points, method) for method in request.methods),
        points=tuple(rows),
        rule=rule_text(request.limits, rows),
        recommendations=tuple(_recommendations(run, request, rows)),
        environment=run.environment,
        device=resolve_device(recipe.device),
        dtype=resolve_dtype(recipe.dtype, run.downloaded.config),
    )


def _point(point: Point, found: Measured, base: Measured, *, parameters: int) -> SweepPoint:
    own, other = found.benchmarks, base.benchmarks
    tasks = compare_tasks(own, other) if own and other else ()
    read, before = found.perplexity, base.perplexity
    return SweepPoint(
        method=point.method,
        count=point.count,
        dropped=point.plan.sublayers,
        parameters=parameters,
        mean=mean_percent(own) if own else None,
        mean_change=mean_change(tasks),
        tasks=tasks,
        perplexity=read.perplexity if read else None,
        perplexity_change=perplexity_change(read, before) if read and before else None,
        speed=found.speed,
    )


def _recommendations(run: Run, request: SweepPlan, rows: Sequence[SweepPoint]) -> list[Recommendation]:
    if not rule_text(request.limits, rows):
        return []
    return [
        recommend(
            method,
            [row for row in rows if row.method == method],
            request.limits,
            base=run.recipe.base.repo_id,
            options=request.next_options,
            publishable=run.base.commit is not None,
        )
        for method in request.methods
    ]


# ---- files -------------------------------------------------------------------------------------------------------


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
    writer.writerows(_csv_row(point, names) for point in report.points)
    return written.getvalue()


def _csv_row(point: SweepPoint, names: Sequence[str]) -> list[object]:
    values = {task.task: task.value for task in point.tasks}
    mean, rise, speed, sdr = point.mean_change, point.perplexity_change, point.speed, point.sdr
    return [
        *(point.method, point.count, _dropped(point), point.parameters, point.mean),
        *((mean.value, mean.standard_error) if mean else (None, None)),
        *(values.get(name) for name in names),
        point.perplexity,
        *((rise.value, rise.standard_error) if rise else (None, None)),
        *((speed.ratio.median, speed.ratio.low, speed.ratio.high) if speed else (None,) * 3),
        *((speed.control.low, speed.control.high) if speed else (None,) * 2),
        *((sdr.value, sdr.low, sdr.high) if sdr else (None,) * 3),
    ]


def _dropped(point: SweepPoint) -> str:
    return " ".join(f"{kind}{layer}" for kind, layer in point.dropped)
