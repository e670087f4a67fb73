"""The model card: artifacts in, README.md out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from hubprune import __version__
from hubprune.cards import free_text, front_matter, measured, overview, provenance
from hubprune.cards import removal as removed
from hubprune.cards.context import CardContext, Glance
from hubprune.cards.license import attribution_line, card_in_force, license_warnings
from hubprune.cards.limits import limits, verdict
from hubprune.cards.manifest import checkpoint_tag
from hubprune.cards.markdown import FILTERS
from hubprune.core.architectures import ARCHITECTURES
from hubprune.core.artifacts import (
    BaseCheckpoint,
    BenchmarkComparison,
    DropPlan,
    Environment,
    GenerationComparison,
    LayerScores,
    PublishReport,
    Refreshed,
    SnippetRun,
    SpeedReport,
    Verification,
    WrittenCheckpoint,
)
from hubprune.core.errors import RecipeError
from hubprune.core.privacy import DEFAULT_ENDPOINT, public_recipe, scrub
from hubprune.core.recipe import Recipe, parse
from hubprune.core.templates import environment as template_environment
from hubprune.core.templates import template_folder

if TYPE_CHECKING:
    from jinja2 import Environment as Templates

__all__ = ["Pictures", "build_context", "check_templates", "context_of", "render", "skeleton", "template_hash"]

CARD_TEMPLATE = "base.md.jinja"


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Paths of a card's pictures among the published files; None where there is none."""

    importance: str | None = None
    benchmarks: str | None = None


def context_of(report: PublishReport, *, pictures: Pictures = Pictures(), overrides: Path | None = None) -> CardContext:
    """Build what a card is rendered from out of the report of a publish.

    Args:
        report: of the run, or as the manifest keeps it; both give the same card.
        pictures: paths of the pictures among the published files.
        overrides: a folder of the user whose templates will win over the shipped ones.
    """
    return build_context(
        parse(Recipe, report.recipe),
        base=report.base,
        scores=report.scores,
        plan=report.plan,
        checkpoint=report.checkpoint,
        verification=report.verification,
        benchmarks=report.benchmarks,
        generation=report.generation,
        speed=report.speed,
        snippet=report.snippet,
        refreshed=report.refreshed,
        environment=report.environment,
        seconds=report.seconds,
        repo_id=report.repo_id,
        endpoint=report.endpoint,
        pictures=pictures,
        notes=report.notes,
        overrides=overrides,
    )


def build_context(
    recipe: Recipe, *, base: BaseCheckpoint, scores: LayerScores | None, plan: DropPlan,
    checkpoint: WrittenCheckpoint, verification: Verification, benchmarks: BenchmarkComparison | None,
    generation: GenerationComparison | None, speed: SpeedReport | None = None, snippet: SnippetRun | None = None,
    refreshed: tuple[Refreshed, ...] = (), environment: Environment, seconds: Mapping[str, float], repo_id: str,
    endpoint: str = DEFAULT_ENDPOINT, pictures: Pictures = Pictures(), notes: str | None = None,
    overrides: Path | None = None,
) -> CardContext:  # fmt: skip
    """Build the one object that a card is rendered from.

    Args:
        recipe: what was asked for; local paths in it are left out.
        checkpoint: sizes, and the files without README.md, recipe.yaml and hubprune.json.
        scores, benchmarks, generation, speed, snippet: None where nothing was scored, measured, written, timed or run.
        refreshed: what later versions wrote anew, oldest first.
        notes: the author's own words, from `notes.read_notes`.
        overrides: a folder of the user whose templates will win over the shipped ones.
    """
    name, given = repo_id.rsplit("/", 1)[-1], recipe.target.license
    terms, repetition = card_in_force(base, given=given), generation.repetition if generation else None
    public, named = public_recipe(recipe, base=base), tuple(recipe.drop.by_hand)
    tag = None if recipe.target.create_pr else checkpoint_tag(checkpoint)
    usage = overview.usage(
        repo_id, base=base, plan=plan, checkpoint=checkpoint, verification=verification, snippet=snippet, tag=tag,
        refreshed=refreshed,
    )  # fmt: skip
    has_code, picture = usage.code is not None, pictures.importance
    matter = front_matter.metadata(
        base, terms=terms, name=name, methods=plan.methods, has_code=has_code, scores=scores, benchmarks=benchmarks
    )
    glance = overview.glance(
        plan, base=base, checkpoint=checkpoint, benchmarks=benchmarks, repetition=repetition, speed=speed
    )
    return CardContext(
        front_matter=front_matter.dump(matter),
        title=name,
        base=overview.base_link(base, endpoint=endpoint),
        summary=overview.summary(plan, checkpoint=checkpoint, benchmarks=benchmarks),
        attribution=attribution_line(terms),
        warnings=tuple(license_warnings(base, given=given)),
        glance=Glance(table=glance, verdict=verdict(benchmarks, repetition=repetition)),
        usage=usage,
        removal=removed.removal(plan, scores=scores, verification=verification, by_hand=named, picture=picture),
        calibration=removed.calibration(scores),
        benchmarks=measured.benchmarks(benchmarks, picture=pictures.benchmarks),
        speed=measured.section(speed),
        free_text=free_text.section(generation),
        limits=limits(plan, scores=scores, comparison=benchmarks, generation=generation, speed=speed),
        notes=notes,
        reproduction=provenance.reproduction(
            public, repo_id=repo_id, tag=tag, base=base, environment=environment, seconds=seconds, refreshed=refreshed
        ),
        licence=provenance.licence(base, plan=plan, name=name, given=given),
        citations=provenance.citations(base, plan=plan, has_benchmarks=benchmarks is not None, endpoint=endpoint),
        footer=f"Written by hubprune {environment.hubprune}, card template {template_hash(overrides)[:8]}.",
    )


