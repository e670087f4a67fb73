"""What the last publish left on the branch that this one goes to, and what of it differs from what is asked for now."""

from __future__ import annotations

from dataclasses import dataclass

from hubprune.cards.fingerprint import CARD_PART, Change, Fingerprint, changes, told
from hubprune.cards.manifest import CARD, MANIFEST
from hubprune.cards.record import PublishRecord, parse_record
from hubprune.core.console import Reporter
from hubprune.core.errors import CheckpointError, RecipeError
from hubprune.hub.remote import RemoteState, is_same, read_remote
from hubprune.hub.session import HubSession
from hubprune.hub.target import Target

__all__ = ["Before", "last_publish", "publish_at"]


@dataclass(frozen=True, kw_only=True)
class Before:
    """A repo as the last publish left it, beside the fingerprint of this one."""

    remote: RemoteState
    record: PublishRecord
    changes: tuple[Change, ...]
    """What a publish depends on and is another now."""
    strays: tuple[str, ...]
    """Files that are not there as they were published; the card is not among them."""

    @property
    def is_up_to_date(self) -> bool:
        """Whether nothing is left to do."""
        return self.only_the_card and not self.changes and self._card_is_as_written

    @property
    def only_the_card(self) -> bool:
        """Whether at most the card has to be rendered again."""
        return not self.strays and all(change.part == CARD_PART for change in self.changes)

    @property
    def _card_is_as_written(self) -> bool:
        listed = self.record.files.get(CARD)
        return listed is not None and listed.sha256 == self.remote.card_sha256

    @property
    def told(self) -> str:
        """What changed, in one line."""
        strays = f"not as published: {', '.join(self.strays)}" if self.strays else ""
        edited = "" if self._card_is_as_written else f"{CARD} was edited by hand"
        return "; ".join(filter(None, (told(self.changes), strays, edited)))


def last_publish(target: Target, now: Fingerprint, *, session: HubSession, reporter: Reporter) -> Before | None:
    """Look at the branch that a publish goes to; None where nothing there can be compared.

    Args:
        target: from the preflight.
        now: what this publish depends on.
        session: which Hub.
        reporter: told of a manifest that is of no use.
    """
    if not target.branch_exists or target.parent is None:
        return None
    return publish_at(target.parent, target, now, session=session, reporter=reporter)


def publish_at(
    commit: str, target: Target, now: Fingerprint, *, session: HubSession, reporter: Reporter
) -> Before | None:
    """Look at a commit of the target's repo; None where nothing there can be compared.

    Args:
        commit: 40 hex digits.
        target: from the preflight.
        now: what this publish depends on.
        session: which Hub.
        reporter: told of a manifest that is of no use.
    """
    remote = read_remote(target.repo_id, commit=commit, session=session)
    if remote.manifest is None:
        return None
    try:
        record = parse_record(remote.manifest.data, where=f"{MANIFEST} of {target.repo_id}")
    except (CheckpointError, RecipeError) as error:
        reporter.note(f"everything is run: {error.message}")
        return None
    strays = (path for path, file in record.files.items() if path != CARD and not is_same(file, remote.files.get(path)))
    return Before(
        remote=remote, record=record, changes=changes(record.report.fingerprint, now), strays=tuple(sorted(strays))
    )
