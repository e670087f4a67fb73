"""Cards as the Hub reads them: the YAML at the top is checked before a commit, the Markdown below becomes HTML.

GitHub's tables, code in colour, HTML only as far as it is harmless: whatever a card holds, what comes out has no
script, no style, no form and no frame, and loads images of its own repo only. The pages that show it forbid all of
these once more, by their Content-Security-Policy.
"""

import json
import posixpath
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote, urlsplit

import nh3
import yaml
from markdown_it import MarkdownIt
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.token import STANDARD_TYPES

_FRONT_MATTER = re.compile(r"\A---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", re.DOTALL | re.MULTILINE)
_STRINGS = ("library_name", "pipeline_tag", "license_name", "license_link")
_STRINGS_OR_LISTS = ("license", "language", "base_model", "datasets", "metrics", "tags")

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
_SCHEMES = {"http", "https", "mailto"}


class _Loader(yaml.SafeLoader):
    """Reads plain words as the Hub does, by YAML 1.2: `no` is a language, 0123 has no octal digits, 1:30 is a text."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012


def _integer(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node))
    base = {"0o": 8, "0x": 16}.get(text[:2])
    return int(text[2:], base) if base else int(text)


_PLAIN = (
    ("null", r"~|null|Null|NULL|", "~nN"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
     "-+0123456789."),
    ("merge", "<<", "<"),
)  # fmt: skip
"""What is no text although it has no quotes: the core schema, and merges, which the Hub's reader knows as well."""
for _name, _pattern, _first in _PLAIN:
    starts = [*_first, *([""] if _name == "null" else [])]
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(rf"(?:{_pattern})\Z"), starts)
_Loader.add_constructor("tag:yaml.org,2002:int", _integer)


class MetadataError(ValueError):
    """The metadata cannot be accepted; the text says why."""


def read_metadata(readme: str) -> dict[str, Any]:
    """Return the metadata of a card as JSON values, empty when it has none.

    Raises MetadataError when it is not YAML, not a mapping, or has a value that the Hub would not take.
    """
    match = _FRONT_MATTER.search(readme.removeprefix("\ufeff"))
    try:
        metadata = yaml.load(match[1], Loader=_Loader) if match else None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a number of very many digits
        raise MetadataError(str(error)) from error
    if metadata is None:
        return {}
    if not isinstance(metadata, dict):
        raise MetadataError("YAML metadata has to be a mapping")
    plain = as_json(metadata)
    for key in _STRINGS:
        if not isinstance(plain.get(key, ""), str):
            raise MetadataError(f'"{key}" must be a string')
    for key in _STRINGS_OR_LISTS:
        value = plain.get(key, "")
        if not all(isinstance(item, str) for item in (value if isinstance(value, list) else [value])):
            raise MetadataError(f'"{key}" must be a string or a list of strings')
    if not isinstance(index := plain.get("model-index", []), list):
        raise MetadataError('"model-index" must be a list')
    for number, model in enumerate(index):
        _check_model(model, f"model-index[{number}]")
    return plain


def without_metadata(readme: str) -> str:
    """Return the text of a card below its metadata."""
    return _FRONT_MATTER.sub("", readme.removeprefix("\ufeff"), count=1)


def tags(metadata: dict[str, Any]) -> list[str]:
    """Return the tags that the Hub derives from a card: its own, and one for each licence, language and origin."""
    found = [str(metadata["library_name"])] if metadata.get("library_name") else []
    found += [*_listed(metadata, "tags"), *_listed(metadata, "language")]
    found += [f"dataset:{name}" for name in _listed(metadata, "datasets")]
    found += [f"base_model:{name}" for name in _listed(metadata, "base_model")]
    found += [f"license:{name}" for name in _listed(metadata, "license")]
    return list(dict.fromkeys(found))


def as_json(metadata: dict[Any, Any]) -> dict[str, Any]:
    """Write as text what YAML has and JSON lacks: dates, infinities, halves of surrogate pairs."""
    try:
        text = json.dumps(metadata, default=str, ensure_ascii=False).encode(errors="replace")
        plain: dict[str, Any] = json.loads(text, parse_constant=str)
    except (TypeError, ValueError, RecursionError) as error:  # a date as a key, or a list that contains itself
        raise MetadataError(f"YAML metadata cannot be written as JSON: {error}") from error
    return plain


def _listed(metadata: dict[str, Any], key: str) -> list[str]:
    value = metadata.get(key) or []
    return [str(item) for item in (value if isinstance(value, list) else [value])]


def _check_model(model: Any, where: str) -> None:
    if not isinstance(model, dict) or not isinstance(model.get("name"), str):
        raise MetadataError(f'"{where}.name" is required')
    if not isinstance(results := model.get("results"), list):
        raise MetadataError(f'"{where}.results" must be a list')
    for place, result in enumerate(results):
        for key, needed in (("task", "type"), ("dataset", "name"), ("dataset", "type")):
            part = result.get(key) if isinstance(result, dict) else None
            if not isinstance(part, dict) or not part.get(needed):
                raise MetadataError(f'"{where}.results[{place}].{key}.{needed}" is required')
        if not isinstance(metrics := result.get("metrics"), list):
            raise MetadataError(f'"{where}.results[{place}].metrics" must be a list')
        for number, metric in enumerate(metrics):
            if not isinstance(metric, dict) or not metric.get("type") or metric.get("value") is None:
                raise MetadataError(f'"{where}.results[{place}].metrics[{number}]" needs a type and a value')


def render(text: str, *, address_of: AddressOf) -> str:
    """Return the HTML of a card's Markdown, without its front matter; what of it is not harmless is left out.

    `address_of` is for links and images that are relative to the repo; images from elsewhere are not loaded.
    """

    def attribute(tag: str, name: str, value: str) -> str | None:
        """Return what an attribute may be; None for nothing."""
        if (tag, name) in (("img", "src"), ("source", "srcset")):
            return _in_repo(value, address_of)
        if (tag, name) == ("a", "href"):
            return value if value.startswith("#") or urlsplit(value).scheme else _in_repo(value, address_of)
        return value

    parser = MarkdownIt("commonmark", {"html": True, "highlight": _highlighted}).enable(["table", "strikethrough"])
    tokens = parser.parse(text)
    for place, token in enumerate(tokens):
        # How a cell is aligned is said by an attribute: styles within the page are forbidden.
        if (style := token.attrs.pop("style", None)) is not None:
            token.attrSet("align", str(style).rpartition(":")[2])
        if token.type == "heading_open":
            heading = tokens[place + 1].content
            token.attrSet("id", re.sub(r"[^\w-]", "", heading.strip().lower().replace(" ", "-")))
    html, rel, schemes = parser.renderer.render(tokens, parser.options, {}), "noopener noreferrer nofollow", _SCHEMES
    allowed: dict[str, Any] = {"tags": _TAGS, "attributes": _ATTRIBUTES, "allowed_classes": _CLASSES}
    return nh3.clean(html, **allowed, attribute_filter=attribute, link_rel=rel, url_schemes=schemes)


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
