"""`hubprune publish --on hf-jobs`: check everything here, then let a job do the work."""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hubprune.commands.summary import table
from hubprune.core.errors import RecipeError
from hubprune.core.recipe import Recipe
from hubprune.workflows.jobs.order import JobOrder, Machine, refuse_local
from hubprune.workflows.jobs.running import run_job
from hubprune.workflows.publish.pipeline import PublishOptions, check
from hubprune.workflows.run import Run, check_data

if TYPE_CHECKING:
    from huggingface_hub import JobInfo

__all__ = ["publish_on_jobs"]

FLAGS: Mapping[tuple[str, bool], str] = {
    ("overwrite_card", True): "--overwrite-card", ("overwrite", True): "--overwrite",
    ("dry_run", True): "--dry-run", ("force", True): "--force",
    ("speed", True): "--speed", ("primer", False): "--no-primer", ("only_if_changed", True): "--only-if-changed",
}  # fmt: skip
"""Options that no recipe holds and that the job gets as they were given here."""


def publish_on_jobs(run: Run, options: PublishOptions, given: Mapping[str, Any]) -> str:
    """Check a publish here, run it on Hugging Face Jobs, follow it, and return what to print of it.

    Args:
        run: over the recipe; nothing of it is computed here.
        options: of the publish.
        given: options of the command by the names of their parameters.

    Raises:
        HubpruneError: it could not work, or the job failed.
    """
    machine = _machine(given)
    refuse_local(run.recipe, given)
    target = check(run, options)
    check_data(run)
    order = JobOrder(
        recipe=_named(run.recipe, repo_id=target.repo_id),
        machine=machine if machine.namespace else Machine(**{**vars(machine), "namespace": target.user}),
        flags=tuple(flag for (name, value), flag in FLAGS.items() if given.get(name) is value),
        run_id=secrets.token_hex(8),
        endpoint=run.session.endpoint,
    )
    ended = run_job(order, session=run.session, reporter=run.reporter, show=lambda line: print(line, file=sys.stderr))
    return _told(ended, order, as_json=bool(given.get("as_json")))


def _machine(given: Mapping[str, Any]) -> Machine:
    if given.get("on") != "hf-jobs":
        raise RecipeError(f"--on {given.get('on')!r} is no place to run.", hint="There is one: --on hf-jobs.")
    if not given.get("flavor"):
        raise RecipeError(
            "A job needs a machine.", hint="Pass one of `hf jobs hardware`, as in --flavor a100-large; it is billed."
        )
    named = {name: given.get(name) for name in ("flavor", "timeout", "namespace", "requirement")}
    return Machine(**{name: value for name, value in named.items() if value is not None})


def _named(recipe: Recipe, *, repo_id: str) -> Recipe:
    """Name the target in full; the base stays as it is, so that a webhook can run the job again for a newer commit."""
    return recipe.model_copy(update={"target": recipe.target.model_copy(update={"repo_id": repo_id})})


def _told(job: JobInfo, order: JobOrder, *, as_json: bool) -> str:
    rows = {"job": f"{job.owner.name}/{job.id}", "url": job.url, "target": str(order.recipe.target.repo_id)}
    if "--dry-run" in order.flags:
        rows["dry run"] = "nothing was published"
    return json.dumps(rows, indent=2) if as_json else table([[name, value] for name, value in rows.items()], left=2)
