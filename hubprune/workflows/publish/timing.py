"""Time a result that is about to be published, for its card and its manifest."""

from __future__ import annotations

from pathlib import Path

from hubprune.core.artifacts import BenchmarkComparison, DropPlan, SpeedReport
from hubprune.core.config import read_config
from hubprune.core.stages import key_of
from hubprune.workflows.card import Timed
from hubprune.workflows.checkpoints import PrunedFolder
from hubprune.workflows.run import Run
from hubprune.workflows.speed.command import change_of, time_pair
from hubprune.workflows.speed.request import TimingRequest

__all__ = ["find_speed", "time_result"]

DEPTHS = (512,)
"""One shape for a card, cut to what the model has positions for; `hubprune speed` measures any."""


def find_speed(
    run: Run, plan: DropPlan, folder: Path, timed: Timed, *, repo_id: str, benchmarks: BenchmarkComparison | None
) -> SpeedReport | None:
    """Return what a card says of speed: what is timed now, or was before; None where it says nothing."""
    if timed == "now":
        return time_result(run, plan, folder, repo_id=repo_id, benchmarks=benchmarks)
    return None if timed == "never" else timed


def time_result(
    run: Run, plan: DropPlan, folder: Path, *, repo_id: str, benchmarks: BenchmarkComparison | None
) -> SpeedReport:
    """Time base and result in turns on this machine, or take what an earlier run of the same found here.

    Raises:
        EvaluationError: the device's memory is too small.
    """
    recipe, change = run.recipe, change_of(benchmarks) if benchmarks else None
    request = TimingRequest(depths=DEPTHS, device=recipe.device, dtype=recipe.dtype, seed=recipe.seed)
    pruned = PrunedFolder(name=repo_id, commit=None, folder=folder, config=read_config(folder))
    shape = request.depths, request.new_tokens, request.rounds, request.batch_size, request.seed
    key = key_of(run.circumstances, run.environment.threads, plan.content, plan.widths, plan.layout, shape, change)
    timed = run.store.run(
        "speed",
        key,
        SpeedReport,
        lambda: time_pair(
            run.downloaded, pruned, runnable=run.runnable, request=request, benchmarks=change, reporter=run.reporter
        ),
    )
    return timed.model_copy(update={"pruned": repo_id})
