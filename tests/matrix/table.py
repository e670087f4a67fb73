"""Results as a table: a row per base and check, a column per version of transformers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.table import Table

STYLES = {"ok": "green", "refused": "yellow", "FAIL": "bold red", "": ""}


@dataclass(frozen=True)
class Result:
    """What became of one check on one published folder with one version."""

    version: str
    kind: str
    check: str
    drops: str
    status: str
    message: str
    seconds: float = 0.0

    def as_json(self) -> dict[str, object]:
        """Return the plain values."""
        return asdict(self)


def cell(results: Iterable[Result]) -> str:
    """Sum up the drop sets of a check: one that fails makes it FAIL, one that is refused makes it refused."""
    found = {result.status for result in results}
    return next((status for status in ("FAIL", "refused", "ok") if status in found), "")


def any_failed(results: Iterable[Result]) -> bool:
    """Tell whether the matrix as a whole failed."""
    return any(result.status == "FAIL" for result in results)


def show(results: Sequence[Result], versions: Sequence[str], console: Console, *, brief: bool = False) -> None:
    """Print one table per base, and below them what was refused and what failed.

    A brief one leaves out the tables of bases with which nothing failed.
    """
    for kind in dict.fromkeys(result.kind for result in results):
        mine = [result for result in results if result.kind == kind]
        if any_failed(mine) or not brief:
            console.print(table(mine, versions, title=kind))
    for status, title in (("refused", "Refused by transformers, unpruned base included"), ("FAIL", "Failed")):
        for line in notes(results, status, title):
            console.print(line, style=STYLES[status], markup=False, highlight=False, soft_wrap=True)


def table(results: Sequence[Result], versions: Sequence[str], *, title: str) -> Table:
    """Return the table of one base."""
    ran = [version for version in versions if any(result.version == version for result in results)]
    drawn = Table("check", *ran, title=title, title_justify="left")
    for check in dict.fromkeys(result.check for result in results):
        row = [r for r in results if r.check == check]
        cells = [cell(r for r in row if r.version == version) for version in ran]
        drawn.add_row(check, *(f"[{STYLES[text]}]{text}[/]" if text else "" for text in cells))
    return drawn


def notes(results: Sequence[Result], status: str, title: str) -> Iterator[str]:
    """Say what was behind the cells of a status, every message once."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        if result.status == status:
            groups.setdefault((result.check, result.message), []).append(result)
    if groups:
        yield f"\n{title}:"
    for (check, message), group in groups.items():
        yield f"  {check}: {message}"
        for version in dict.fromkeys(result.version for result in group):
            yield f"    {version}: {_where(result for result in group if result.version == version)}"


def _where(results: Iterable[Result]) -> str:
    by_kind: dict[str, list[str]] = {}
    for result in results:
        by_kind.setdefault(result.kind, []).append(result.drops)
    return "; ".join(f"{kind} ({', '.join(drops)})" for kind, drops in by_kind.items())