# ---- templates ---------------------------------------------------------------------------------------------------


def render(context: CardContext, *, overrides: Path | None = None) -> str:
    """Render a card in one pass; text of models and users is only ever a value in it.

    Args:
        context: what the card says.
        overrides: a folder of the user whose templates win over the shipped ones.

    Raises:
        RecipeError: a template of the user's own does not do.
    """
    with _template_errors(own=overrides is not None):
        made = template_environment("card", filters=FILTERS, overrides=overrides) if overrides else _shipped()
        return scrub(made.get_template(CARD_TEMPLATE).render(card=context))


@cache
def _shipped() -> Templates:
    """Return the environment of the shipped templates, which are parsed once."""
    return template_environment("card", filters=FILTERS)


def check_templates(overrides: Path) -> None:
    """Read a user's folder of card templates before anything is computed.

    Raises:
        RecipeError: no such folder, none of its files takes the place of a shipped one, or one is no template.
    """
    if not overrides.is_dir():
        raise RecipeError(f"{overrides} is no folder of card templates.")
    own, shipped = (_template_names(folder) for folder in (overrides, template_folder("card")))
    if not own & shipped:
        raise RecipeError(
            f"No file in {overrides} takes the place of a card template.",
            hint=f"Name one of {', '.join(sorted(shipped))}.",
        )
    made = template_environment("card", filters=FILTERS, overrides=overrides)
    with _template_errors(own=True):
        for name in sorted(own):
            made.get_template(name)


WRONG_USE = (ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError, ValueError)
"""What Python raises where a template calls something with the wrong thing, or itself."""


@contextmanager
def _template_errors(*, own: bool) -> Iterator[None]:
    """Tell what is wrong with a template of the user's own; in a shipped one it is a bug, and keeps its traceback."""
    from jinja2 import TemplateError, TemplateSyntaxError

    try:
        yield
    except (TemplateError, *WRONG_USE) as error:
        if not own:
            raise
        place = (
            f"{error.name or 'a card template'}, line {error.lineno}" if isinstance(error, TemplateSyntaxError) else ""
        )
        raise RecipeError(
            f"The card cannot be rendered{f' ({place})' if place else ''}: {error or type(error).__name__}.",
            hint="Mend the template and run the command again: what was computed is kept.",
        ) from error


def _template_names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*.jinja")}


def template_hash(overrides: Path | None = None) -> str:
    """Compute the SHA-256 over the names and bytes of all card templates in force, in 64 hex digits."""
    digest = hashlib.sha256()
    folders = [folder for folder in (template_folder("card"), overrides) if folder]
    files = {name: folder / name for folder in folders for name in _template_names(folder)}
    for name, path in sorted(files.items()):
        digest.update(name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def skeleton(recipe: Recipe, *, base: BaseCheckpoint, name: str) -> str:
    """Write the front matter as far as it is known before any compute, as a card with nothing below it."""
    has_code = base.config.get("model_type") in ARCHITECTURES
    matter = front_matter.metadata(
        base, terms=card_in_force(base, given=recipe.target.license), name=name, methods=recipe.methods,
        has_code=has_code, scores=None, benchmarks=None,
    )  # fmt: skip
    return f"---\n{front_matter.dump(matter)}---\n\n# {name}\n\n{recipe.default_name}, hubprune {__version__}\n"
