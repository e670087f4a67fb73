"""What a base's licence asks of a model that is built from it, and whether that was done."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from hubprune.core.artifacts import BaseCard, BaseCheckpoint
from hubprune.core.errors import RecipeError
from hubprune.core.files import write_atomically
from hubprune.core.privacy import is_license
from hubprune.core.recipe import Recipe

NOTICE_NAMES = ("NOTICE", "NOTICE.base-licence")
"""Where the line of a licence goes: into the first of these that the base does not fill itself."""


@dataclass(frozen=True, kw_only=True)
class _Terms:
    """What one licence wants to see, to the letter."""

    name: str
    attribution: str = ""
    """The line to show prominently."""
    notice: str = ""
    """The line of the NOTICE file."""
    prefix: str = ""
    """How the name of the model has to begin."""
    copy: bool = True
    """Whether the text of the licence has to travel with the model."""


def _llama(version: str) -> _Terms:
    notice = (
        f"Llama {version} is licensed under the Llama {version} Community License,"
        " Copyright © Meta Platforms, Inc. All Rights Reserved."
    )
    name = f"Llama {version} Community License Agreement"
    return _Terms(name=name, attribution="Built with Llama", notice=notice, prefix="Llama")


TERMS: Mapping[str, _Terms] = {
    "llama2": _Terms(
        name="LLAMA 2 Community License Agreement",
        notice="Llama 2 is licensed under the LLAMA 2 Community License,"
        " Copyright (c) Meta Platforms, Inc. All Rights Reserved.",
    ),
    "llama3": _Terms(
        name="Meta Llama 3 Community License Agreement",
        attribution="Built with Meta Llama 3",
        notice="Meta Llama 3 is licensed under the Meta Llama 3 Community License,"
        " Copyright © Meta Platforms, Inc. All Rights Reserved.",
        prefix="Llama 3",
    ),
    "llama3.1": _llama("3.1"),
    "llama3.2": _llama("3.2"),
    "llama3.3": _llama("3.3"),
    "llama4": _llama("4"),
    "gemma": _Terms(
        name="Gemma Terms of Use",
        notice="Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms",
    ),
    "apache-2.0": _Terms(name="Apache License 2.0"),
    "mit": _Terms(name="MIT License"),
}
"""Licence id on the Hub -> its terms."""
UNKNOWN = _Terms(name="", copy=False)
NOT_NAMED = ("", "unknown")


def card_in_force(base: BaseCheckpoint, *, given: str | None) -> BaseCard:
    """Return the base's card with its licence; where it names none, with the one that the publisher gave."""
    return base.card if given is None or license_name(base.card) else base.card.model_copy(update={"license": given})


def license_name(card: BaseCard) -> str | None:
    """Return the licence by its most telling name: `license_name` where `license` only says `other`."""
    name = card.license_name if card.license in (None, "other") and card.license_name else card.license
    return None if (name or "").lower() in NOT_NAMED else name


def _terms(card: BaseCard) -> _Terms:
    return TERMS.get((license_name(card) or "").lower(), UNKNOWN)


def check_license(recipe: Recipe, *, base: BaseCheckpoint) -> None:
    """Refuse a licence that is not the one that the base's card names.

    Raises:
        RecipeError: with both.
    """
    given, named = recipe.target.license, license_name(base.card)
    if given and named and given.lower() not in (named.lower(), str(base.card.license).lower()):
        raise RecipeError(
            f"--license {given} is not the licence of {base.name}, whose card says {named}.",
            hint="Leave --license out: a pruned model has its base's licence.",
        )


def check_name(name: str, *, card: BaseCard, allowed: bool = False) -> None:
    """Refuse a name, without its namespace, that the base's licence does not allow; case and hyphens do not count.

    Raises:
        RecipeError: with a name that is allowed.
    """
    prefix, bare = _terms(card).prefix, bare_name(name, card=card)
    if allowed or _begins(name, prefix):
        return
    example = bare if _begins(bare, prefix) else f"{prefix.replace(' ', '-')}-{name}"
    raise RecipeError(
        f"Under the licence {license_name(card)}, {name!r} has to begin with {prefix!r}.",
        hint=f"Pass --repo-id {example}, for example, or --allow-name where the owner allows yours.",
    )


def bare_name(name: str, *, card: BaseCard) -> str:
    """Return a name without the Meta- before it that the licence of the base does not allow there."""
    prefix, bare = _terms(card).prefix, name.removeprefix("Meta-")
    return bare if prefix and _begins(bare, prefix) else name


def _begins(name: str, prefix: str) -> bool:
    name, prefix = (text.lower().replace("-", "").replace("_", "").replace(" ", "") for text in (name, prefix))
    return name.startswith(prefix)


def attribution_line(card: BaseCard) -> str | None:
    """Return the line that the base's licence asks for, or None."""
    return _terms(card).attribution or None


def notice_text(card: BaseCard) -> str | None:
    """Return the one line that the base's licence wants in a NOTICE file, or None."""
    return _terms(card).notice or None


def add_notice(folder: Path, *, card: BaseCard) -> None:
    """Write the line that the licence asks for into a NOTICE file, unless one of the base's own has it."""
    line = notice_text(card)
    texts = (path.read_text(encoding="utf-8", errors="replace") for path in folder.glob("NOTICE*"))
    if line and not any(line in text for text in texts):
        name = next(name for name in NOTICE_NAMES if not (folder / name).exists())
        write_atomically(folder / name, f"{line}\n")


def license_files(base: BaseCheckpoint) -> tuple[str, ...]:
    """List the base's licence files, which are copied at the pinned commit."""
    return tuple(sorted(file.path for file in base.files if is_license(file.path)))


def license_warnings(base: BaseCheckpoint, *, given: str | None) -> Iterator[str]:
    """Say on top of the card where nobody but the publisher, or nobody at all, names a licence."""
    if license_name(base.card):
        return
    if given:
        yield f"the card of the base names no licence; {given} was given by whoever published this model."
    else:
        yield "the card of the base names no licence. Find out what its owner allows before you use this model."


def license_sentences(base: BaseCheckpoint, *, given: str | None, name: str) -> Iterator[str]:
    """Say whose terms apply, what they ask for, and where something of that is missing."""
    card = card_in_force(base, given=given)
    named, terms = license_name(card), _terms(card)
    told = f"{terms.name} ({named})" if terms.name else named
    if named is None:
        yield "The base's card names no licence, so none is given here."
    elif license_name(base.card) is None:
        yield f"The base's card names no licence; whoever published this model gave this one: {told}."
    else:
        yield f"The licence of the base applies: {told}."
    if terms.attribution:
        yield f"{terms.attribution}."
    if terms.notice:
        yield f"A NOTICE file says, as the licence asks: “{terms.notice}”"
    if not _begins(name, terms.prefix):
        yield f"The licence asks for a name that begins with “{terms.prefix}”, which this one does not."
    if license_files(base):
        yield "Copied from the base at its commit, byte for byte: the files below."
    elif terms.copy:
        yield "The licence asks for a copy of its text with the model; the base's repo holds none that could be copied."
