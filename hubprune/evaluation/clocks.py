"""Take the time of work on a device: by its own events on a CUDA GPU, else by the wall clock."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Protocol

import torch

__all__ = ["Clock", "clock_of"]


class Clock(Protocol):
    """Marks moments between pieces of work, and tells afterwards how long each piece took."""

    def mark(self) -> Any:
        """Mark a moment, after all work that was given to the device so far."""

    def seconds(self, marks: Sequence[Any]) -> list[float]:
        """Return the seconds from each mark to the next."""


class WallClock:
    """Waits for the device, then looks at the wall clock."""

    def __init__(self, device: str) -> None:
        self._device = device

    def mark(self) -> float:
        """Return the time once all work is done."""
        if self._device.startswith("mps"):
            torch.mps.synchronize()
        return time.perf_counter()

    def seconds(self, marks: Sequence[float]) -> list[float]:
        """Return the seconds from each mark to the next."""
        return [end - start for start, end in pairwise(marks)]


class CudaClock:
    """Puts events between the kernels, so that the host runs ahead as it does in use, and waits once, at the end."""

    def __init__(self, device: str) -> None:
        self._device = device

    def mark(self) -> Any:
        """Put an event behind the work that was launched so far."""
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def seconds(self, marks: Sequence[Any]) -> list[float]:
        """Wait for the last event, and return the seconds from each to the next."""
        marks[-1].synchronize()
        return [start.elapsed_time(end) / 1000 for start, end in pairwise(marks)]


def clock_of(device: str) -> Clock:
    """Return the clock for a device."""
    return CudaClock(device) if device.startswith("cuda") else WallClock(device)
