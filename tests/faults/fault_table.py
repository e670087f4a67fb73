"""The matrix as tables: a row per request, a column per fault, and below them what was said."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from fault_cells import Result
from kill_rounds import Kill
from race_rounds import Round
from rich.console import Console
from rich.markup import escape
from rich.table import Table

SHORT = {
    "published": "ok", "up to date": "ok", "killed": "killed", "HubError": "Hub", "HubUnreachableError": "net",
    "AuthenticationError": "auth", "PermissionDeniedError": "denied", "ConflictError": "conflict",
    "RemoteMismatchError": "differs", "BaseNotFoundError": "no base", "GatedBaseError": "gated",
    "RecipeError": "recipe", "DiskSpaceError": "disk",
}  # fmt: skip
LEGEND = (
    "ok: published all the same · net: HubUnreachableError · Hub: HubError · auth: AuthenticationError · denied:"
    " PermissionDeniedError\n+: the commit is there, else everything is as it was · *: an empty repo or branch is left,"
    " which the error says where there is one · !: a problem\nEvery cell was run again without its fault."
)


def cell(result: Result) -> str:
    """Return one cell in a word and a sign."""
    word = SHORT.get(result.outcome, result.outcome)
    if result.problems:
        return f"[bold red]{word} ![/]"
    sign = "*" if result.state.endswith("left behind") else ""
    sign = "+" if result.state == "new" and result.outcome not in ("published", "up to date") else sign
    return f"{word}{sign}"


def show_cells(results: Sequence[Result], console: Console) -> None:
    """Print a table per scenario, the counts, and every problem."""
    for scenario in dict.fromkeys(r.scenario for r in results):
        mine = [r for r in results if r.scenario == scenario]
        for lasting in (False, True):
            part = [r for r in mine if r.fault.endswith(", always") == lasting]
            title = f"{scenario}: {'every try from that request on goes wrong' if lasting else 'it goes wrong once'}"
            if part:
                console.print(_table(part, title), soft_wrap=True)
    console.print(LEGEND, markup=False, highlight=False)
    for line in summary(results):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _table(results: Sequence[Result], title: str) -> Table:
    faults = list(dict.fromkeys(r.fault for r in results))
    found = {(r.request, r.fault): cell(r) for r in results}
    drawn = Table("request", *(name.removesuffix(", always") for name in faults), title=title, title_justify="left")
    for request in dict.fromkeys(r.request for r in results):
        drawn.add_row(request, *(found.get((request, fault), "") for fault in faults))
    return drawn


def summary(results: Sequence[Result]) -> Iterator[str]:
    """Count the cells by how they ended and by what was on the Hub then, and list the problems."""
    for name, values in (("ended", [r.outcome for r in results]), ("on the Hub", [r.state for r in results])):
        counts = ", ".join(f"{count} {value}" for value, count in Counter(values).most_common())
        yield f"{name}: {counts}"
    yield f"re-run: {', '.join(f'{n} {v}' for v, n in Counter(r.rerun for r in results).most_common())}"
    bad = [r for r in results if r.problems]
    yield f"{len(results)} cells, {len(bad)} with a problem."
    for result in bad:
        yield f"  {result.scenario} | {result.request} | {result.fault}: {'; '.join(result.problems)}"


def messages(results: Iterable[Result]) -> Iterator[str]:
    """Yield every message once, with the names of single cases taken out, and how often it was said."""
    said = Counter(re.sub(r"case-\d+|:\d{4,5}\b|[0-9a-f]{40,64}", "…", r.message) for r in results if r.message)
    for message, count in said.most_common():
        yield f"{count:5} {message}"


def show_rounds(rounds: Sequence[Round], console: Console) -> None:
    """Print the rounds of two publishers at once."""
    drawn = Table("round", "how", "one", "the other", "commits", "", title="Two publishers", title_justify="left")
    for found in rounds:
        drawn.add_row(
            str(found.number + 1),
            found.how,
            *found.said,
            str(found.commits),
            f"[bold red]{'; '.join(found.problems)}[/]",
        )
    console.print(drawn)


def show_kills(kills: Sequence[Kill], console: Console) -> None:
    """Print the runs that were killed, and what was wrong after the next one."""
    drawn = Table("kill", "at", "it had said", "", title="Killed runs", title_justify="left")
    for found in kills:
        said = found.said if found.died else f"{found.said} (it had ended)"
        drawn.add_row(
            str(found.number), found.at, escape(said[:90]), f"[bold red]{escape('; '.join(found.problems))}[/]"
        )
    console.print(drawn)
