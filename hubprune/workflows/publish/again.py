"""What a publish need not compute again: what the last one measured, or all of it, here or in an open pull request.

Only what would come out again is taken: the key of a stage stands for everything that its result depends on, the
machine and the versions included.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Literal

from hubprune.cards.card import Fingerprint
from hubprune.cards.manifest import MANIFEST, checkpoint_tag, read_record
from hubprune.core.artifacts import DropPlan, LayerScores, PublishedCommit, PublishReport, RepoFile
from hubprune.core.files import list_files, scratch_folder
from hubprune.core.requests import PublishRequest
from hubprune.hub.commit import publish as send
from hubprune.hub.commit import tag_commit
from hubprune.hub.remote import RECENT_PULL_REQUESTS, Overwrite, number_of, pull_request, pull_request_heads, refs_of
from hubprune.hub.session import HubSession
from hubprune.hub.target import Target
from hubprune.workflows.card import CardChoices, put_card, render_again
from hubprune.workflows.publish.before import Before, publish_at
from hubprune.workflows.run import Run, scores_key

SCORES, ROUNDS = "scores", "rounds"
OFFERED = ("benchmarks", "generation", "speed", "snippet")
"""Stages whose whole result is in a manifest, each under the name of its part."""


def offer_results(before: Before, run: Run) -> None:
    """Hold ready in the run's store what the last publish measured."""
    report = before.record.report
    if report.environment.machine != run.environment.machine:
        run.reporter.note(f"the last publish ran on {report.environment.machine}: nothing that it measured is taken")
        return
    for stage in OFFERED:
        key, value = report.stage_keys.get(stage), getattr(report, stage)
        if key and value is not None:
            run.store.offer(stage, key, value, seconds=report.seconds.get(stage, 0.0), on_take=_say(run))


def scores_before(before: Before | None, run: Run, now: Fingerprint) -> tuple[LayerScores, DropPlan] | None:
    """Return scores and plan of the last publish where this run would find the same; None where it has to score.

    A manifest has no scores of single documents, without which no other plan could tell how sure it is.  So both are
    taken or neither.
    """
    report = before.record.report if before else None
    if report is None or report.scores is None or report.fingerprint.get("pruning") != now["pruning"]:
        return None
    key = scores_key(run)
    if run.store.has(SCORES, key) or report.stage_keys.get(SCORES) != key:
        return None
    for stage in (SCORES, ROUNDS):
        if stage in report.stage_keys:
            run.store.take(stage, report.stage_keys[stage], seconds=report.seconds.get(stage, 0.0))
            _say(run)(stage)
    return report.scores, report.plan


def _say(run: Run) -> Callable[[str], None]:
    return lambda stage: run.reporter.note(f"{stage}: taken from the last publish")


# ---- again ---------------------------------------------------------------------------------------------------------


def without_computing(
    run: Run, before: Before, choices: CardChoices, target: Target, request: PublishRequest
) -> PublishReport | None:
    """Do what a publish has to do where nothing has to be computed; None where something has, which is said.

    Who asks for the files, or for a dry run, gets them from the stages, unless only a change is of interest.

    Args:
        run: whose recipe is published.
        before: the last publish.
        choices: what the author adds to the card.
        target: from the preflight.
        request: of the publish.

    Raises:
        HubpruneError: the card cannot be rendered or sent.
    """
    what = f"changed since the last publish: {before.told}" if before.told else "nothing changed since the last publish"
    run.reporter.note(what)
    if request.force or not before.only_the_card:
        return None
    needs_files = request.dry_run or request.out
    if before.is_up_to_date and (request.only_if_changed or not needs_files):
        missing: Literal["tag", "leave"] = "leave" if request.dry_run else "tag"
        left = leave_as_it_is(before, target=target, session=run.session, missing=missing)
        if left is None:
            run.reporter.note("but its tag is missing, which a publish has to make")
        return left
    if needs_files:
        return None
    return _publish_card(run, before, choices, target, overwrite=request.replaces)


