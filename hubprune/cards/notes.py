"""The author's own words on a card: Markdown that starts no section, holds no HTML and links to nothing that runs.

What is not allowed is refused with its line instead of being changed: an author should see on the card what was
written.  Headings alone move, below the card's own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from hubprune.cards.markdown import visible
from hubprune.core.errors import RecipeError

if TYPE_CHECKING:
    from markdown_it.token import Token

__all__ = ["check_notes", "read_notes", "refuse_unsafe"]

MOST_CHARACTERS = 100_000
DEEPER = 2
"""Levels that a heading moves down: the section is one of level 2."""
DEEPEST = 6
SAFE_SCHEMES = ("", "http", "https", "mailto")
JOINERS = "\u200c\u200d"
"""Characters that draw nothing and belong to emoji and to the scripts of many languages."""


def read_notes(path: Path) -> str:
    """Read and check a file of notes.

    Raises:
        RecipeError: it cannot be read, or something in it is not allowed.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"Cannot read the notes in {path}: {error}") from error
    return check_notes(text, name=str(path))


def check_notes(text: str, *, name: str = "The notes") -> str:
    """Return notes as the card takes them.

    Args:
        text: Markdown.
        name: what an error calls them.

    Raises:
        RecipeError: HTML, a link that is no web or mail address, an open code fence, a heading that is underlined, or
            nothing at all; with the line.
    """
    lines = "\n".join(visible(line, keep=f"\t{JOINERS}") for line in re.split(r"\r\n|\r|\n", text))
    notes = lines.strip("\n")
    if not notes.strip():
        raise RecipeError(f"{name} hold no text." if name == "The notes" else f"{name} holds no text.")
    if len(notes) > MOST_CHARACTERS:
        raise RecipeError(f"{name}: {len(notes):,} characters are too many for a card, {MOST_CHARACTERS:,} at most.")
    return refuse_unsafe(_lower_headings(notes, name=name), name=name)


def refuse_unsafe(notes: str, *, name: str) -> str:
    """Return notes that went through `check_notes`, such as those in a manifest, which anybody may have edited since.

    Raises:
        RecipeError: something in them is not allowed; with the line.
    """
    for line, problem in _problems(notes):
        raise _refused(name, line, problem)
    return notes


def _refused(name: str, line: int, problem: str) -> RecipeError:
    return RecipeError(f"{name}, line {line + 1}: {problem}.", hint="Notes are Markdown without HTML.")


def _tokens(text: str) -> tuple[list[Token], dict[str, object]]:
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    setattr(parser, "validateLink", lambda _: True)  # noqa: B010 - every address is to be seen, and judged here
    seen: dict[str, object] = {}
    return parser.parse(text, seen), seen


def _lower_headings(text: str, *, name: str) -> str:
    lines = text.split("\n")
    for token in _tokens(text)[0]:
        if token.type != "heading_open" or token.map is None:
            continue
        at = token.map[0]
        if not token.markup.startswith("#"):
            raise _refused(name, at, "a heading that is underlined; write it with # instead")
        depth = min(len(token.markup) + DEEPER, DEEPEST)
        lines[at] = lines[at].replace(token.markup, "#" * depth, 1)
    return "\n".join(lines)


def _problems(text: str) -> Iterator[tuple[int, str]]:
    """Find what is not allowed, as lines from 0 and what is wrong there."""
    tokens, seen = _tokens(text)
    lines = text.split("\n")
    for token in tokens:
        at = token.map[0] if token.map else 0
        if token.type == "html_block":
            yield at, f"HTML ({_short(token.content)})"
        if token.type == "fence" and token.map and not _is_closed(token, lines[token.map[1] - 1]):
            yield at, "a code fence that nothing closes"
        for child in token.children or ():
            yield from ((at, problem) for problem in _inline_problems(child))
    references = seen.get("references")
    for reference in references.values() if isinstance(references, dict) else ():
        if not _is_safe(str(reference.get("href", ""))):
            yield (reference.get("map") or [0])[0], f"a link to {_short(str(reference.get('href')))}"


def _is_closed(token: Token, last: str) -> bool:
    marks = last.strip(" \t>")
    return token.map is not None and token.map[1] - token.map[0] > 1 and set(marks) == {token.markup[0]}


def _inline_problems(token: Token) -> Iterator[str]:
    if token.type == "html_inline":
        yield f"HTML ({_short(token.content)})"
    address = token.attrs.get("href", token.attrs.get("src"))
    if address is not None and not _is_safe(str(address)):
        yield f"a link to {_short(str(address))}"


def _is_safe(address: str) -> bool:
    try:
        return urlsplit(address.strip()).scheme.lower() in SAFE_SCHEMES
    except ValueError:
        return False


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 40 else f"{line[:39]}…"
