"""How amounts are written: numbers, shares, sizes, widths, and what is to be saved of a base.

Text of a command line and values of YAML or Python are read alike, and come out in one spelling.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any, get_args

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from hubprune.core.artifacts import Goal, Part

PERCENT = re.compile(r"(?P<percent>\d+(\.\d+)?)\s*%", re.ASCII)
MOST = 2**31 - 1
"""Most documents, tokens, layers and whatever else is counted; the libraries below count in C."""
AUTO = "auto"
"""Stands for a number of drops that is to be found."""
MOST_SHOWN = 60
"""Characters of a value that an error repeats."""


def _no_boolean(value: Any) -> Any:
    if isinstance(value, bool):
        raise PydanticCustomError("number_type", "Input should be a number, and YAML reads yes, no, on and off as none")
    return value


Number = BeforeValidator(_no_boolean)
"""Keeps pydantic from taking true for 1."""
Count = Annotated[int, Number, Field(ge=1, le=MOST)]
"""How many there are of something, 1 at least."""


def shown(value: Any) -> str:
    """Write a value as an error repeats it, in one line."""
    try:
        text = repr(value)
    except ValueError:  # of a whole number with more digits than Python writes
        return "a number of thousands of digits"
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def _percent(value: Any) -> str:
    """Return a share in one spelling, as in 12.5%."""
    found = PERCENT.fullmatch(value.strip()) if isinstance(value, str) else None
    if not found:
        raise ValueError(f"{shown(value)} is no share; it looks like 60%")
    if not 0 < float(found["percent"]) <= 100:
        raise ValueError(f"{value[:MOST_SHOWN]} is no share between 0 % and 100 %")
    return f"{Decimal(found['percent']).normalize():f}%"


def _amount(value: Any) -> int | str:
    if isinstance(value, str) and "%" in value:
        return _percent(value)
    digits = isinstance(value, str) and value.strip().isdecimal() and len(value.strip()) <= len(str(MOST))
    number = int(value) if digits else value
    if number == AUTO:
        raise ValueError("auto is a number that hubprune publish looks for; elsewhere pass it, or run hubprune sweep")
    if type(number) is not int or not 1 <= number <= MOST:
        raise ValueError(f"{shown(value)} is neither a number of 1 or more nor a share like 10%")
    return number


def read_widths(value: Any) -> int | tuple[int, ...] | None:
    """Read the width of all MLPs, or one number for each.

    Raises:
        ValueError: it is neither.
    """
    if value is None:
        return None
    several = tuple(value) if isinstance(value, (list, tuple)) else None
    asked = (value,) if several is None else several
    if not asked or not all(type(width) is int and 1 <= width <= MOST for width in asked):
        raise ValueError(f"{shown(value)} is no width: pass a number of 1 or more, or one for every layer")
    return int(value) if several is None else several


GOALS: tuple[Goal, ...] = get_args(Goal)
SIZED: tuple[Goal, ...] = ("memory", "bytes")
"""Targets that may be sizes."""
SIZE = re.compile(r"(?P<number>\d+(\.\d+)?)\s*(?P<unit>[KMGT]i?)?B", re.IGNORECASE | re.ASCII)
POWERS = {"K": 1, "M": 2, "G": 3, "T": 4}
AT = re.compile(r"(?P<context>\d{1,8})(x(?P<batch>\d{1,6}))?", re.ASCII)


def read_targets(value: Any) -> dict[str, str] | None:
    """Read targets: a mapping, or a text like params=-10%,kv=-30%.

    Raises:
        ValueError: one is unknown, there twice, or asks for more instead of less.
    """
    if value is None:
        return None
    if isinstance(value, str):
        pairs = [part.partition("=")[::2] for part in value.split(",")]
    elif isinstance(value, Mapping):
        pairs = [(str(goal), str(wanted)) for goal, wanted in value.items()]
    else:
        raise ValueError(f"{shown(value)} is no target; it looks like kv=-30%")
    found: dict[str, str] = {}
    for goal, wanted in ((goal.strip().lower(), wanted.strip()) for goal, wanted in pairs):
        if goal not in GOALS:
            near = difflib.get_close_matches(goal, GOALS, n=1, cutoff=0.5)
            meant = f"did you mean {near[0]}?" if near else f"there are {', '.join(GOALS)}"
            raise ValueError(f"there is no target {shown(goal)} ({meant})")
        if goal in found:
            raise ValueError(f"{goal} has two targets, {found[goal]} and {wanted}: pass one of them")
        found[goal] = _target(goal, wanted)
    return found


def _target(goal: str, wanted: str) -> str:
    example = f"{goal}=-10%" if goal not in SIZED else f"{goal}=-10% or {goal}=8GB"
    if goal in SIZED and SIZE.fullmatch(wanted):
        return wanted.replace(" ", "")
    if not wanted.endswith("%"):
        raise ValueError(f"{goal}={wanted[:MOST_SHOWN]} is no target; it looks like {example}")
    if wanted.startswith("+"):
        raise ValueError(f"{goal}={wanted[:20]} would be more than there is: what goes has a minus, as in {example}")
    if not wanted.startswith("-"):
        raise ValueError(f"{goal}={wanted[:20]} has no sign: what goes has a minus, as in {goal}=-{wanted[:20]}")
    if (share := _percent(wanted.removeprefix("-").strip())) == "100%":
        raise ValueError(f"{goal}=-100% would leave nothing")
    return f"-{share}"


def size_of(text: str) -> int:
    """Return the bytes of a size like 8GB or 7.5GiB, which a target was checked to be."""
    found = SIZE.fullmatch(text)
    assert found
    unit = (found["unit"] or "").upper()
    base = 1024 if unit.endswith("I") else 1000
    return int(Decimal(found["number"]) * base ** POWERS.get(unit[:1], 0))


def read_parts(value: Any) -> tuple[str, ...] | None:
    """Read what a target may be reached by, each once and in a fixed order.

    Raises:
        ValueError: a name is unknown.
    """
    if value is None:
        return None
    known: tuple[str, ...] = get_args(Part)
    if not isinstance(value, (str, list, tuple)):
        raise ValueError(f"{shown(value)} is no list of what to choose from; it looks like attn,mlp")
    names = [part.strip() for part in (value.split(",") if isinstance(value, str) else map(str, value))]
    if unknown := [name for name in names if name not in known]:
        near = difflib.get_close_matches(unknown[0], known, n=1, cutoff=0.5)
        meant = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
        raise ValueError(f"there is no {shown(unknown[0])} to choose from ({meant})")
    return tuple(name for name in known if name in names)


def read_at(value: Any) -> str | None:
    """Read a context, with sequences or without: 4096, or 4096x8.

    Raises:
        ValueError: it is none.
    """
    found = AT.fullmatch(str(value).strip()) if value is not None and not isinstance(value, bool) else None
    if value is None:
        return None
    if not found or not int(found["context"]) or not int(found["batch"] or 1):
        raise ValueError(f"{shown(value)} is no context; it looks like 4096, or 4096x8 for eight sequences")
    return f"{int(found['context'])}x{int(found['batch'] or 1)}"


Share = Annotated[str, BeforeValidator(_percent)]
"""A share as in 60%."""
Amount = Annotated[int | str, BeforeValidator(_amount)]
"""A number, or a share of what there is."""
Layers = tuple[Annotated[int, Number, Field(ge=0, le=MOST)], ...]


def count_of(amount: int | str, *, of: int) -> int:
    """Return how many of `of` things an amount stands for; a share is rounded to the nearest number, 1 at least."""
    if isinstance(amount, int):
        return amount
    return max(1, int(float(amount.removesuffix("%")) / 100 * of + 0.5))