def leave_as_it_is(
    before: Before, *, target: Target, session: HubSession, missing: Literal["tag", "leave"] = "tag"
) -> PublishReport | None:
    """Report what is there, in the words of the publish that made it as far as its manifest tells.

    None where its tag is missing and is left so: a publish still has something to do.

    Args:
        before: what is published.
        target: from the preflight.
        session: which Hub, and as whom.
        missing: whether a missing tag is made, as after a publish that was killed before it came to that.

    Raises:
        HubError: the Hub refused or did not answer.
    """
    commit, tag = before.remote.commit, None
    if target.is_tagged:
        tag = checkpoint_tag(before.record.report.checkpoint)
        if tag not in {ref.name for ref in refs_of(target.repo_id, session=session).tags}:
            if missing == "leave":
                return None
            tag_commit(tag, repo_id=target.repo_id, commit=commit, session=session)
    published = PublishedCommit(
        repo_id=target.repo_id, commit=commit, parent=None, created=False, files=_files(before),
        url=f"{session.endpoint}/{target.repo_id}/commit/{commit}", tag=tag,
    )  # fmt: skip
    return before.record.report.model_copy(update={"published": published})


def _files(before: Before) -> tuple[RepoFile, ...]:
    """List what is published as the Hub has it, with the SHA-256 of everything."""
    manifest = before.remote.manifest
    digests = {path: file.sha256 for path, file in before.record.files.items()}
    digests |= {MANIFEST: hashlib.sha256(manifest.data).hexdigest()} if manifest else {}
    there = before.remote.files
    return tuple(there[path].model_copy(update={"sha256": digest}) for path, digest in sorted(digests.items()))


def _publish_card(
    run: Run, before: Before, choices: CardChoices, target: Target, *, overwrite: Overwrite
) -> PublishReport:
    """Render the card of what is published again, and commit it with its manifest and nothing else.

    Raises:
        RecipeError: a template of the user's own does not do.
        ConflictError: somebody else committed meanwhile, or changed what is published.
        HubError: the Hub refused or did not answer.
    """
    record = before.record
    with scratch_folder(name="hubprune-card") as folder:
        put_card(folder, record, choices, text=render_again(record, choices))
        files = {**record.files, **{file.path: file for file in list_files(folder)}}
        published = send(
            folder,
            target=target,
            files=tuple(files[path] for path in sorted(files)),
            message="Render the card again",
            tag=checkpoint_tag(record.report.checkpoint),
            session=run.session,
            reporter=run.reporter,
            overwrite=overwrite,
        )
        return read_record(folder).report.model_copy(update={"published": published})


# ---- proposed ------------------------------------------------------------------------------------------------------


def proposed_before(run: Run, target: Target, now: Fingerprint, request: PublishRequest) -> PublishReport | None:
    """Report an open pull request of this user that proposes the same on top of the same commit; None without one.

    One that is to be merged is not looked for: it has to be loaded back first.  Nor is one of anybody else: whoever may
    propose could keep a result from being proposed by proposing what only says that it is the same.

    Args:
        run: whose recipe is published.
        target: from the preflight.
        now: what this publish depends on.
        request: of the publish; who asks for the files gets them, unless only a change is of interest.
    """
    needs_files = request.force or ((request.dry_run or request.out) and not request.only_if_changed)
    if needs_files or not target.create_pr or target.staged or target.parent is None:
        return None
    session, reporter = run.session, run.reporter
    for ref, head in list(pull_request_heads(target.repo_id, session=session).items())[:RECENT_PULL_REQUESTS]:
        if not _is_own_and_open(number_of(ref), target=target, session=session):
            continue
        before = publish_at(head, target, now, session=session, reporter=reporter)
        if before and before.is_up_to_date and _lies_on(target.parent, before, target=target, session=session):
            url = f"{session.endpoint}/{target.repo_id}/discussions/{number_of(ref)}"
            report = leave_as_it_is(before, target=target, session=session)
            if report and report.published:
                published = report.published.model_copy(update={"pull_request_url": url})
                return report.model_copy(update={"published": published})
    return None


def _is_own_and_open(number: int, *, target: Target, session: HubSession) -> bool:
    found = pull_request(target.repo_id, number, session=session)
    return found.status in ("open", "draft") and found.author == target.user


def _lies_on(parent: str, before: Before, *, target: Target, session: HubSession) -> bool:
    commits = session.ask(
        lambda api: api.list_repo_commits(target.repo_id, revision=before.remote.commit),
        doing=f"read the history of {target.repo_id}",
    )
    return len(commits) > 1 and commits[1].commit_id == parent
