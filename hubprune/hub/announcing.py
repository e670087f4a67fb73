"""What may follow a publish: the merge of what was staged, a collection, and a hint on the repo that it supersedes.

A pull request is merged once it was found to load: readers of the branch never meet a result that does not.  The other
two are best effort: a failure is a warning, since the result is published all the same.  Nothing is done twice, so a
re-run makes up for what failed.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from hubprune.cards.manifest import CARD
from hubprune.core.artifacts import PublishedCommit
from hubprune.core.console import Reporter
from hubprune.core.errors import ConflictError, HubError, HubpruneError
from hubprune.core.recipe import TargetSpec
from hubprune.hub.commit import tag_commit
from hubprune.hub.remote import RECENT_PULL_REQUESTS, check_remote, head_of, number_of, pull_request, pull_request_heads
from hubprune.hub.retry import translate
from hubprune.hub.session import HubSession
from hubprune.hub.target import Target

if TYPE_CHECKING:
    from huggingface_hub import DiscussionWithDetails, HfApi


def merge(proposed: PublishedCommit, *, target: Target, tag: str | None, session: HubSession) -> PublishedCommit:
    """Merge a pull request of `publish`, compare what arrived on the branch, and tag it.

    The Hub squashes what it merges, so the branch gets one commit, of another id than the proposed one.

    Raises:
        ConflictError: the branch has moved since, or the pull request was closed or cannot be merged; it stays there.
        RemoteMismatchError: what is on the branch is not what was proposed.
    """
    number = number_of(str(proposed.pull_request_url))
    found = pull_request(target.repo_id, number, session=session)
    if found.status != "merged":
        _check_mergeable(found, proposed, target=target, session=session)
        doing = f"merge pull request {number} of {target.repo_id}"
        try:
            session.ask(lambda api: api.merge_pull_request(target.repo_id, number), doing=doing)
        except HubError:  # if it is merged by now, only the answer was lost
            if pull_request(target.repo_id, number, session=session).status != "merged":
                raise
    head = head_of(target.repo_id, branch=target.revision, session=session)
    if head is None:
        raise ConflictError(f"The branch {target.revision} of {target.repo_id} was deleted during the run.")
    files = check_remote(proposed.files, gone=(), repo_id=target.repo_id, commit=head, session=session)
    given = tag_commit(tag, repo_id=target.repo_id, commit=head, session=session)
    url = f"{session.endpoint}/{target.repo_id}/commit/{head}"
    return proposed.model_copy(
        update={"commit": head, "parent": target.parent, "created": True, "tag": given, "url": url, "files": files}
    )


def _check_mergeable(
    found: DiscussionWithDetails, proposed: PublishedCommit, *, target: Target, session: HubSession
) -> None:
    """Merge only what was loaded back, and only on top of what the preflight saw.

    The Hub itself would mix both sides' files, and whoever opened a pull request can add to it.
    """
    head = head_of(target.repo_id, branch=target.revision, session=session)
    if head != target.parent:
        raise ConflictError(
            f"Somebody else committed to {target.repo_id}: {target.revision} was at {target.parent} and is at {head} "
            f"now; pull request {found.num} was not merged.",
            hint="Run the command again to propose it on top of that, or merge it on the Hub.",
        )
    if found.status not in ("open", "draft"):
        raise ConflictError(f"Pull request {found.num} of {target.repo_id} is {found.status}, so it is not merged.")
    head = pull_request_heads(target.repo_id, session=session).get(f"refs/pr/{found.num}")
    if head != proposed.commit:
        raise ConflictError(
            f"Pull request {found.num} of {target.repo_id} was at {proposed.commit} and is at {head}; it was not"
            " merged.",
            hint="Look at what was added; run the command again to propose the result anew.",
        )


SLUG = re.compile(r"[\w.-]+/[\w.-]+-[0-9a-f]{24}", re.ASCII)
"""What the Hub makes of a title: its owner, its words, and an id."""

KEY = "new_version"
FRONT_MATTER = re.compile(
    r"\ufeff?---[ \t]*(?P<break>\r\n|\n|\r)(?P<values>(?:.*?(?:\r\n|\n|\r))??)---[ \t]*(?=[\r\n]|\Z)", re.DOTALL
)
"""The metadata on top of a card, and which line break it has."""
LINE = re.compile(rf"^{KEY}[ \t]*:[^\r\n]*", re.MULTILINE)


def announce(spec: TargetSpec, published: PublishedCommit, *, session: HubSession, reporter: Reporter) -> None:
    """Add a published repo to the collection of a recipe, and propose it as the new version of the repo it supersedes.

    What was proposed as a pull request and left open is not announced: it is not there yet.
    """
    if (spec.create_pr and published.pull_request_url) or not (spec.collection or spec.supersedes):
        return
    repo_id, steps = published.repo_id, {}
    if title := spec.collection:
        said = f"add {repo_id} to the collection {title!r}"
        steps[said] = partial(_collect, title, repo_id, private=spec.private, session=session)
    if old := spec.supersedes:
        steps[f"tell {old} of its new version {repo_id}"] = partial(_hint, old, repo_id, session=session)
    for doing, step in steps.items():
        try:
            reporter.note(step())
        except Exception as error:  # nothing that happens here may fail a publish that is done
            known = isinstance(error, HubpruneError)
            told = error if known else translate(error, doing=doing, endpoint=session.endpoint)
            reporter.warn(f"It is published, but: {told}")


def _collect(name: str, repo_id: str, *, private: bool, session: HubSession) -> str:
    """Add a repo to a collection by slug or title; one that is missing is created in the repo's namespace."""
    slug, owner = name, repo_id.split("/")[0]

    def find_or_create(api: HfApi) -> str:
        # Asking for it first keeps the second try of a request with a lost answer from making another.
        known = next((c for c in api.list_collections(owner=owner) if c.title == name), None)
        return (known or api.create_collection(name, namespace=owner, private=private, exists_ok=True)).slug

    if not SLUG.fullmatch(name):
        slug = session.ask(find_or_create, doing=f"find or create the collection {name} of {owner}")
    doing = f"add {repo_id} to the collection {name}"
    added = session.ask(lambda api: api.add_collection_item(slug, repo_id, "model", exists_ok=True), doing=doing)
    return f"in the collection {added.url}"


