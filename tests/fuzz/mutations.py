"""Files that are nearly right: a valid one, changed in one to three places, or damaged in its bytes."""

from __future__ import annotations

import json
from copy import deepcopy
from functools import partial

import yaml
from hypothesis import strategies as st

VERBATIM = "verbatim:"
"""A text that begins like this stands in the file without quotes, since no value in Python is written so."""
DEEP = 100_000
ODD = (
    None, True, False, 0, -1, 1, 2, 7, 2**31, 2**32, 2**63, 2**64, 10**30, 0.5, -0.0, 1e308, 5e-324, float("nan"),
    float("inf"), -float("inf"), "", " ", "x", "0", "1", "1%", "none", "auto", "float32", "../x", "~nouser/x",
    "/dev/full", "a/b", "a/b/c", "a\0b", "\ud800", "\x85", "é", "😀", "{{ x }}", "\n", "-", "a" * 300, "a" * 5000,
    [], [None], [[]],
    [0, 0], [1.5], ["x", 1], {}, {"": None}, {"a": {}}, {"x": [1]}, {"type": "x"}, {"rope_type": "x"},
    *(VERBATIM + text for text in (
        "9" * 5000, "-" + "9" * 5000, "1e400", "-1e400", "1.0e+400", "0x" + "f" * 5000, "2024-13-45", "2024-01-01",
        "!!int abc", "!!bool abc", "!!float x", "!!binary '#'", "!function os.system", "&a [*a]", "*lost", "[" * DEEP,
        "[" * DEEP + "]" * DEEP, "[" * 200 + "]" * 200, '{"a": ' * 5000, "NaN", "Infinity", "nul", "'", '"', "{", "]",
        "@", "yes", "no", "1:30", "0o17", "1_000", "{a: 1, a: 2}", '{"a": 1, "a": 2}', "? [1]\n: 2",
    )),
)  # fmt: skip
"""What no writer of such a file would write, and what some would by mistake."""
CHUNKS = (
    b"", b"\0", b"\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"{", b"}", b"[", b"]", b'"', b",", b":", b"\n", b"\t", b"#",
    b"- ", b"\\u0000", b"\\ud800", b"\\", b"\x85", b"&a ", b"*a", b"!", b"%", b"[" * 3000, b"9" * 5000, b"{}", b"null",
)  # fmt: skip


def places(value, above=()):
    """List the paths to every part of a value, the whole of it first."""
    found = [above]
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        found += places(part, (*above, key))
    return found


def part_at(value, place):
    for key in place:
        value = value[key]
    return value


def put(value, place, part):
    """Return a value with another part at a place."""
    if not place:
        return part
    part_at(value, place[:-1])[place[-1]] = part
    return value


@st.composite
def mutated(draw, valid, *, changes):
    """A value with some of its parts replaced, removed, renamed, wrapped, copied from elsewhere, or added."""
    value = deepcopy(valid)
    for _ in range(draw(changes)):
        place = draw(st.sampled_from(places(value)))
        part = part_at(value, place)
        match draw(st.sampled_from(["odd", "odd", "odd", "wrap", "text", "copy", "remove", "rename", "add"])):
            case "odd":
                value = put(value, place, deepcopy(draw(st.sampled_from(ODD))))
            case "wrap":
                value = put(value, place, draw(st.sampled_from([[part], {"x": part}, [part, part], {"0": part}])))
            case "text":
                value = put(value, place, json.dumps(part)[:200])
            case "copy":
                value = put(value, place, deepcopy(part_at(value, draw(st.sampled_from(places(value))))))
            case "remove" if place:
                part_at(value, place[:-1]).pop(place[-1])
            case "rename" if place and isinstance(place[-1], str):
                owner = part_at(value, place[:-1])
                owner[draw(st.sampled_from(["", "x", place[-1].upper(), f"_{place[-1]}", "\ud800", "a" * 300]))] = (
                    owner.pop(place[-1])
                )
            case "add" if isinstance(part, dict):
                part[draw(st.sampled_from(["x", "", "class", "__proto__", "0"]))] = deepcopy(draw(st.sampled_from(ODD)))
            case "add" if isinstance(part, list):
                part.append(deepcopy(draw(st.sampled_from(ODD))))
    return value


def unquoted(text):
    """Take the quotes off what is to stand verbatim."""
    for odd in ODD:
        if isinstance(odd, str) and odd.startswith(VERBATIM):
            for quoted in (json.dumps(odd), f"'{odd}'", odd):
                text = text.replace(quoted, odd.removeprefix(VERBATIM))
    return text


def as_json(value):
    return unquoted(json.dumps(value, indent=1)).encode("utf-8", "surrogatepass")


def as_yaml(value):
    # YAML is a superset of JSON in what matters here; half of all recipes are written with indents all the same.
    try:
        text = yaml.safe_dump(value, sort_keys=False, width=10**6)
    except yaml.YAMLError:
        text = json.dumps(value)
    return unquoted(text.replace("'" + "'", "'")).encode("utf-8", "surrogatepass")


@st.composite
def damaged(draw, data):
    """Bytes of a valid file that were cut off, overwritten, doubled, or written in another encoding."""
    start = draw(st.integers(0, len(data)))
    chunk = draw(st.sampled_from(CHUNKS))
    return draw(
        st.sampled_from(
            [
                data[:start],
                data[:start] + chunk + data[start:],
                data[:start] + chunk + data[start + len(chunk) :],
                chunk + data,
                data + chunk + data,
                data.decode().encode("utf-16"),
                data.decode().encode("utf-32"),
                chunk,
                b"",
            ]
        )
    )


def nearly(valid, write):
    """Files that are nearly a valid one, as bytes.

    Args:
        valid: what it holds.
        write: makes bytes of that; `as_json` or `as_yaml`.
    """
    few = st.sampled_from([1, 1, 1, 2, 3])
    return mutated(valid, changes=few).map(write) | damaged(write(valid)) if write else mutated(valid, changes=few)


json_file, yaml_file = partial(nearly, write=as_json), partial(nearly, write=as_yaml)
