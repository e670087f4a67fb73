"""Take over what the last publish found, on a machine that has not computed it itself.

Only what would come out again is taken: the key of a stage stands for everything that its result depends on, the
machine and the versions included.
"""

from __future__ import annotations

from collections.abc import Callable

from hubprune.cards.fingerprint import Fingerprint
from hubprune.core.artifacts import DropPlan, LayerScores
from hubprune.workflows.publish.republishing.before import Before
from hubprune.workflows.run import Run, scores_key

__all__ = ["offer_results", "scores_before"]

SCORES, ROUNDS = "scores", "rounds"
OFFERED = ("benchmarks", "generation", "speed", "snippet")
"""Stages whose whole result is in a manifest, each under the name of its part."""


def offer_results(before: Before, run: Run) -> None:
    """Hold ready in the run's store what the last publish measured."""
    report = before.record.report
    if report.environment.machine != run.environment.machine:
        run.reporter.note(f"the last publish ran on {report.environment.machine}: nothing that it measured is taken")
        return
    for stage in OFFERED:
        key, value = report.stage_keys.get(stage), getattr(report, stage)
        if key and value is not None:
            run.store.offer(stage, key, value, seconds=report.seconds.get(stage, 0.0), on_take=_say(run))


def scores_before(before: Before | None, run: Run, now: Fingerprint) -> tuple[LayerScores, DropPlan] | None:
    """Return scores and plan of the last publish where this run would find the same; None where it has to score.

    A manifest has no scores of single documents, without which no other plan could tell how sure it is.  So both are
    taken or neither.
    """
    report = before.record.report if before else None
    if report is None or report.scores is None or report.fingerprint.get("pruning") != now["pruning"]:
        return None
    key = scores_key(run)
    if run.store.has(SCORES, key) or report.stage_keys.get(SCORES) != key:
        return None
    for stage in (SCORES, ROUNDS):
        if stage in report.stage_keys:
            run.store.take(stage, report.stage_keys[stage], seconds=report.seconds.get(stage, 0.0))
            _say(run)(stage)
    return report.scores, report.plan


def _say(run: Run) -> Callable[[str], None]:
    return lambda stage: run.reporter.note(f"{stage}: taken from the last publish")
