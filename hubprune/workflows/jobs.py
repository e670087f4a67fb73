"""`hubprune publish --on hf-jobs`: check everything here, then let a job of Hugging Face do the work.

The job gets the recipe in its environment and the token as a secret; its log is followed to the end.
"""

from __future__ import annotations

import re
import secrets
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from hubprune.cards.markdown import visible
from hubprune.core import __version__
from hubprune.core.console import Reporter
from hubprune.core.errors import JobError, RecipeError
from hubprune.core.extras import requirement
from hubprune.core.options import as_typed
from hubprune.core.privacy import DEFAULT_ENDPOINT, is_local_data, scrub
from hubprune.core.recipe import Recipe
from hubprune.core.requests import JobRequest
from hubprune.hub.retry import translate
from hubprune.hub.session import PUBLISHER_PREFIX, HubSession
from hubprune.workflows.publish import check
from hubprune.workflows.publish.counting import with_count
from hubprune.workflows.recipes import recipe_of
from hubprune.workflows.run import Run, check_data, open_run

if TYPE_CHECKING:
    from huggingface_hub import JobInfo

IMAGE = "ghcr.io/astral-sh/uv:python3.12-bookworm"
"""The client's own image for jobs of uv; torch brings its CUDA libraries along."""
RECIPE_VARIABLE = "HUBPRUNE_RECIPE"
LABEL = "hubprune-job"
"""Label by which a job is found again whose answer was lost."""
LONGEST_RECIPE = 64_000
"""Bytes; an environment variable of Linux holds twice as much."""
HERE_ONLY: Mapping[str, str] = {
    "notes": "--notes", "healed": "--healed", "card_template": "--card-template", "out": "--out", "report": "--report",
}  # fmt: skip
"""Options that name files of this machine."""
UNFIT_FOR_NAMES = re.compile(r"[^A-Za-z0-9_-]")
FLAGS: Mapping[tuple[str, bool], str] = {
    ("overwrite_card", True): "--overwrite-card", ("overwrite", True): "--overwrite",
    ("dry_run", True): "--dry-run", ("force", True): "--force",
    ("speed", True): "--speed", ("primer", False): "--no-primer", ("only_if_changed", True): "--only-if-changed",
}  # fmt: skip
"""Options that no recipe holds and that the job gets as they were given here."""
HANDED_ON = ("max_memory", "runtimes")
"""Others of them, with a value."""
POLL_SECONDS = 5.0
ENDED = ("COMPLETED", "CANCELED", "ERROR", "DELETED")
SHORT_LIVED = (PUBLISHER_PREFIX, "hf_oauth_")
"""How tokens begin that end before a job does."""


def publish_on_jobs(request: JobRequest, *, reporter: Reporter) -> dict[str, str]:
    """Check a publish here, run it on Hugging Face Jobs, follow it, and return what there is to tell of the job.

    Nothing of it is computed here.  Ctrl-C leaves the job running and says how to come back to it.

    Raises:
        HubpruneError: it could not work, or the job failed.
    """
    request = with_count(request, reporter=reporter, sweeps=False)
    return run_on_jobs(open_run(recipe_of(request), request.endpoint, reporter), request)


def run_on_jobs(run: Run, request: JobRequest) -> dict[str, str]:
    """Do the same for a run that is open already."""
    if request.on != "hf-jobs":
        raise RecipeError(f"--on {request.on!r} is no place to run.", hint="There is one: --on hf-jobs.")
    if not request.flavor:
        hint = "Pass one of `hf jobs hardware`, as in --flavor a100-large; it is billed."
        raise RecipeError("A job needs a machine.", hint=hint)
    chosen = {"timeout": request.timeout, "namespace": request.namespace, "requirement": request.requirement}
    recipe, session = run.recipe, run.session
    chosen["requirement"] = request.requirement or requirement_of(recipe)
    machine = Machine(flavor=request.flavor, **{name: value for name, value in chosen.items() if value is not None})
    refuse_local(recipe, request)
    target, _ = check(run, request)
    check_data(run)
    # The target gets its full name; the base stays as it is: a webhook can run the job again for a newer commit.
    named = recipe.target.model_copy(update={"repo_id": target.repo_id})
    order = JobOrder(
        recipe=recipe.model_copy(update={"target": named}),
        machine=machine if machine.namespace else replace(machine, namespace=target.user),
        flags=(
            *(flag for (name, value), flag in FLAGS.items() if getattr(request, name) is value),
            *as_typed(request, *HANDED_ON),
        ),
        run_id=secrets.token_hex(8),
        endpoint=session.endpoint,
    )
    job = submit(order, session=session)
    run.reporter.note(f"job {job.owner.name}/{job.id} on {order.machine.flavor}: {job.url}")
    ended = follow(job, session=session, reporter=run.reporter, show=lambda line: print(line, file=sys.stderr))
    told = {"job": f"{ended.owner.name}/{ended.id}", "url": ended.url, "target": target.repo_id}
    return {**told, "dry run": "nothing was published"} if "--dry-run" in order.flags else told


