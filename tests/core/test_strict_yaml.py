"""YAML of a person is read as it is meant, or refused in one sentence with the line."""

from __future__ import annotations

import pytest

from hubprune.core.errors import EvaluationError, RecipeError
from hubprune.core.strict import TaggedText, parse_yaml

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 8)}]\n" for n in range(1, 12)
)
REFUSED = {
    "a date that is none": (
        b"a: 1\nseed: 2024-13-45",
        ", line 2: '2024-13-45' cannot be taken as timestamp, month must",
    ),
    "5,000 digits": (b"seed: " + b"9" * 5000, ", line 1: '9{40}' cannot be taken as int, Exceeds the limit"),
    "5,000 digits in base 16": (b"seed: 0x" + b"f" * 5000, "cannot be taken as int, Exceeds the limit"),
    "int of a word": (b"seed: !!int abc", "'abc' cannot be taken as int"),
    "int of nothing": (b"seed: !!int ''", "'' cannot be taken as int[.]"),
    "float of a word": (b"seed: !!float abc", "'abc' cannot be taken as float"),
    "bool of a word": (b"seed: !!bool abc", "'abc' cannot be taken as bool[.]"),
    "timestamp of a word": (b"seed: !!timestamp abc", "'abc' cannot be taken as timestamp[.]"),
    "deep lists": (b"a: " + b"[" * 5000, ", line 1: lists and mappings are nested deeper than 100 levels"),
    "lists that end a parser in C": (b"a: " + b"[" * 100_000 + b"]" * 100_000, "nested deeper than 100 levels"),
    "deep blocks": (b"- " * 5000, "nested deeper than 100 levels"),
    "a key twice": (b"a: 1\nb: 2\na: 3", ", line 3: the key 'a' stands there twice"),
    "a key twice, further down": (b"a:\n- b: 1\n  b: 2", ", line 3: the key 'b' stands there twice"),
    "a list as a key": (b"[1]: 2", "a key is a list or mapping"),
    "aliases of aliases": (BOMB.encode(), "its aliases stand for more than 1,000,000 values"),
    "an alias of itself": (b"a: &a [*a]", "an alias stands inside what it is an alias of"),
    "no such alias": (b"a: *b", "found undefined alias"),
    "a tag": (b"a: !function os.system", "the tag '!function' is not known"),
    "an object": (b"a: !!python/object/apply:os.system [ls]", "the tag .* is not known"),
    "two documents": (b"a: 1\n---\na: 2", "another document"),
    "not closed": (b"a: [", ", line [12]: did not find expected node content"),
    "NUL": (b"a: \0", "control characters are not allowed"),
    "not UTF-8": (b"a: \xff", "it is not UTF-8, byte 3 is 0xff"),
}


@pytest.mark.parametrize(("text", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_read_is_refused_in_one_line(text, message):
    with pytest.raises(RecipeError, match=f"^Cannot read f.yaml.*{message}") as caught:
        parse_yaml(text, where="f.yaml")
    assert "\n" not in caught.value.message


def test_what_is_merged_in_may_be_replaced_and_a_byte_order_mark_is_no_text():
    assert parse_yaml(b"\xef\xbb\xbfx: &x {a: 1, b: 2}\ny: {<<: *x, a: 3}", where="")["y"] == {"a": 3, "b": 2}


def test_texts_behind_tags_are_told_from_others_where_they_are_allowed():
    found = parse_yaml(b"a: !function utils.f\nb: !<!function> utils.f\nc: utils.f", where="", tags=True)
    assert [isinstance(text, TaggedText) for text in found.values()] == [True, True, False]
    assert found["a"].tag == "!function"
    with pytest.raises(EvaluationError, match="the tag '!function' is not known"):
        parse_yaml(b"a: !function [1]", where="f.yaml", error=EvaluationError, tags=True)
