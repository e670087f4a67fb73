"""The model card: the report of a publish in, README.md out.

At the end stands what a card depends on, in named parts of a fingerprint, so that the next publish knows what changed
without computing anything.  A fingerprint maps parts to named values: a commit, a version, a setting as the recipe has
it, or a SHA-256.  It is part of hubprune.json.  What may differ between two machines that are asked for the same is no
part of it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from hubprune.cards import free_text, front_matter, measured, overview, provenance, timed
from hubprune.cards import removal as removed
from hubprune.cards.context import CardContext, Glance, SiblingContext
from hubprune.cards.limits import limits, purpose, verdict
from hubprune.cards.manifest import checkpoint_tag
from hubprune.cards.markdown import FILTERS
from hubprune.cards.provenance import attribution_line, card_in_force, license_warnings
from hubprune.cards.sibling import relation
from hubprune.cards.target import targeted
from hubprune.core import __version__
from hubprune.core.architectures import ARCHITECTURES
from hubprune.core.artifacts import BaseCheckpoint, PublishReport, SiblingKind, SiblingLink
from hubprune.core.errors import RecipeError
from hubprune.core.privacy import public_recipe, scrub
from hubprune.core.recipe import Recipe, parse
from hubprune.core.specs import FORMERLY
from hubprune.core.templates import environment as template_environment
from hubprune.core.templates import template_folder

if TYPE_CHECKING:
    from jinja2 import Environment as Templates

CARD_TEMPLATE, SIBLING_TEMPLATE = "base.md.jinja", "sibling.md.jinja"


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Paths of a card's pictures among the published files; None where there is none."""

    importance: str | None = None
    benchmarks: str | None = None
    frontier: str | None = None


def context_of(report: PublishReport, *, pictures: Pictures = Pictures(), overrides: Path | None = None) -> CardContext:
    """Build the one object that a card is rendered from.

    Args:
        report: of the run, or as the manifest keeps it; both give the same card.  Local paths in its recipe are left
            out.
        pictures: paths of the pictures among the published files.
        overrides: a folder of the user whose templates will win over the shipped ones.
    """
    recipe, base, plan, scores = parse(Recipe, report.recipe), report.base, report.plan, report.scores
    benchmarks, generation = report.benchmarks, report.generation
    repetition = generation.repetition if generation else None
    has_chat = generation is not None and generation.chat is not None
    name, given = report.repo_id.rsplit("/", 1)[-1], recipe.target.license
    terms = card_in_force(base, given=given)
    tag = None if recipe.target.create_pr else checkpoint_tag(report.checkpoint)
    usage = overview.usage(report, tag=tag)
    matter = front_matter.metadata(
        base, terms=terms, name=name, methods=plan.methods, has_code=usage.code is not None, scores=scores,
        benchmarks=benchmarks,
    )  # fmt: skip
    return CardContext(
        front_matter=front_matter.dump(matter),
        title=name,
        base=overview.base_link(base, endpoint=report.endpoint),
        summary=overview.summary(report),
        beside=overview.beside(report.beside, endpoint=report.endpoint),
        attribution=attribution_line(terms),
        warnings=tuple(license_warnings(base, given=given)),
        glance=Glance(table=overview.glance(report), verdict=verdict(benchmarks, repetition=repetition)),
        purpose=purpose(benchmarks, repetition=repetition),
        usage=usage,
        removal=removed.removal(
            plan, scores=scores, verification=report.verification, by_hand=tuple(recipe.drop.by_hand),
            adopted=recipe.adopted, endpoint=report.endpoint, picture=pictures.importance,
        ),
        target=targeted(plan, picture=pictures.frontier),
        calibration=removed.calibration(scores.calibration if scores else None, endpoint=report.endpoint),
        benchmarks=measured.benchmarks(benchmarks, picture=pictures.benchmarks, has_chat=has_chat),
        speed=timed.section(report.speed),
        free_text=free_text.section(generation),
        limits=limits(plan, scores=scores, comparison=benchmarks, generation=generation, speed=report.speed),
        notes=report.notes,
        reproduction=provenance.reproduction(report, recipe=public_recipe(recipe, base=base), tag=tag),
        licence=provenance.licence(base, plan=plan, name=name, given=given),
        citations=provenance.citations(base, plan, endpoint=report.endpoint, measured=benchmarks is not None),
        footer=f"Written by hubprune {report.environment.hubprune}, card template {template_hash(overrides)[:8]}.",
    )  # fmt: skip


def render(context: CardContext | SiblingContext, *, overrides: Path | None = None) -> str:
    """Render a card in one pass; text of models and users is only ever a value in it.

    Raises:
        RecipeError: a template of the user's own does not do.
    """
    with _template_errors(own=overrides is not None):
        made = template_environment("card", filters=FILTERS, overrides=overrides) if overrides else _shipped()
        template = CARD_TEMPLATE if isinstance(context, CardContext) else SIBLING_TEMPLATE
        return scrub(made.get_template(template).render(card=context))


