"""Spoil every request of a publish in every way: `python tests/faults`."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import kill_rounds
import race_rounds
import token_table
from fault_cells import Result, chosen
from fault_table import messages, show_cells, show_kills, show_rounds
from fault_workers import open_worker, run_one
from fault_world import SCENARIOS, World, everything_under, open_world
from rich.console import Console
from rich.progress import track

PARTS = ("cells", "rounds", "tokens", "kills")
SECRET = re.compile(rb"\bhf_(?:jwt_)?[0-9a-f]{34}|xet-(?:read|write):[0-9]|eyJ[0-9a-f]{24}\.")


def parser() -> argparse.ArgumentParser:
    """Return the options."""
    found = argparse.ArgumentParser(prog="make faults", description=__doc__)
    found.add_argument(
        "parts", nargs="*", choices=[[], *PARTS], metavar="PART", help=f"{', '.join(PARTS)}; all if none"
    )
    found.add_argument("--scenarios", metavar="REGEX", default="", help="what is published where")
    found.add_argument("--requests", metavar="REGEX", default="", help="requests, as in `POST .*/commit/`")
    found.add_argument("--faults", metavar="REGEX", default="", help="what goes wrong, as in `503|SIGKILL`")
    found.add_argument("--every", action="store_true", help="spoil a request again where another scenario has it too")
    found.add_argument("--rounds", type=int, default=race_rounds.ROUNDS, help="of two publishers at once")
    found.add_argument("--kills", type=int, default=kill_rounds.KILLS, help="of whole runs, each of which is run again")
    found.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="cells at a time")
    found.add_argument("--messages", action="store_true", help="print every message once")
    found.add_argument("--json", type=Path, metavar="FILE", help="write every result here too")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for and print the tables; 1 if something is wrong."""
    options = parser().parse_args(arguments)
    parts = options.parts or PARTS
    console = Console(width=None if sys.stdout.isatty() else 260)
    with tempfile.TemporaryDirectory(prefix="hubprune-faults-") as work, open_world(Path(work) / "world") as world:
        results = _cells(world, Path(work), options) if "cells" in parts else []
        rounds = _rounds(world, options.rounds) if "rounds" in parts else []
        tokens = list(token_table.rows(world)) if "tokens" in parts else []
        kills = _kills(Path(work) / "kills", options.kills) if "kills" in parts else []
        leaks = [path for path, content in everything_under(Path(work)) if SECRET.search(content)]
    if options.json:
        found = {"cells": results, "rounds": rounds, "tokens": tokens, "kills": kills}
        options.json.write_text(json.dumps({k: [r.as_json() for r in v] for k, v in found.items()}, indent=1) + "\n")
    return _show(console, results, rounds, tokens, kills, leaks, with_messages=options.messages)


def _show(
    console: Console,
    results: list[Result],
    rounds: list[race_rounds.Round],
    tokens: list[token_table.Row],
    kills: list[kill_rounds.Kill],
    leaks: list[Path],
    *,
    with_messages: bool,
) -> int:
    if results:
        show_cells(results, console)
    for line in messages(results) if with_messages else ():
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if rounds:
        show_rounds(rounds, console)
    if tokens:
        console.print(token_table.as_text(tokens), markup=False, highlight=False, soft_wrap=True)
    if kills:
        show_kills(kills, console)
    bad = [r for r in (*results, *rounds, *kills) if r.problems] + [r for r in tokens if r.wrote or "bare" in r.outcome]
    for path in leaks:
        console.print(f"There is a token in {path}", style="bold red")
    tried = f"{len(results)} cells, {len(rounds)} rounds, {len(tokens)} tokens, {len(kills)} kills"
    console.print(f"{tried} tried; {len(bad)} with a problem.")
    return int(bool(bad or leaks))


# ---- the parts ---------------------------------------------------------------------------------------------------


def _cells(world: World, work: Path, options: argparse.Namespace) -> list[Result]:
    """Run the cells in processes, each with a Hub of its own."""
    scenarios = [s for s in SCENARIOS if re.search(options.scenarios, s.name)]
    cells = [
        cell
        for cell in chosen(world, scenarios, every=options.every)
        if re.search(options.requests, cell.request.label) and re.search(options.faults, cell.kind.name)
    ]
    with ProcessPoolExecutor(options.jobs, get_context("spawn"), open_worker, (str(work),)) as pool:
        waiting = {pool.submit(run_one, SCENARIOS.index(c.scenario), c.request, c.kind.name): c for c in cells}
        done = track(as_completed(waiting), f"{len(cells)} cells", total=len(cells), console=Console(stderr=True))
        found = {waiting[future]: future.result() for future in done}
    return [found[cell] for cell in cells]


def _rounds(world: World, number: int) -> list[race_rounds.Round]:
    numbers = track(range(number), "two publishers", console=Console(stderr=True))
    return [race_rounds.run(world, n) for n in numbers]


def _kills(work: Path, number: int) -> list[kill_rounds.Kill]:
    """Kill one run after the other, and say at once what became of each: all of them take a while."""
    said, found = Console(stderr=True), []
    with kill_rounds.open_kill_world(work) as world:
        for n, at in enumerate(kill_rounds.moments(number), start=1):
            found.append(world.run(n, at=at))
            said.print(f"kill {n} of {number}: {found[-1]}", markup=False, highlight=False, soft_wrap=True)
    return found


if __name__ == "__main__":
    sys.exit(main())
