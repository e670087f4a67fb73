"""How a card writes what it is given: numbers, any text, and the author's own words.

Numbers are written here the way the card shows them; templates only place the results.

Any text is put into Markdown, HTML, Python and code fences so that it comes out as the same text.  Model output, task
names and data set ids are other people's text.  Autoescape does not help here, since each of the four places has rules
of its own: a template names the filter that fits the place.

The author's own words are Markdown that starts no section, holds no HTML and links to nothing that runs.  What is not
allowed is refused with its line instead of being changed: an author should see on the card what was written.  Headings
alone move, below the card's own.
"""

from __future__ import annotations

import html as html_rules
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from hubprune.core.artifacts import Estimate
from hubprune.core.console import SCIENTIFIC, decimal, size
from hubprune.core.errors import RecipeError

if TYPE_CHECKING:
    from markdown_it.token import Token

# ---- numbers -------------------------------------------------------------------------------------------------------


MINUS = "−"
NONE = "–"
"""What a table shows where a number does not exist."""
WHOLE = 10_000
"""From which value on decimals say nothing, as in the perplexity of a model that was lost."""
INTERVAL = "95 % interval "
"""What stands before an interval where no text around it says which one it is."""


def count(number: int) -> str:
    """Write an integer with thousands separators."""
    return f"{number:,}"


def rounded(number: int) -> str:
    """Write an integer of more than six digits short: 3.21 B, 12.35 M."""
    unit, name = (1e9, "B") if number >= 1e9 else (1e6, "M")
    return f"{number / unit:.2f} {name}" if number >= 1e6 else count(number)


def plain(value: float, *, digits: int) -> str:
    """Write a number as `decimal` does, but with a real minus sign, and never a negative zero."""
    text = decimal(value, digits=digits)
    if abs(value) < 1 and float(text) == 0:
        text = text.lstrip("-")
    return text.replace("-", MINUS)


def signed(value: float | None, *, digits: int = 2, unit: str = "") -> str:
    """Write a change with its sign: +0.40, −7.80; a dash where there is none."""
    if value is None:
        return NONE
    text = plain(value, digits=digits)
    sign = "" if value < 0 or (value < 1 and float(text) == 0) else "+"
    return f"{text.replace('> ', f'> {sign}') if text.startswith('>') else sign + text}{unit}"


def span(low: float, high: float, *, digits: int) -> str:
    """Write an interval of changes: −0.7 to +2.1."""
    return f"{signed(low, digits=digits)} to {signed(high, digits=digits)}"


def change_percent(base: float, now: float) -> str:
    """Write the relative change from base to now in percent; a dash where the base is 0."""
    return signed(100 * (now / base - 1) if base else None, unit=" %")


def size_change(base: int, now: int) -> str:
    """Write a change in bytes with its percentage."""
    sign = MINUS if now < base else "+" if now > base else ""
    return f"{sign}{size(abs(now - base))} ({change_percent(base, now)})"


def with_error(value: float, error: float | None, *, digits: int = 4) -> str:
    """Write a value with its standard error, where there is one."""
    if WHOLE <= abs(value) < SCIENTIFIC:
        return f"{value:,.0f}" + (f" ± {error:,.0f}" if error is not None else "")
    return plain(value, digits=digits) + (f" ± {plain(error, digits=digits)}" if error is not None else "")


def interval(estimate: Estimate) -> str | None:
    """Write the 95 % interval of a change in words: −1.84 to +0.32; None where there is none."""
    if estimate.low is None or estimate.high is None:
        return None
    return span(estimate.low, estimate.high, digits=2)


def with_interval(estimate: Estimate, *, unit: str = "", label: str = "") -> str:
    """Write a change with its 95 % interval, where there is one: −0.76 (−1.84 to +0.32)."""
    ends = interval(estimate)
    return signed(estimate.value, unit=unit) + (f" ({label}{ends})" if ends else "")


def p_value(value: float) -> str:
    """Write a p value with its sign of equality: p = 0.012, p < 0.001."""
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}" if value < 0.9995 else "p = 1"


def listing(items: Sequence[int] | Sequence[str]) -> str:
    """Write numbers or names as a list in words: 18, 21 and 22."""
    words = [str(item) for item in items]
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


# ---- any text ---------------------------------------------------------------------------------------------------


ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
ALWAYS_ESCAPED = frozenset("\\`*{}[]#!|~$@^")
LINE_START = re.compile(r"[-+=](?!\d)|\d+[.)](?=\s|$)")
"""A list item, a rule or the line below a heading; the last character that it matches is the one to escape."""
INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
FILLERS = frozenset("\u115f\u1160\u3164\uffa0")
"""Letters that draw nothing, which a category does not tell."""
BACKTICKS = re.compile(r"`+")


