"""Write numbers the way the card shows them; templates only place the results."""

from __future__ import annotations

from collections.abc import Sequence

from hubprune.core.artifacts import Estimate
from hubprune.core.console import SCIENTIFIC, decimal, size

__all__ = [
    "change_percent",
    "count",
    "interval",
    "listing",
    "p_value",
    "percent_change",
    "plain",
    "signed",
    "size_change",
    "span",
    "with_error",
    "with_interval",
]

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


def percent_change(base: float, now: float) -> float | None:
    """Compute the relative change in percent; None where the base is 0."""
    return 100 * (now / base - 1) if base else None


def change_percent(base: float, now: float) -> str:
    """Write the relative change from base to now in percent."""
    return signed(percent_change(base, now), unit=" %")


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