@cache
def _shipped() -> Templates:
    """Return the environment of the shipped templates, which are parsed once."""
    return template_environment("card", filters=FILTERS)


def skeleton(
    recipe: Recipe, *, base: BaseCheckpoint, name: str, sibling_of: tuple[SiblingKind, str] | None = None
) -> str:
    """Write the front matter as far as it is known before any compute, as a card with nothing below it.

    `sibling_of` is the kind of a sibling and the repo id of the pruned model that it will be made of.
    """
    has_code = base.config.get("model_type") in ARCHITECTURES
    matter = front_matter.metadata(
        base, terms=card_in_force(base, given=recipe.target.license), name=name, methods=recipe.methods,
        has_code=has_code, scores=None, benchmarks=None,
    )  # fmt: skip
    if sibling_of:
        matter |= relation(sibling_of[1], kind=sibling_of[0], tags=matter["tags"])
    return f"---\n{front_matter.dump(matter)}---\n\n# {name}\n\n{recipe.default_name}, hubprune {__version__}\n"


# ---- templates ---------------------------------------------------------------------------------------------------


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
        place = ""
        if isinstance(error, TemplateSyntaxError):
            place = f" ({error.name or 'a card template'}, line {error.lineno})"
        raise RecipeError(
            f"The card cannot be rendered{place}: {error or type(error).__name__}.",
            hint="Mend the template and run the command again: what was computed is kept.",
        ) from error


def template_hash(overrides: Path | None = None) -> str:
    """Compute the SHA-256 over the names and bytes of all card templates in force, in 64 hex digits."""
    digest = hashlib.sha256()
    folders = [folder for folder in (template_folder("card"), overrides) if folder]
    files = {name: folder / name for folder in folders for name in _template_names(folder)}
    for name, path in sorted(files.items()):
        digest.update(name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _template_names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*.jinja")}


# ---- fingerprint -------------------------------------------------------------------------------------------------


Fingerprint = Mapping[str, Mapping[str, str]]
CARD_PART = "card"
"""The part that nothing depends on but the card: another of it needs no computing."""
DIGEST = re.compile(r"[0-9a-f]{64}")
COMMIT = re.compile(r"[0-9a-f]{40}")
LONGEST = 40
"""Characters of a value that is shown whole."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """One value of a fingerprint that is another now."""

    part: str
    name: str
    before: str | None
    """None where there was none."""
    now: str | None


def sha256(text: str) -> str:
    """Compute the SHA-256 of a text, in 64 hex digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def card_part(*, notes: str | None, templates: Path | None, beside: Sequence[SiblingLink] = ()) -> dict[str, str]:
    """Say what a card depends on besides what was found."""
    named = ", ".join(f"{link.repo_id}: {link.told}" for link in beside)
    return {
        "templates": template_hash(templates), **({"notes": sha256(notes)} if notes else {}),
        **({"siblings": sha256(named)} if named else {}),
    }  # fmt: skip


def snippet_part(templates: Path | None) -> dict[str, str]:
    """Say what the code of a card depends on, which is run before it is shown; `templates` as in `card_part`."""
    own = templates / overview.SNIPPET_TEMPLATE if templates else None
    path = own if own and own.is_file() else template_folder("card") / overview.SNIPPET_TEMPLATE
    return {"template": hashlib.sha256(path.read_bytes()).hexdigest()}


def changes(before: Fingerprint, now: Fingerprint) -> tuple[Change, ...]:
    """List what differs between two fingerprints, part by part; a setting that was renamed is no difference."""
    before = {part: {_today(name): value for name, value in values.items()} for part, values in before.items()}
    return tuple(
        Change(part=part, name=name, before=old.get(name), now=new.get(name))
        for part in dict.fromkeys((*now, *before))
        for old, new in [(before.get(part, {}), now.get(part, {}))]
        for name in dict.fromkeys((*new, *old))
        if old.get(name) != new.get(name)
    )


def _today(name: str) -> str:
    *part, setting = name.rsplit(" ", 1)
    return " ".join([*part, FORMERLY.get(setting, setting)])


def told(found: tuple[Change, ...]) -> str:
    """Say in one line what changed, as in `base: commit 1a2b3c4d -> 5e6f7a8b; benchmarks: limit 100 -> 200`."""
    return "; ".join(f"{part}: {', '.join(map(_words, rows))}" for part, rows in groupby(found, lambda c: c.part))


def _words(change: Change) -> str:
    before, now = _short(change.before), _short(change.now)
    if change.before is None:
        return " ".join(filter(None, ("new", change.name, now)))
    if change.now is None:
        return f"no {change.name} any more"
    return f"{change.name} changed" if before is None or now is None else f"{change.name} {before} -> {now}"


def _short(value: str | None) -> str | None:
    """Shorten a commit; None for what tells nobody anything."""
    if value is None or DIGEST.fullmatch(value) or len(value) > LONGEST:
        return None
    return value[:8] if COMMIT.fullmatch(value) else value
