"""The model card: artifacts in, README.md out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from hubprune import __version__
from hubprune.architectures import ARCHITECTURES
from hubprune.artifacts import (
    BaseCheckpoint,
    BenchmarkComparison,
    DropPlan,
    Environment,
    GenerationComparison,
    LayerScores,
    SnippetRun,
    Verification,
    WrittenCheckpoint,
)
from hubprune.endpoint import DEFAULT_ENDPOINT
from hubprune.publishing import free_text, front_matter, measured, overview, provenance
from hubprune.publishing import removal as removed
from hubprune.publishing.context import CardContext
from hubprune.publishing.license import attribution_line
from hubprune.publishing.manifest import checkpoint_tag
from hubprune.publishing.markdown import FILTERS
from hubprune.publishing.privacy import public_recipe, scrub
from hubprune.recipe import Recipe
from hubprune.templates import environment as template_environment
from hubprune.templates import template_folder

__all__ = ["build_context", "render", "skeleton", "template_hash"]

CARD_TEMPLATE = "card.md.jinja"


def build_context(
    recipe: Recipe,
    *,
    base: BaseCheckpoint,
    scores: LayerScores | None,
    plan: DropPlan,
    checkpoint: WrittenCheckpoint,
    verification: Verification,
    benchmarks: BenchmarkComparison | None,
    generation: GenerationComparison | None,
    snippet: SnippetRun | None = None,
    environment: Environment,
    seconds: Mapping[str, float],
    repo_id: str,
    endpoint: str = DEFAULT_ENDPOINT,
    picture: str | None = None,
) -> CardContext:
    """Build the one object that a card is rendered from.

    Args:
        recipe: what was asked for; local paths in it are left out.
        base: pinned to a commit, with what its card says about licence and language.
        scores: None where nothing was scored.
        plan: what was removed.
        checkpoint: sizes, and the files without README.md, recipe.yaml and hubprune.json.
        verification: what a fresh process saw.
        benchmarks, generation, snippet: None where nothing was measured, written or run.
        environment: where the run took place.
        seconds: wall-clock seconds per stage.
        repo_id: where the result goes.
        endpoint: of the Hub that the base is on.
        picture: path of a picture of the scores among the published files; None where there is none.
    """
    name = repo_id.rsplit("/", 1)[-1]
    public, named = public_recipe(recipe, base=base), tuple(recipe.drop.by_hand)
    usage = overview.usage(
        repo_id, base=base, plan=plan, checkpoint=checkpoint, verification=verification, snippet=snippet,
        tag=None if recipe.target.create_pr else checkpoint_tag(checkpoint),
    )  # fmt: skip
    matter = front_matter.metadata(
        base, name=name, methods=plan.methods, has_code=usage.code is not None, scores=scores, benchmarks=benchmarks
    )
    return CardContext(
        front_matter=front_matter.dump(matter),
        title=name,
        base=overview.base_link(base, endpoint=endpoint),
        summary=overview.summary(plan, checkpoint=checkpoint, benchmarks=benchmarks),
        attribution=attribution_line(base.card),
        glance=overview.glance(plan, base=base, checkpoint=checkpoint, benchmarks=benchmarks),
        usage=usage,
        removal=removed.removal(plan, scores=scores, verification=verification, by_hand=named, picture=picture),
        calibration=removed.calibration(scores),
        benchmarks=measured.benchmarks(benchmarks),
        free_text=free_text.section(generation),
        limits=measured.limits(plan, scores=scores, comparison=benchmarks, generation=generation),
        reproduction=provenance.reproduction(public, base=base, environment=environment, seconds=seconds),
        licence=provenance.licence(base, plan=plan),
        citations=provenance.citations(base, plan=plan, has_benchmarks=benchmarks is not None, endpoint=endpoint),
        footer=f"Written by hubprune {environment.hubprune}, card template {template_hash()[:8]}.",
    )


def render(context: CardContext, *, overrides: Path | None = None) -> str:
    """Render a card in one pass; text of models and users is only ever a value in it.

    Args:
        context: what the card says.
        overrides: a folder of the user whose templates win over the shipped ones.
    """
    made = template_environment("card", filters=FILTERS, overrides=overrides)
    return scrub(made.get_template(CARD_TEMPLATE).render(card=context))


def template_hash() -> str:
    """Compute the SHA-256 over the names and bytes of all shipped card templates, in 64 hex digits."""
    digest = hashlib.sha256()
    for path in sorted(template_folder("card").glob("*.jinja")):
        digest.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def skeleton(recipe: Recipe, *, base: BaseCheckpoint, name: str) -> str:
    """Write the front matter as far as it is known before any compute, as a card with nothing below it."""
    has_code = base.config.get("model_type") in ARCHITECTURES
    matter = front_matter.metadata(
        base, name=name, methods=recipe.methods, has_code=has_code, scores=None, benchmarks=None
    )
    return f"---\n{front_matter.dump(matter)}---\n\n# {name}\n\n{recipe.default_name}, hubprune {__version__}\n"
