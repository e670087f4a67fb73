"""Tell the GitHub Actions job that a process runs in how a publish ended.

The two files that a job names in its environment are appended to; elsewhere nothing happens.  No workflow command is
printed and no token goes anywhere: what is told are results and messages, scrubbed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from hubprune.commands.ci.outcome import Outcome
from hubprune.core.console import Reporter
from hubprune.core.processes import rank

if TYPE_CHECKING:
    from hubprune.core.artifacts import PublishReport

__all__ = ["OUTPUT", "SUMMARY", "told_to_job"]

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
            _tell(Outcome(report=reports[-1] if reports else None, error=error, warnings=reporter.warned), reporter)


def _tell(outcome: Outcome, reporter: Reporter) -> None:
    from hubprune.commands.ci.summary import job_summary

    try:
        _append(SUMMARY, lambda: job_summary(outcome))
        _append(OUTPUT, lambda: "".join(f"{name}={value}\n" for name, value in outputs(outcome).items()))
    except OSError as error:  # the publish is done or has failed already: this must not change its exit code
        reporter.warn(f"The job's summary could not be written: {error}")


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