def visible(text: str, *, keep: str = "") -> str:
    """Show what draws nothing or turns text around (control, bidi, surrogates) as escapes, but for `keep`."""
    hidden = {c for c in {*text} - {*keep} if unicodedata.category(c) in INVISIBLE or c in FILLERS}
    return "".join(_escape(c) if c in hidden else c for c in text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def md(text: str) -> str:
    """Escape text for a Markdown paragraph, heading, list item or table cell; it becomes one line."""
    line = visible(" ".join(text.split()))
    start = LINE_START.match(line)
    special = start.end() - 1 if start else -1
    written = []
    for at, character in enumerate(line):
        before, after = line[at - 1 : at], line[at + 1 : at + 2]
        escaped = character in ALWAYS_ESCAPED or at == special
        if character == "_":
            escaped = not ((before + after).isascii() and before.isalnum() and after.isalnum())
        # Addresses become links and :names: emoji, in some renderers; a colon before a space or a dot in a number
        # cannot.
        if (character == ":" and after.strip()) or (character == "." and before.isalpha() and after.isalpha()):
            escaped = True
        written.append(ENTITIES.get(character, f"\\{character}" if escaped else character))
    return "".join(written)


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
    return '"' + "".join(f"\\{c}" if c in '"\\' else c if c.isprintable() else _escape(c) for c in text) + '"'


FILTERS: Mapping[str, Callable[..., str]] = {"md": md, "fence": fence, "html": html, "py": py}
"""The filters that card templates may use."""


# ---- notes ---------------------------------------------------------------------------------------------------------


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

    Raises:
        RecipeError: HTML, a link that is no web or mail address, an open code fence, a heading that is underlined, or
            nothing at all; with the line.
    """
    shown = [visible(line, keep=f"\t{JOINERS}") for line in re.split(r"\r\n|\r|\n", text)]
    notes = "\n".join(shown).strip("\n")
    if not notes.strip():
        raise RecipeError(f"{name} hold no text." if name == "The notes" else f"{name} holds no text.")
    if len(notes) > MOST_CHARACTERS:
        raise RecipeError(f"{name}: {len(notes):,} characters are too many for a card, {MOST_CHARACTERS:,} at most.")
    lines = notes.split("\n")
    for token in _tokens(notes)[0]:
        if token.type != "heading_open" or token.map is None:
            continue
        at = token.map[0]
        if not token.markup.startswith("#"):
            raise _refused(name, at, "a heading that is underlined; write it with # instead")
        depth = min(len(token.markup) + DEEPER, DEEPEST)
        lines[at] = lines[at].replace(token.markup, "#" * depth, 1)
    return refuse_unsafe("\n".join(lines), name=name)


def refuse_unsafe(notes: str, *, name: str) -> str:
    """Return notes that went through `check_notes`, such as those in a manifest, which anybody may have edited since.

    Raises:
        RecipeError: something in them is not allowed; with the line.
    """
    if found := next(_problems(notes), None):
        raise _refused(name, *found)
    return notes


def _refused(name: str, line: int, problem: str) -> RecipeError:
    return RecipeError(f"{name}, line {line + 1}: {problem}.", hint="Notes are Markdown without HTML.")


def _tokens(text: str) -> tuple[list[Token], dict[str, object]]:
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    setattr(parser, "validateLink", lambda _: True)  # noqa: B010 - every address is to be seen, and judged here
    seen: dict[str, object] = {}
    return parser.parse(text, seen), seen


def _problems(text: str) -> Iterator[tuple[int, str]]:
    """Find what is not allowed, as lines from 0 and what is wrong there."""
    tokens, seen = _tokens(text)
    lines = text.split("\n")
    for token in tokens:
        start, end = token.map or (0, 0)
        if token.type == "html_block":
            yield start, f"HTML ({_short(token.content)})"
        if token.type == "fence" and token.map:
            closes = end - start > 1 and set(lines[end - 1].strip(" \t>")) == {token.markup[0]}
            if not closes:
                yield start, "a code fence that nothing closes"
        for child in token.children or ():
            if child.type == "html_inline":
                yield start, f"HTML ({_short(child.content)})"
            address = child.attrs.get("href", child.attrs.get("src"))
            if address is not None and not _is_safe(str(address)):
                yield start, f"a link to {_short(str(address))}"
    references = seen.get("references")
    for reference in references.values() if isinstance(references, dict) else ():
        if not _is_safe(str(reference.get("href", ""))):
            yield (reference.get("map") or [0])[0], f"a link to {_short(str(reference.get('href')))}"


def _is_safe(address: str) -> bool:
    try:
        return urlsplit(address.strip()).scheme.lower() in SAFE_SCHEMES
    except ValueError:
        return False


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 40 else f"{line[:39]}…"
