"""Values of a config, checked before anything is computed with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hubprune.core.errors import CheckpointError

LARGEST = 2**31 - 1
LARGEST_REAL = 1e15


def natural(config: Mapping[str, Any], key: str, *, where: str) -> int:
    """Return a positive whole number of a config.

    Raises:
        CheckpointError: it is none, or does not fit 32 bits.
    """
    value = config.get(key)
    if type(value) is not int or not 0 < value <= LARGEST:
        raise CheckpointError(f"{where} has {key}={value!r:.60}, which is no positive number of 32 bits.")
    return value


def positive(config: Mapping[str, Any], key: str, *, where: str) -> float:
    """Return a positive finite number of a config.

    Raises:
        CheckpointError: it is none.
    """
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= LARGEST_REAL:
        raise CheckpointError(f"{where} has {key}={value!r:.60}, which is no positive number.")
    return float(value)


def flag(config: Mapping[str, Any], key: str, *, where: str) -> bool:
    """Return a truth value of a config, False where it has none.

    Raises:
        CheckpointError: it is something else.
    """
    value = config.get(key, False)
    if not isinstance(value, bool):
        raise CheckpointError(f"{where} has {key}={value!r:.60}, which is neither true nor false.")
    return value
