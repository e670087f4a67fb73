"""Trace the numbers of a card to its hubprune.json.

Every number that a card shows has to be one that follows from the manifest, by the rules below, at the precision that
it is shown with.  The rules are not those of the card's own code: values of the JSON, their differences and quotients
where the JSON has one for the base beside one for the result, and counts of its lists.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from typing import Any

NUMBER = re.compile(r"(?<![\w.\-/])[+−]?\d[\d,]*(?:\.\d+)?(?:e[+-]\d+)?(?![\w]|\.\d)")
FENCE = re.compile(r"(?ms)^(`{3,})\w*\n(.*?)\n\1$")
NOT_FROM_JSON = (
    r"95 % (?:bootstrap )?interval", r"Intervals: 95 %", r"one-sided, 5 %", r"below 0\.05", r"cut off at 100 points",
    r"100 × \(this − base\)", r"this / base − 1", r"\b1 − (?:cos|seq)", r"minus 1", r"S = 1", r"between 0 and 1",
    r"counted from 0", r"leave out 0", r"holds 0", r"seq-rep-4", r"4-token", r"2-token", r"distinct-2",
    r"n = 2, 3 and 4", r"arXiv [\d.]+", r"et al\. \d+", r"Min \d+", r"equation 7", r"at most 1e-\d+",
    r"last 16 tokens or more are 2 or more", r"before 4\.56", r"transformers 4\.\d+ or newer", r"SHA-256",
    r"p (?:&lt;|<) 0\.001", r"p = 1\b", r"Apache License 2\.0", r"apache-2\.0", r"L[12] norm",
    r"more than 88 characters",
)  # fmt: skip
"""What the templates themselves say, the same in every card."""
TIMES = r"^\| Stage \| Time \|\n(?:\|.*\n?)*"
"""Wall-clock times, which are written in hours, minutes and seconds."""


def numbers(text: str) -> Iterator[str]:
    """Yield every number of a card's body that its data should account for."""
    body = re.sub(r"(?s)\A---\n.*?\n---\n", "", text)
    body = re.sub(TIMES, "", FENCE.sub("", body), flags=re.M)
    body = body.split("\n---\n")[0].replace("\\", "")
    body = re.sub(r"\[([0-9a-f]{8})\]\([^)]*/tree/\1[0-9a-f]{32}\)", "", body)  # a commit, and where it leads
    for pattern in NOT_FROM_JSON:
        body = re.sub(pattern, "", body)
    yield from NUMBER.findall(re.sub(r"\]\([^)]*\)", "]", body))


def parsed(number: str) -> tuple[float, float]:
    """Return the value of a number as it is written, and half a unit of its last digit."""
    plain = number.replace(",", "").replace("−", "-")
    mantissa, _, exponent = plain.partition("e")
    digits = len(mantissa.partition(".")[2])
    return float(plain), 0.5000001 * 10 ** (int(exponent or 0) - digits)


def leaves(value: Any) -> Iterator[float]:
    """Yield every number in JSON, the length of every list, and the numbers inside its texts."""
    if isinstance(value, dict):
        for item in value.values():
            yield from leaves(item)
    elif isinstance(value, list):
        yield len(value)
        for item in value:
            yield from leaves(item)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield float(value)
    elif isinstance(value, str):
        yield from (parsed(number)[0] for number in NUMBER.findall(value))


def _changes(base: float, now: float) -> Iterator[float]:
    yield now - base
    if base:
        yield 100 * (now / base - 1)


def pairs(value: Any) -> Iterator[tuple[float, float]]:
    """Yield what the JSON holds for the base beside what it holds for the result."""
    if isinstance(value, list):
        for item in value:
            yield from pairs(item)
    if not isinstance(value, dict):
        return
    for key, item in value.items():
        other = value.get("pruned" if key == "base" else key.removeprefix("base_") if key.startswith("base_") else "")
        if isinstance(item, dict) and isinstance(other, dict) and "value" in item:
            yield item["value"], other["value"]
        elif all(isinstance(number, (int, float)) for number in (item, other)):
            yield float(item), float(other)
        yield from pairs(item)


def _main_shares(manifest: dict[str, Any]) -> list[tuple[float, float]]:
    rows: dict[str, Any] = {}
    for row in (manifest.get("benchmarks") or {}).get("tasks", ()):
        rows.setdefault(row["task"], row)
    shares = {"acc", "acc_norm", "exact_match", "f1", "mcc", "em"}
    return [(row["base"]["value"], row["pruned"]["value"]) for row in rows.values() if row["metric"] in shares]