def requirement_of(recipe: Recipe) -> str:
    """Return what uv installs in the job: this very version, with what its siblings take."""
    asked = {"heal": recipe.heal, "quantize": recipe.quantize, "gguf": recipe.gguf}
    extras = ["torch", "plots", *(extra for extra, wanted in asked.items() if wanted)]
    return requirement(*extras)


def refuse_local(recipe: Recipe, request: JobRequest) -> None:
    """Refuse what only this machine has: the job could not find it.

    Raises:
        RecipeError: with the first such thing.
    """
    local = [f"What {option} names" for name, option in HERE_ONLY.items() if getattr(request, name) is not None]
    if recipe.evaluation.include_path:
        local.append(f"The folder of tasks {recipe.evaluation.include_path}")
    if recipe.reads_texts:
        datasets = (subset.dataset for subset in recipe.calibration.subsets)
        local += [f"The calibration file {dataset}" for dataset in datasets if is_local_data(dataset)]
    if local:
        raise RecipeError(
            f"{local[0]} is on this machine, and the job runs on another.",
            hint="Put the data on the Hub and name it there, or run without --on.",
        )
    if len(recipe.to_yaml().encode()) > LONGEST_RECIPE:
        raise RecipeError("The recipe is too long for a job's environment.", hint="Shorten its prompts.")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where a job runs, and for how long at most."""

    flavor: str
    """As `hf jobs hardware` lists them."""
    timeout: str = "12h"
    """A number with s, m, h or d; the job is ended after it."""
    namespace: str | None = None
    """Who runs and pays the job; None for the user whose token it is."""
    requirement: str = field(default_factory=lambda: requirement("torch", "plots"))
    """What uv installs in the job: this very version, as a rule."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\d+(\.\d+)?[smhd]?", self.timeout):
            raise RecipeError(f"--timeout {self.timeout!r} is no time span.", hint="Write it like 90m, 12h or 1d.")


@dataclass(frozen=True, kw_only=True)
class JobOrder:
    """One job, ready to be sent."""

    recipe: Recipe
    """With the full name of its target, which does not depend on whose token the job has."""
    machine: Machine
    flags: tuple[str, ...]
    """Further options of `hubprune publish`, such as --overwrite-card."""
    run_id: str
    """Tells this order from all others."""
    endpoint: str

    @property
    def command(self) -> list[str]:
        """The command of the job: write the recipe, then publish by it."""
        publish = shlex.join(["hubprune", "publish", "--recipe", "recipe.yaml", *self.flags])
        install = shlex.join(["uv", "run", "--no-project", "--with", self.machine.requirement])
        return ["bash", "-euc", f"printf '%s' \"${RECIPE_VARIABLE}\" > recipe.yaml; exec {install} {publish}"]

    @property
    def environment(self) -> dict[str, str]:
        """The variables of the job, which anybody who may see the job can read: there is no token among them."""
        elsewhere = {"HF_ENDPOINT": self.endpoint} if self.endpoint != DEFAULT_ENDPOINT else {}
        return {RECIPE_VARIABLE: self.recipe.to_yaml(), "HF_HUB_DISABLE_PROGRESS_BARS": "1", **elsewhere}

    @property
    def name(self) -> str:
        """A name for the list of jobs."""
        return UNFIT_FOR_NAMES.sub("-", f"hubprune-{str(self.recipe.target.repo_id).split('/')[-1]}")

    @property
    def labels(self) -> dict[str, str]:
        """By which the job can be found."""
        return {LABEL: self.run_id, "hubprune": UNFIT_FOR_NAMES.sub("-", __version__)}


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
            image=IMAGE, command=order.command, env=order.environment, secrets={"HF_TOKEN": token},
            flavor=order.machine.flavor, timeout=order.machine.timeout, name=order.name, labels=order.labels,
            namespace=namespace,
        )  # fmt: skip
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
        lines = session.api.fetch_job_logs(job_id=job.id, namespace=job.owner.name, follow=True)
        try:
            for line in lines:
                show(scrub(visible(line.rstrip("\n"), keep="\t")))
        except Exception as error:  # the job goes on without anybody who reads its log
            told = translate(error, doing="follow the log", endpoint=session.endpoint)
            reporter.warn(f"{told.message} Waiting for the job to end.")
        ended = _look_at(job, session=session)
        while ended.status.stage not in ENDED:
            time.sleep(POLL_SECONDS)
            ended = _look_at(job, session=session)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"The job goes on.  {again}   Cancel it: hf jobs cancel {name}") from None
    if (stage := ended.status.stage) != "COMPLETED":
        said = f": {scrub(visible(ended.status.message))}" if ended.status.message else "."
        hint = f"Its log: hf jobs logs {name}"
        raise JobError(f"The job {ended.id} ended as {str(stage).split('.')[-1]}{said}", hint=hint)
    return ended


def _look_at(job: JobInfo, *, session: HubSession) -> JobInfo:
    return session.ask(
        lambda api: api.inspect_job(job_id=job.id, namespace=job.owner.name), doing=f"look at the job {job.id}"
    )
