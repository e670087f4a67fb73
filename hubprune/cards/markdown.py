"""Put any text into Markdown, HTML, Python and code fences so that it comes out as the same text.

Model output, task names and data set ids are other people's text.  Autoescape does not help here, since each of the
four places has rules of its own: a template names the filter that fits the place.
"""

from __future__ import annotations

import html as html_rules
import re
import unicodedata
from collections.abc import Callable, Mapping

__all__ = ["FILTERS", "fence", "html", "md", "py", "visible"]

ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
ALWAYS_ESCAPED = frozenset("\\`*{}[]#!|~$@^")
LINE_START = re.compile(r"[-+=](?!\d)|\d+[.)](?=\s|$)")
"""A list item, a rule or the line below a heading; the last character that it matches is the one to escape."""
INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
FILLERS = frozenset("\u115f\u1160\u3164\uffa0")
"""Letters that draw nothing, which a category does not tell."""
BACKTICKS = re.compile(r"`+")


def visible(text: str, *, keep: str = "") -> str:
    """Show characters that draw nothing or turn the text around (control, bidi, zero width, surrogates) as escapes.

    Args:
        text: any string, lone surrogates included.
        keep: characters that stay as they are all the same.
    """
    return "".join(c if c in keep or not _is_invisible(c) else _escape(c) for c in text)


def _is_invisible(character: str) -> bool:
    return unicodedata.category(character) in INVISIBLE or character in FILLERS


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def md(text: str) -> str:
    """Escape text for a Markdown paragraph, heading, list item or table cell; it becomes one line."""
    line = visible(" ".join(text.split()))
    start = LINE_START.match(line)
    return "".join(_md_character(line, i, start=start.end() - 1 if start else -1) for i in range(len(line)))


def _md_character(line: str, at: int, *, start: int) -> str:
    character = line[at]
    if character in ENTITIES:
        return ENTITIES[character]
    if character in ALWAYS_ESCAPED or at == start:
        return f"\\{character}"
    before, after = line[at - 1 : at], line[at + 1 : at + 2]
    if character == "_" and not (_is_word(before) and _is_word(after)):
        return r"\_"
    # Addresses become links and :names: emoji, in some renderers; a colon before a space or a dot in a number cannot.
    if (character == ":" and after.strip()) or (character == "." and before.isalpha() and after.isalpha()):
        return f"\\{character}"
    return character


def _is_word(character: str) -> bool:
    return character.isascii() and character.isalnum()


def fence(text: str, language: str = "text") -> str:
    """Put text into a code fence, verbatim, that is longer than any run of backticks in it."""
    shown = visible(text.replace("\r\n", "\n"), keep="\n\t")
    marks = "`" * max(3, 1 + max((len(run) for run in BACKTICKS.findall(shown)), default=0))
    return f"{marks}{language}\n{shown}\n{marks}"


def html(text: str) -> str:
    """Escape text for HTML content and attribute values."""
    return html_rules.escape(visible(text, keep="\n\t"), quote=True)


def py(text: str) -> str:
    """Write text as a Python string literal in double quotes."""
    return '"' + "".join(_py_character(c) for c in text) + '"'


def _py_character(character: str) -> str:
    if character in '"\\':
        return f"\\{character}"
    return character if character.isprintable() else _escape(character)


FILTERS: Mapping[str, Callable[..., str]] = {"md": md, "fence": fence, "html": html, "py": py}
"""The filters that card templates may use."""
