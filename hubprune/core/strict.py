"""Read JSON of strangers and YAML that a person wrote, so that no two readers read two different things out of it.

What the safe loader of PyYAML does not see to: a key that stands there twice, nesting so deep that a parser in C runs
out of its stack, aliases that stand for more than memory holds, and values such as the date 2024-13-45, which raise
whatever Python raises.  All of it is one error with the file and, where there is one, the line.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Hashable, Iterable, Iterator
from contextlib import suppress
from typing import Any, NoReturn

import yaml

from hubprune.core.errors import CheckpointError, HubpruneError, RecipeError

HALF_PAIR = re.compile(r"[\ud800-\udfff]")


def parse_json(text: bytes, *, where: str) -> dict[str, Any]:
    """Parse a JSON object in which no key occurs twice and every number and text is one that all readers know.

    Raises:
        CheckpointError: it is no JSON object, or two readers could read two different things out of it.
    """

    def checked(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """Make an object of its members, each named once and sound."""
        made = dict(pairs)
        if len(made) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise CheckpointError(f"{where} has the key {twice!r:.80} twice.")
        for key, value in made.items():
            if odd := next(_oddities([key, value]), None):
                raise CheckpointError(f"{where} has {odd} under {key!r:.80}.")
        return made

    try:
        # Decoded here, since json would guess UTF-16 and UTF-32 too, which no other reader of these files does.
        value = json.loads(text.decode(), object_pairs_hook=checked)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where} is no valid JSON: {error}.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{where} is no JSON object.")
    return value


def _oddities(values: Iterable[Any]) -> Iterator[str]:
    """Name what of some values only some readers take for JSON; objects among them were checked when they were made."""
    for value in values:
        if isinstance(value, list):
            yield from _oddities(value)
        elif isinstance(value, float) and not math.isfinite(value):
            yield f"{value}, which is no number of JSON,"
        elif isinstance(value, str) and HALF_PAIR.search(value):
            yield "half of a surrogate pair, which is no text,"


# ---- yaml ------------------------------------------------------------------------------------------------------------

DEEPEST = 100
"""Levels of lists and mappings inside each other; PyYAML reads some 300, its C parser ends the process at 40,000."""
MOST_VALUES = 1_000_000
"""Values of a file with every alias written out."""


class TaggedText(str):
    """A text behind a tag that YAML itself does not know, as in `!function utils.f`."""

    tag: str


def parse_yaml(data: bytes, *, where: str, error: type[HubpruneError] = RecipeError, tags: bool = False) -> Any:
    """Parse one YAML document.

    Args:
        data: UTF-8, with a byte order mark or without.
        where: what the document is called in errors.
        error: what is raised.
        tags: whether texts may have tags of their own; they come back as `TaggedText`.

    Raises:
        HubpruneError: of the given kind; it is no YAML, or two readers could read two different things out of it.
    """
    refuse_depth(data, where=where, error=error)
    try:
        text = data.decode("utf-8-sig")
        value = yaml.load(text, Loader=_Tagged if tags else _Strict)
        _refuse_bomb(value)
    except UnicodeDecodeError as caught:
        raise error(
            f"Cannot read {where}: it is not UTF-8, byte {caught.start} is {data[caught.start]:#04x}."
        ) from caught
    except yaml.YAMLError as caught:
        mark = getattr(caught, "problem_mark", None) or getattr(caught, "context_mark", None)
        said = getattr(caught, "problem", None) or getattr(caught, "reason", None) or str(caught)
        place, reason = f", line {mark.line + 1}" if mark else "", " ".join(str(said).split())
        raise error(f"Cannot read {where}{place}: {reason}.") from caught
    return value


def refuse_depth(data: bytes, *, where: str, error: type[HubpruneError]) -> None:
    """Refuse a document whose lists and mappings nest deeper than `DEEPEST`; all else that is wrong is left to others.

    Raises:
        HubpruneError: of the given kind.
    """
    depth = 0
    # The parser goes on step by step whatever the depth; what makes values of its steps does not.
    with suppress(yaml.YAMLError, UnicodeError):
        for event in yaml.parse(data, Loader=_Events):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:
                place = f"{where}, line {event.start_mark.line + 1}" if event.start_mark else where
                raise error(f"Cannot read {place}: lists and mappings are nested deeper than {DEEPEST} levels.")


def _refuse_bomb(value: Any) -> None:
    """Refuse aliases that contain themselves, or stand for so much that a copy would not fit into memory."""
    sizes: dict[int, int] = {}
    open_now: set[int] = set()

    def size(item: Any) -> int:
        """Count values; the depth is known to be small."""
        if not isinstance(item, (dict, list, set, tuple)):
            return 1
        if id(item) in open_now:
            raise yaml.YAMLError("an alias stands inside what it is an alias of")
        if id(item) not in sizes:
            open_now.add(id(item))
            parts = [*item.keys(), *item.values()] if isinstance(item, dict) else item
            sizes[id(item)] = 1 + sum(map(size, parts))
            open_now.remove(id(item))
        return sizes[id(item)]

    if size(value) > MOST_VALUES:
        raise yaml.YAMLError(f"its aliases stand for more than {MOST_VALUES:,} values")


_Events: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Strict(_Events):  # type: ignore[misc]
    """The safe loader, which names the line of whatever it cannot make a value of."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Make the value of a node."""
        try:
            value = super().construct_object(node, deep=deep)
            if isinstance(value, int):
                str(value)  # of an int in base 16 that is too long to be written in base 10
        except yaml.YAMLError:
            raise
        except Exception as error:  # from int(), float(), date(), a table of booleans, base64 and others to come
            kind = node.tag.removeprefix("tag:yaml.org,2002:")
            shown = f"{str(node.value)[:40]!r}" if isinstance(node, yaml.ScalarNode) else "this"
            why = f", {str(error).partition(';')[0]}" if isinstance(error, ValueError) else ""
            problem = f"{shown} cannot be taken as {kind}{why}"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from error
        return value

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict[Hashable, Any]:
        """Make a mapping unless a key stands there twice; what `<<` merges in may be replaced."""
        seen: set[Any] = set()
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.MarkedYAMLError(problem="a key is a list or mapping", problem_mark=key_node.start_mark)
            if key in seen:
                problem = f"the key {str(key)[:40]!r} stands there twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key_node.start_mark)
            seen.add(key)
        made: dict[Hashable, Any] = super().construct_mapping(node, deep=deep)
        return made


class _Tagged(_Strict):
    """The same with texts behind tags."""


def _refuse_tag(loader: _Strict, node: yaml.Node) -> NoReturn:
    raise yaml.MarkedYAMLError(problem=f"the tag {node.tag!r} is not known", problem_mark=node.start_mark)


def _tagged_text(loader: _Tagged, node: yaml.Node) -> TaggedText:
    if not isinstance(node, yaml.ScalarNode):
        _refuse_tag(loader, node)
    text = TaggedText(node.value)
    text.tag = node.tag
    return text


_Strict.add_constructor(None, _refuse_tag)
_Tagged.add_constructor(None, _tagged_text)
