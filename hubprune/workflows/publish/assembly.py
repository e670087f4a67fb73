"""Make a repo of a checkpoint: card, pictures, notices, recipe and manifest beside the weights."""

from __future__ import annotations

from pathlib import Path

from hubprune.cards import card, manifest
from hubprune.cards.eval_results import add_eval_results
from hubprune.cards.license import add_notice, card_in_force
from hubprune.core.artifacts import PublishReport, RepoFile
from hubprune.core.errors import MissingDependencyError
from hubprune.core.files import write_atomically
from hubprune.core.privacy import scrub
from hubprune.plots import pictures
from hubprune.workflows.run import Run

__all__ = ["assemble"]


def assemble(
    run: Run, folder: Path, report: PublishReport, *, card_template: Path | None = None
) -> tuple[RepoFile, ...]:
    """Add to a checkpoint what makes it a repo: tasks, notice, pictures, card, recipe, manifest; return all files."""
    for name, text in run.task_texts.items():
        (folder / "tasks" / name).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "tasks" / name, scrub(text))
    add_notice(folder, card=card_in_force(run.base, given=run.recipe.target.license))
    add_eval_results(folder, report.benchmarks, session=run.session, warn=run.reporter.warn)
    context = card.context_of(report, pictures=_pictures(run, folder, report), overrides=card_template)
    write_atomically(folder / manifest.CARD, card.render(context, overrides=card_template))
    manifest.write_recipe(folder, recipe=run.pinned_recipe, report=report)
    return manifest.write_manifest(folder, report=report, template_hash=card.template_hash(card_template))


def _pictures(run: Run, folder: Path, report: PublishReport) -> card.Pictures:
    """Draw scores and changes for the card; without matplotlib it has their tables alone."""
    base = report.base.name
    try:
        return card.Pictures(
            importance=pictures.draw_for_card(report.scores, report.plan, folder, base=base) if report.scores else None,
            benchmarks=pictures.draw_changes(report.benchmarks, folder, base=base) if report.benchmarks else None,
        )
    except MissingDependencyError as error:
        run.reporter.warn(f"The card gets no pictures: {error.message} {error.hint or ''}")
        return card.Pictures()