def _losses(manifest: dict[str, Any]) -> Iterator[float]:
    """Means over the tasks, and the largest loss beside the mean of the others."""
    shares = _main_shares(manifest)
    if not shares:
        return
    yield from (100 * sum(column) / len(shares) for column in zip(*shares, strict=True))
    base, left = (sum(column) for column in zip(*shares, strict=True))
    chances: dict[str, float] = {}
    for row in manifest["benchmarks"]["tasks"]:
        chances.setdefault(row["task"], row.get("chance") or 0.0)
    guessed = sum(chances.values())
    yield from (100 * left / base, 100 * (left - guessed) / (base - guessed))
    changes = sorted(100 * (now - base) for base, now in shares)
    yield sum(changes) / len(changes)
    yield len(changes)
    if len(changes) > 1:
        others = sum(changes[1:]) / (len(changes) - 1)
        yield from (others, changes[0] / others if others else 0.0, len(changes) - 1)


def _plan(manifest: dict[str, Any]) -> Iterator[float]:
    plan, scores = manifest["plan"], manifest.get("scores")
    gone = {kind: [row["layer"] for row in plan["dropped"] if row["kind"] == kind] for kind in ("attn", "mlp")}
    for layers in (*gone.values(), set(gone["attn"]) & set(gone["mlp"])):
        yield from (len(layers), plan["num_hidden_layers"] - len(layers))
    if widths := plan.get("widths"):
        kept = [
            pair for n, pair in enumerate(zip(widths["before"], widths["kept"], strict=True)) if n not in gone["mlp"]
        ]
        before, now = (sum(column) for column in zip(*kept, strict=True))
        yield from (before, now, 100 * (1 - now / before))
    if scores:  # layers and their ranks
        yield from range(len(scores["mean"]["attn"]) + 1)
        record = scores["calibration"]
        for key in ("documents", "tokens", "texts"):
            yield sum(source.get(key) or 0 for source in record["sources"])


def _results(manifest: dict[str, Any]) -> Iterator[float]:
    for row in (manifest.get("benchmarks") or {}).get("tasks", ()):
        paired = row.get("paired") or {}
        ratio = paired.get("ratio") or {}
        yield from (100 * (ratio[key] - 1) for key in ("value", "low", "high") if ratio.get(key) is not None)
        marks = [r.get("paired") and r["paired"].get("mark") for r in manifest["benchmarks"]["tasks"]]
        yield from (marks.count(mark) for mark in set(marks))
    for row in (manifest.get("speed") or {}).get("rows", ()):
        seen = row["measured"]
        for ratio in (seen["ratio"], seen["control"]):
            yield from (100 * (ratio[key] - 1) for key in ("median", "low", "high"))
        yield from (1000 * seen["seconds"], 1000 * seen["base_seconds"], len(seen["round_seconds"]))


def derived(manifest: dict[str, Any]) -> list[float]:
    """Everything that a card may show as a number, whatever its sign."""
    values = [*leaves(manifest), *_losses(manifest), *_plan(manifest), *_results(manifest)]
    for base, now in pairs(manifest):
        values += [*_changes(base, now)]
    texts = len((manifest.get("generation") or {}).get("continuations", ()))
    values += [*range(texts + 1)]
    units = [value / unit for value in values if abs(value) >= 1000 for unit in (1e3, 1e6, 1e9)]
    return [*values, *units, *(100 * value for value in values if abs(value) <= 1.0000001)]


def untraced(text: str, manifest: dict[str, Any]) -> list[str]:
    """List the numbers of a card that do not follow from its manifest."""
    known = sorted({abs(value) for value in derived(manifest) if math.isfinite(value)})
    return [number for number in numbers(text) if not _is_near(number, known)]


def _is_near(number: str, known: list[float]) -> bool:
    import bisect

    value, half = parsed(number)
    at = bisect.bisect_left(known, abs(value) - half)
    return at < len(known) and known[at] <= abs(value) + half


def misprints(text: str) -> Iterator[tuple[str, str]]:
    """Yield the number and the card where one digit of one number is another one, number by number."""
    seen = itertools.count()
    for number in dict.fromkeys(n for n in numbers(text) if sum(c.isdigit() for c in n) >= 4):
        digits = [i for i, c in enumerate(number) if c.isdigit()]
        at = digits[1 + next(seen) % (len(digits) - 1)]
        wrong = number[:at] + str((int(number[at]) + 3) % 10) + number[at + 1 :]
        yield number, re.sub(rf"(?<![\d.,]){re.escape(number)}(?![\d.,]*\d)", wrong, text, count=1)