def _hint(old: str, repo_id: str, *, session: HubSession) -> str:
    """Propose `new_version` in the metadata of the old repo, unless it is there or was proposed before.

    Raises:
        HubError: its metadata is such that no line can be added to it.
    """
    from huggingface_hub import CommitOperationAdd
    from huggingface_hub.errors import EntryNotFoundError

    title, doing = f"Point to the new version {repo_id}", f"read {CARD} of {old}"
    try:
        path = session.ask(lambda api: api.hf_hub_download(old, CARD), doing=doing, passing=(EntryNotFoundError,))
    except EntryNotFoundError:
        return f"{old} has no card that could name its new version"
    text = Path(path).read_bytes().decode(errors="surrogateescape")  # no byte of it is to become another
    found = FRONT_MATTER.match(text)
    if found and (KEY, repo_id) in (_pairs(found["values"]) or ()):
        return f"{old} names it as its new version"
    if _was_proposed(old, title, session=session):
        return f"{old} was asked before to name it as its new version"
    card = with_new_version(text, repo_id)
    if card is None:
        raise HubError(f"The metadata of {old} takes no further line.", hint=f"Add `{KEY}: {repo_id}` to it by hand.")
    change = CommitOperationAdd(path_in_repo=CARD, path_or_fileobj=card.encode(errors="surrogateescape"))
    # Asked once, since a second try after a lost answer would open another.
    made = session.api.create_commit(old, [change], commit_message=title, create_pr=True)
    return f"pull request to name it as the new version of {old}: {made.pr_url}"


def _was_proposed(old: str, title: str, *, session: HubSession) -> bool:
    """Look for the hint among the newest pull requests, closed ones too: a refusal is an answer."""

    def title_of(ref: str) -> str | None:
        doing = f"read the pull requests of {old}"
        commits = session.ask(lambda api: api.list_repo_commits(old, revision=ref), doing=doing)
        return commits[0].title if commits else None

    newest = list(pull_request_heads(old, session=session))[:RECENT_PULL_REQUESTS]
    return any(title_of(ref) == title for ref in newest)


def with_new_version(card: str, repo_id: str) -> str | None:
    """Name a new version in the metadata of a card that somebody else wrote; nothing but that one line is touched.

    Returns:
        The card, or None where a line would mean something else there.
    """
    line = f"{KEY}: {repo_id}"
    found = FRONT_MATTER.match(card)
    if found is None:
        mark = "\ufeff" if card.startswith("\ufeff") else ""
        return f"{mark}---\n{line}\n---\n{card.removeprefix(mark)}"
    start, end = found.span("values")
    values, broken = found["values"], found["break"]
    replaced, count = LINE.subn(line, values)
    edited = replaced if count else f"{values}{line}{broken}"
    before, after = _pairs(values), _pairs(edited)
    if before is None or after is None or after.count((KEY, repo_id)) != 1:
        return None
    others = [[pair for pair in pairs if pair[0] != KEY] for pairs in (before, after)]
    if others[0] != others[1] or len(after) != len(others[1]) + 1:
        return None
    return f"{card[:start]}{edited}{card[end:]}"


def _pairs(text: str) -> list[tuple[str, str]] | None:
    """Return the keys at the top of some metadata, each with what is written behind it; None where it is no mapping."""
    import yaml

    try:
        node = yaml.compose(text, Loader=yaml.BaseLoader)
    except (yaml.YAMLError, ValueError, RecursionError):
        return None
    if node is None:
        return []
    if not isinstance(node, yaml.MappingNode):
        return None
    return [(str(key.value), text[value.start_mark.index : value.end_mark.index].rstrip()) for key, value in node.value]
