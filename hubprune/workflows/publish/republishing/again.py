"""End a publish for which nothing has to be computed: the repo is up to date, or needs another card alone."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Literal

from hubprune.cards.manifest import MANIFEST, checkpoint_tag
from hubprune.cards.record import read_record
from hubprune.core.artifacts import PublishedCommit, PublishReport, RepoFile
from hubprune.core.console import Reporter
from hubprune.core.files import list_files, scratch_folder
from hubprune.hub.commit import publish as send
from hubprune.hub.commit import tag_commit
from hubprune.hub.foreign import Overwrite
from hubprune.hub.remote import refs_of
from hubprune.hub.session import HubSession
from hubprune.hub.target import Target
from hubprune.workflows.card import CardChoices, put_card, render_again
from hubprune.workflows.publish.republishing.before import Before
from hubprune.workflows.run import Run

if TYPE_CHECKING:
    from hubprune.workflows.publish.pipeline import PublishOptions

__all__ = ["leave_as_it_is", "without_computing"]


def without_computing(
    run: Run, before: Before, choices: CardChoices, target: Target, options: PublishOptions
) -> PublishReport | None:
    """Do what a publish has to do where nothing has to be computed; None where something has, which is said.

    Who asks for the files, or for a dry run, gets them from the stages, unless only a change is of interest.

    Args:
        run: whose recipe is published.
        before: the last publish.
        choices: what the author adds to the card.
        target: from the preflight.
        options: of the publish.

    Raises:
        HubpruneError: the card cannot be rendered or sent.
    """
    what = f"changed since the last publish: {before.told}" if before.told else "nothing changed since the last publish"
    run.reporter.note(what)
    if options.force or not before.only_the_card:
        return None
    needs_files = options.dry_run or options.out
    if before.is_up_to_date and (options.only_if_changed or not needs_files):
        missing: Literal["tag", "leave"] = "leave" if options.dry_run else "tag"
        left = leave_as_it_is(before, target=target, session=run.session, missing=missing)
        if left is None:
            run.reporter.note("but its tag is missing, which a publish has to make")
        return left
    if needs_files:
        return None
    return _publish_card(
        before,
        choices,
        target=target,
        session=run.session,
        reporter=run.reporter,
        overwrite=options.replaces,
    )


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
    commit, tag = before.remote.commit, _tag(before, target=target, session=session, missing=missing)
    if tag is None and target.is_tagged:
        return None
    published = PublishedCommit(
        repo_id=target.repo_id, commit=commit, parent=None, created=False, files=_files(before),
        url=f"{session.endpoint}/{target.repo_id}/commit/{commit}", tag=tag,
    )  # fmt: skip
    return before.record.report.model_copy(update={"published": published})


def _tag(before: Before, *, target: Target, session: HubSession, missing: Literal["tag", "leave"]) -> str | None:
    """Return the tag of what is published, which is only asked for where it is not there."""
    tag = checkpoint_tag(before.record.report.checkpoint)
    if not target.is_tagged:
        return None
    if tag in {ref.name for ref in refs_of(target.repo_id, session=session).tags}:
        return tag
    if missing == "leave":
        return None
    return tag_commit(tag, repo_id=target.repo_id, commit=before.remote.commit, session=session)


def _files(before: Before) -> tuple[RepoFile, ...]:
    """List what is published as the Hub has it, with the SHA-256 of everything."""
    manifest = before.remote.manifest
    digests = {path: file.sha256 for path, file in before.record.files.items()}
    digests |= {MANIFEST: hashlib.sha256(manifest.data).hexdigest()} if manifest else {}
    there = before.remote.files
    return tuple(there[path].model_copy(update={"sha256": digest}) for path, digest in sorted(digests.items()))


def _publish_card(
    before: Before,
    choices: CardChoices,
    *,
    target: Target,
    session: HubSession,
    reporter: Reporter,
    overwrite: Overwrite,
) -> PublishReport:
    """Render the card of what is published again, and commit it with its manifest and nothing else.

    Args:
        before: what is published.
        choices: templates and notes of the new card.
        target: from the preflight.
        session: which Hub, and as whom.
        reporter: shows the upload.
        overwrite: what may be replaced of what people changed there.

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
            session=session,
            reporter=reporter,
            overwrite=overwrite,
        )
        return read_record(folder).report.model_copy(update={"published": published})
