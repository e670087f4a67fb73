"""The summary of a publish on the page of a CI job, in Markdown.

Names of tasks and messages of servers are other people's text: all of it goes through the filters of the card.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from urllib.parse import quote

from hubprune.cards.budget import budget_lines
from hubprune.cards.context import Table
from hubprune.cards.markdown import md
from hubprune.cards.measured import benchmarks
from hubprune.cards.numbers import NONE, change_percent, count, plain, with_interval
from hubprune.cards.removal import removal
from hubprune.commands.ci.outcome import Ending, Outcome
from hubprune.core.artifacts import PublishedCommit, PublishReport, UploadPlan
from hubprune.core.console import size
from hubprune.core.privacy import scrub

__all__ = ["job_summary"]

TITLES: Mapping[Ending, str] = {
    "published": "Published", "up to date": "Up to date", "dry run": "Dry run: nothing was written to the Hub",
    "ran elsewhere": "Done on Hugging Face Jobs", "over budget": "Over budget: nothing was published",
    "edited": "Edited on the Hub: nothing was published", "failed": "Failed",
}  # fmt: skip
ADDRESS = ":/?#&=@%+,;~-._"
"""Characters that an address keeps inside a Markdown link."""


def job_summary(outcome: Outcome) -> str:
    """Write how a publish ended: where the result is, what was dropped, what that cost, and what to look at."""
    return scrub("\n\n".join(_parts(outcome))) + "\n"


def _parts(outcome: Outcome) -> Iterator[str]:
    report = outcome.report
    yield f"## hubprune: {md(TITLES[outcome.ending])}"
    if outcome.problem:
        yield "\n".join(f"> {md(line)}" for line in outcome.problem if line)
    if report:
        if report.published:
            yield _links(report.published, failed=outcome.ending == "failed")
        elif report.upload:
            yield _planned(report.upload)
        yield _dropped(report)
        yield from _measured(report)
    if outcome.warnings:
        yield "### Warnings"
        yield "\n".join(f"- {md(warning)}" for warning in outcome.warnings)


def _links(published: PublishedCommit, *, failed: bool) -> str:
    links = [f"{md(published.repo_id)} at [{published.commit[:12]}]({_address(published.url)})"]
    if published.tag:
        links.append(f"tag {md(published.tag)}")
    if published.pull_request_url:
        links.append(f"[pull request]({_address(published.pull_request_url)})")
    done = "proposed" if published.pull_request_url else "published"
    return f"{f'It is {done} all the same: ' if failed else ''}{', '.join(links)}"


def _planned(upload: UploadPlan) -> str:
    new = "an unknown part" if upload.new_bytes is None else size(upload.new_bytes)
    changed = sum(file.change != "unchanged" for file in upload.files)
    return md(f"It would go to {upload.repo_id}: {changed} of {count(len(upload.files))} files, {new} new to the Hub.")


def _address(url: str) -> str:
    return quote(url, safe=ADDRESS)


def _dropped(report: PublishReport) -> str:
    base, written = report.base, report.checkpoint
    sentences = removal(report.plan, scores=None, verification=report.verification).sentences
    parameters = f"{count(written.base_parameters)} to {count(written.parameters)}"
    weights = f"{size(written.base_weight_bytes)} to {size(written.weight_bytes)}"
    lines = [
        f"Base: {base.name} at {str(base.commit)[:12]}",
        *sentences,
        f"Parameters: {parameters} ({change_percent(written.base_parameters, written.parameters)}); weights: {weights}",
    ]
    return "\n".join(f"- {md(line)}" for line in lines)


def _measured(report: PublishReport) -> Iterator[str]:
    found = benchmarks(report.benchmarks)
    if found:
        yield "### Benchmarks"
        yield _table(found.table)
        if report.benchmarks and (mean := report.benchmarks.mean_points):
            yield f"Mean change: {md(with_interval(mean))} points."
    if limits := report.recipe.get("evaluation", {}).get("max_drop_pp"):
        lines = budget_lines(limits, report.benchmarks)
        yield "### Budget"
        rows = [
            (
                line.name,
                with_interval(line.change) if line.change else NONE,
                plain(-line.allowed, digits=2),
                "yes" if line.kept else "no",
            )
            for line in lines
        ]
        yield _table(Table(columns=("Task", "Δ points", "Allowed", "Kept"), align="lrrl", rows=tuple(rows)))


def _table(table: Table) -> str:
    return "\n".join(_row(cells) for cells in _cells(table))


def _cells(table: Table) -> Iterator[Iterable[str]]:
    yield map(md, table.columns)
    yield table.rules
    for row in table.rows:
        yield map(md, row)


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
