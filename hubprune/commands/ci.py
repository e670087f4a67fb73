"""Tell the GitHub Actions job that a process runs in how a publish ended, with a summary in Markdown for its page.

The two files that a job names in its environment are appended to; elsewhere nothing happens.  No workflow command is
printed and no token goes anywhere: what is told are results and messages, scrubbed.  Names of tasks and messages of
servers are other people's text: all of it goes through the filters of the card.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from hubprune.cards.context import Table
from hubprune.cards.limits import budget_lines
from hubprune.cards.markdown import NONE, change_percent, count, md, plain, signed, with_interval
from hubprune.cards.measured import benchmarks
from hubprune.cards.removal import removal
from hubprune.core.artifacts import PublishReport, SiblingReport
from hubprune.core.console import Reporter, size
from hubprune.core.devices import rank
from hubprune.core.errors import EditedError, HubpruneError, OverBudgetError
from hubprune.core.privacy import scrub

Ending = Literal["published", "up to date", "dry run", "ran elsewhere", "over budget", "edited", "failed"]
OF_ERRORS: Mapping[type[HubpruneError], Ending] = {OverBudgetError: "over budget", EditedError: "edited"}
"""Errors that are an outcome of their own: nothing is broken, and somebody has to decide."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a publish came to."""

    report: PublishReport | None
    """The last that was known of it; None where it ended before there was any result."""
    error: BaseException | None
    """What ended it early."""
    warnings: tuple[str, ...] = ()

    @property
    def ending(self) -> Ending:
        """The outcome in two words."""
        if self.error is not None:
            return next((ending for kind, ending in OF_ERRORS.items() if isinstance(self.error, kind)), "failed")
        if self.report is None:
            return "ran elsewhere"
        if self.report.published is None:
            return "dry run"
        # A pull request that is there already is what was asked for, and nothing that the branch has.
        is_there = not (self.report.published.created or self.report.published.pull_request_url)
        return "up to date" if is_there else "published"

    @property
    def problem(self) -> tuple[str, str | None] | None:
        """What went wrong and what to do about it; None where nothing did."""
        if self.error is None:
            return None
        if isinstance(self.error, HubpruneError):
            return self.error.message, self.error.hint
        if isinstance(self.error, KeyboardInterrupt):
            return "It was interrupted.", "Run it again: it goes on after the last finished stage."
        return f"It broke off with {type(self.error).__name__}; the log has the traceback.", None


SUMMARY, OUTPUT = "GITHUB_STEP_SUMMARY", "GITHUB_OUTPUT"


@contextmanager
def told_to_job(reporter: Reporter) -> Iterator[Callable[[PublishReport], None]]:
    """Yield what takes a report each time there is a newer one, and tell the job how the block ended, failures too."""
    reports: list[PublishReport] = []
    error: BaseException | None = None
    try:
        yield reports.append
    except BaseException as caught:
        error = caught
        raise
    finally:
        if rank() == 0 and (os.environ.get(SUMMARY) or os.environ.get(OUTPUT)):
            outcome = Outcome(report=reports[-1] if reports else None, error=error, warnings=reporter.warned)
            try:
                _append(SUMMARY, lambda: job_summary(outcome))
                _append(OUTPUT, lambda: "".join(f"{name}={value}\n" for name, value in outputs(outcome).items()))
            except OSError as refused:  # the publish is done or has failed already: its exit code must not change
                reporter.warn(f"The job's summary could not be written: {refused}")


def _append(variable: str, text: Callable[[], str]) -> None:
    if path := os.environ.get(variable):
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(text())


def outputs(outcome: Outcome) -> dict[str, str]:
    """Return what later steps can use, each a single line; without a commit only how it ended."""
    found = {"outcome": outcome.ending.replace(" ", "-")}
    if outcome.report and (published := outcome.report.published):
        found |= {
            "repo_id": published.repo_id,
            "commit": published.commit,
            "url": published.url,
            "tag": published.tag or "",
            "pull_request_url": published.pull_request_url or "",
            "created": "true" if published.created else "false",
        }
    # Nothing of this can hold a line break, and one would be another output.
    return {name: " ".join(value.split()) for name, value in found.items()}


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
        if published := report.published:
            links = [f"{md(published.repo_id)} at [{published.commit[:12]}]({_address(published.url)})"]
            links += [f"tag {md(published.tag)}"] if published.tag else []
            proposed = published.pull_request_url
            links += [f"[pull request]({_address(proposed)})"] if proposed else []
            done = f"It is {'proposed' if proposed else 'published'} all the same: "
            yield f"{done if outcome.ending == 'failed' else ''}{', '.join(links)}"
        elif report.upload:
            upload = report.upload
            new = "an unknown part" if upload.new_bytes is None else size(upload.new_bytes)
            files = f"{sum(file.change != 'unchanged' for file in upload.files)} of {count(len(upload.files))} files"
            yield md(f"It would go to {upload.repo_id}: {files}, {new} new to the Hub.")
        yield _dropped(report)
        yield from _measured(report)
        if report.siblings:
            yield "### Siblings"
            yield "\n".join(map(_sibling, report.siblings))
    if outcome.warnings:
        yield "### Warnings"
        yield "\n".join(f"- {md(warning)}" for warning in outcome.warnings)


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


def _sibling(report: SiblingReport) -> str:
    """Say in a line where a sibling is, or would go, and how close it is to the pruned model."""
    told = [md(report.repo_id)]
    if published := report.published:
        state = "" if published.created else ", up to date"
        told.append(f"at [{published.commit[:12]}]({_address(published.pull_request_url or published.url)}){state}")
    elif report.upload:
        told.append(md(f"would get {sum(file.change != 'unchanged' for file in report.upload.files)} files"))
    if report.quantized and (seen := report.quantized.record.divergence):
        told.append(md(f"(KL {seen.kl:.4f} nats per token, the same first choice at {100 * seen.top1:.1f} %)"))
    if report.exports:
        told.append(md(f"({', '.join(made.outtype for made in report.exports)})"))
    return f"- {' '.join(told)}"


def _measured(report: PublishReport) -> Iterator[str]:
    found = benchmarks(report.benchmarks)
    if found:
        yield "### Benchmarks"
        yield _table(found.table)
        if report.benchmarks and (mean := report.benchmarks.mean_points):
            yield f"Mean change: {md(with_interval(mean))} points."
        yield "<details><summary>Standard errors, documents, shots and chance</summary>"
        yield _table(found.details)
        yield "</details>"
    measured = report.recipe.get("evaluation", {})
    if limits := measured.get("max_loss") or measured.get("max_drop_pp"):  # as earlier versions called it
        yield "### Budget"
        rows = []
        for line in budget_lines(limits, report.benchmarks, report.generation):
            change = with_interval(line.change) if line.change else NONE
            allowed = signed(line.limit) if line.of_texts else plain(line.limit, digits=2)
            rows.append((line.name, change, allowed, "yes" if line.kept else "no"))
        yield _table(Table(columns=("Task", "Δ points", "Allowed", "Kept"), align="lrrl", rows=tuple(rows)))


def _table(table: Table) -> str:
    rows = [map(md, table.columns), table.rules, *(map(md, row) for row in table.rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
