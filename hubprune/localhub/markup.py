"""Render the Markdown of a card as the Hub does: GitHub's tables, code in colour, HTML only as far as it is harmless.

Whatever a card holds, what comes out has no script, no style, no form and no frame, and loads images of its own repo
only.  The pages that show it forbid all of these once more, by their Content-Security-Policy.
"""

import posixpath
import re
from collections.abc import Callable
from urllib.parse import unquote, urlsplit

import nh3
from markdown_it import MarkdownIt
from markdown_it.token import Token
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.token import STANDARD_TYPES

AddressOf = Callable[[str], str]
"""Where a page serves a file of the repo, by its path."""

_LANGUAGES = ("bash", "bibtex", "json", "python", "yaml")
_FORMATTER = HtmlFormatter(nowrap=True)
_HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6")
_CENTRED = ("div", "p", *_HEADINGS)
_TAGS = nh3.ALLOWED_TAGS | {"picture", "source"}
_ATTRIBUTES = {
    **nh3.ALLOWED_ATTRIBUTES,
    "source": {"media", "srcset"},
    **{tag: nh3.ALLOWED_ATTRIBUTES.get(tag, set()) | {"align"} for tag in _CENTRED},
    **{tag: {"align", "id"} for tag in _HEADINGS},
}
_CLASSES = {"span": {name for name in STANDARD_TYPES.values() if name}}


def render(text: str, *, address_of: AddressOf) -> str:
    """Return the HTML of a card's Markdown, without its front matter.

    Args:
        text: other people's text; what is not harmless is left out.
        address_of: used for links and images that are relative to the repo; images from elsewhere are not loaded.
    """

    def attribute(tag: str, name: str, value: str) -> str | None:
        """Return what an attribute may be; None for nothing."""
        if (tag, name) in (("img", "src"), ("source", "srcset")):
            return _in_repo(value, address_of)
        if (tag, name) == ("a", "href"):
            return value if value.startswith("#") or urlsplit(value).scheme else _in_repo(value, address_of)
        return value

    made = _with_classes_and_anchors(text)
    return nh3.clean(
        made,
        tags=_TAGS,
        attributes=_ATTRIBUTES,
        attribute_filter=attribute,
        allowed_classes=_CLASSES,
        link_rel="noopener noreferrer nofollow",
        url_schemes={"http", "https", "mailto"},
    )


def _with_classes_and_anchors(text: str) -> str:
    parser = MarkdownIt("commonmark", {"html": True, "highlight": _highlighted}).enable(["table", "strikethrough"])
    tokens = parser.parse(text)
    for place, token in enumerate(tokens):
        _aligned(token)
        if token.type == "heading_open":
            token.attrSet("id", _anchor(tokens[place + 1].content))
    rendered: str = parser.renderer.render(tokens, parser.options, {})
    return rendered


def _aligned(token: Token) -> None:
    """Say how a cell is aligned by an attribute: styles within the page are forbidden."""
    style = token.attrs.pop("style", None)
    if style is not None:
        token.attrSet("align", str(style).rpartition(":")[2])


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w-]", "", heading.strip().lower().replace(" ", "-"))


def _highlighted(code: str, language: str, _: str) -> str:
    """Colour code in the few languages of cards; others may cost more time than they are worth."""
    return highlight(code, get_lexer_by_name(language), _FORMATTER) if language in _LANGUAGES else ""


def _in_repo(address: str, address_of: AddressOf) -> str | None:
    """Return where a file of the repo is served; None for an address that leads out of it."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return None
    path = posixpath.normpath(unquote(parts.path))
    outside = parts.scheme or parts.netloc or path.startswith(("/", "..")) or "\\" in path or path == "."
    return None if outside else address_of(path)
