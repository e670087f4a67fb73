"""Cells in processes of their own, each with a Hub of its own that lives as long as the process."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from fault_cells import Cell, Result, killer, run
from fault_kinds import KINDS, Request
from fault_world import SCENARIOS, open_world

OPEN: dict[str, Any] = {}
"""The world of this process, and what closes it."""


def open_worker(work: str) -> None:
    """Open the world of this process below a folder."""
    stack = OPEN["stack"] = ExitStack()
    OPEN["world"] = stack.enter_context(open_world(Path(tempfile.mkdtemp(dir=work))))
    OPEN["killable"] = stack.enter_context(killer(OPEN["world"]))


def run_one(scenario: int, request: Request, fault: str) -> Result:
    """Run the cell of a scenario, a request and the name of a fault."""
    kind = next(kind for kind in KINDS if kind.name == fault)
    return run(OPEN["world"], Cell(SCENARIOS[scenario], request, kind), OPEN["killable"])
