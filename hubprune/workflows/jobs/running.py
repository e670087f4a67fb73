"""Send a job, follow its log to the end, and say how it ended."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from hubprune.cards.markdown import visible
from hubprune.core.console import Reporter
from hubprune.core.errors import JobError, RecipeError
from hubprune.core.privacy import scrub
from hubprune.hub import oidc
from hubprune.hub.retry import translate
from hubprune.hub.session import HubSession
from hubprune.workflows.jobs.order import IMAGE, LABEL, JobOrder

if TYPE_CHECKING:
    from huggingface_hub import JobInfo

__all__ = ["follow", "run_job", "submit"]

POLL_SECONDS = 5.0
ENDED = ("COMPLETED", "CANCELED", "ERROR", "DELETED")
SHORT_LIVED = (oidc.PUBLISHER_PREFIX, "hf_oauth_")
"""How tokens begin that end before a job does."""


def run_job(order: JobOrder, *, session: HubSession, reporter: Reporter, show: Callable[[str], None]) -> JobInfo:
    """Send a job and follow it to its end; Ctrl-C leaves the job running and says how to come back to it.

    Args:
        order: what to run.
        session: which Hub, and as whom; the job publishes with the same token.
        reporter: told where the job is.
        show: called with each line of the job's log.

    Raises:
        JobError: the job failed, or was cancelled.
        HubError: the Hub refused it.
    """
    job = submit(order, session=session)
    reporter.note(f"job {job.owner.name}/{job.id} on {order.machine.flavor}: {job.url}")
    return follow(job, session=session, reporter=reporter, show=show)


def submit(order: JobOrder, *, session: HubSession) -> JobInfo:
    """Send a job, once: where the answer is lost, it is looked for instead of being sent again.

    Raises:
        RecipeError: the token ends before a job does.
        HubError: the Hub refused it.
    """
    token, namespace = session.token, order.machine.namespace
    if token and token.startswith(SHORT_LIVED):
        raise RecipeError(
            "This login's token ends before the job does, which publishes with it.",
            hint="Set HF_TOKEN to a token with write permission from the Hub's settings.",
        )
    try:
        return session.api.run_job(
            image=IMAGE,
            command=order.command,
            env=order.environment,
            secrets={"HF_TOKEN": token},
            flavor=order.machine.flavor,
            timeout=order.machine.timeout,
            name=order.name,
            labels=order.labels,
            namespace=namespace,
        )
    except Exception as error:
        told = translate(error, doing=f"run a job as {namespace}", endpoint=session.endpoint)
        if getattr(error, "response", None) is not None:
            raise told from error
        found = session.ask(
            lambda api: list(api.list_jobs(namespace=namespace, labels={LABEL: order.run_id})), doing="list the jobs"
        )
        if not found:
            raise told from error
        return found[0]


def follow(job: JobInfo, *, session: HubSession, reporter: Reporter, show: Callable[[str], None]) -> JobInfo:
    """Show the log of a job as it is written, and wait for its end.

    Raises:
        JobError: the job failed, or was cancelled.
        HubError: the Hub does not tell how it ended.
    """
    name = f"{job.owner.name}/{job.id}"
    again = f"Follow it again: hf jobs logs -f {name}"
    try:
        _show_log(job, session=session, reporter=reporter, show=show)
        ended = _wait(job, session=session)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"The job goes on.  {again}   Cancel it: hf jobs cancel {name}") from None
    if ended.status.stage != "COMPLETED":
        _refuse(ended, hint=f"Its log: hf jobs logs {name}")
    return ended


def _show_log(job: JobInfo, *, session: HubSession, reporter: Reporter, show: Callable[[str], None]) -> None:
    lines = session.api.fetch_job_logs(job_id=job.id, namespace=job.owner.name, follow=True)
    try:
        for line in lines:
            show(scrub(visible(line.rstrip("\n"), keep="\t")))
    except Exception as error:  # the job goes on without anybody who reads its log
        told = translate(error, doing="follow the log", endpoint=session.endpoint)
        reporter.warn(f"{told.message} Waiting for the job to end.")


def _wait(job: JobInfo, *, session: HubSession) -> JobInfo:
    while True:
        seen = session.ask(
            lambda api: api.inspect_job(job_id=job.id, namespace=job.owner.name), doing=f"look at the job {job.id}"
        )
        if seen.status.stage in ENDED:
            return seen
        time.sleep(POLL_SECONDS)


def _refuse(job: JobInfo, *, hint: str) -> NoReturn:
    said = f": {scrub(visible(job.status.message))}" if job.status.message else "."
    raise JobError(f"The job {job.id} ended as {str(job.status.stage).split('.')[-1]}{said}", hint=hint)
