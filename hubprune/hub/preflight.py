"""Everything that can refuse a publish is asked before the first second of compute.

Whose token it is, and whether it may do what a publish ends with, is told in the second half.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hubprune.cards.card import skeleton
from hubprune.cards.manifest import CARD
from hubprune.cards.provenance import bare_name, card_in_force, check_license, check_name
from hubprune.core.artifacts import BaseCard, BaseCheckpoint, RepoFile, SiblingKind
from hubprune.core.console import size
from hubprune.core.errors import AuthenticationError, DiskSpaceError, HubpruneError, PermissionDeniedError, RecipeError
from hubprune.core.privacy import check_endpoint
from hubprune.core.recipe import LONGEST_NAME, Recipe
from hubprune.hub.remote import Overwrite, branch_heads, check_is_ours, read_remote, refs_of
from hubprune.hub.repos import INDEX, SINGLE, needed_files, weight_files
from hubprune.hub.retry import LOGIN, status_of, translate
from hubprune.hub.session import VARIABLE, HubSession, is_publishers, reads_only, trusted_repo
from hubprune.hub.target import SHORTER, Target, check_branch, check_name_loads, check_visibility, is_private

WITHOUT_CODE = {"block-drop", "mlp-width"}
"""Methods whose results stock classes load, as a rule."""
UNKNOWN_SIZE = -1
"""Of a file that is yet to be made, and so the same as none that is there."""
Excuse = Callable[[HubpruneError], None]


def preflight(
    recipe: Recipe,
    *,
    base: BaseCheckpoint,
    session: HubSession,
    overwrite: Overwrite = "nothing",
    excuse: Excuse | None = None,
) -> Target:
    """Check that nothing will stop the publish at its end; takes seconds and writes nothing.

    Args:
        excuse: told, in a dry run, that the token may not write there, or that there is none; None to refuse both.

    Raises:
        AuthenticationError: no token, or one that is not valid.
        PermissionDeniedError: the token may not write there.
        EditedError: somebody changed files of the publish before, or has others that are in the way.
        RecipeError: libraries that talk to different Hubs, a local base, a name that is no repo id or that the
            licence does not allow, a licence that is not the base's, a revision that is no branch, a public repo for
            what is private, or metadata that the Hub refuses.
    """
    check_endpoint(session.endpoint)
    if base.commit is None:
        told = f"Cannot publish from the local folder {base.name!r}: a card names its base on the Hub, and the commit."
        raise RecipeError(told, hint="Give the base's repo id, or keep the result local.")
    identity = _identify(session, wanted=recipe.target.repo_id, excuse=excuse)
    check_license(recipe, base=base)
    terms = card_in_force(base, given=recipe.target.license)
    repo_id = _target_id(recipe, identity=identity, terms=terms)
    name = repo_id.split("/")[-1]
    check_name(recipe.target.repo_id or name, card=terms, allowed=recipe.target.allow_name)
    target = _look_at(
        repo_id, recipe=recipe, base=base, identity=identity, session=session, overwrite=overwrite, excuse=excuse
    )
    _check_metadata(skeleton(recipe, base=base, name=name), session=session)
    return target


def preflight_beside(
    repo_id: str, kind: SiblingKind, *, of: str, recipe: Recipe, base: BaseCheckpoint, files: Sequence[str],
    session: HubSession, overwrite: Overwrite = "nothing", excuse: Excuse | None = None,
) -> Target:  # fmt: skip
    """Check the same of a repo beside `of`, with weights in `files`, or in those of the base where none are named.

    Raises:
        HubpruneError: as `preflight`.
    """
    identity = _identify(session, wanted=repo_id, excuse=excuse)
    _check_length(repo_id)
    if kind != "gguf" and recipe.layout != "stock" and not set(recipe.methods) <= WITHOUT_CODE:
        check_name_loads(repo_id)
    target = _look_at(
        repo_id, recipe=recipe, base=base, identity=identity, session=session, overwrite=overwrite, excuse=excuse,
        weights=files or None,
    )  # fmt: skip
    name = repo_id.split("/")[-1]
    _check_metadata(skeleton(recipe, base=base, name=name, sibling_of=(kind, of)), session=session)
    return target


def target_of(recipe: Recipe, *, base: BaseCheckpoint, session: HubSession, overwrite: Overwrite = "nothing") -> Target:
    """Check the target of a result that a dry run made, and that was checked in all else then.

    The base is not asked for: a token that may write to one repo and nothing else is enough.

    Raises:
        HubpruneError: as `preflight`.
    """
    check_endpoint(session.endpoint)
    repo_id, identity = str(recipe.target.repo_id), identify(session)
    return _look_at(repo_id, recipe=recipe, base=base, identity=identity, session=session, overwrite=overwrite)


def _identify(session: HubSession, *, wanted: str | None, excuse: Excuse | None) -> Identity:
    """Ask whose token it is; where there is none, a target that is named in full is enough for a dry run."""
    try:
        return identify(session)
    except AuthenticationError as error:
        if excuse is None or session.token is not None or "/" not in (wanted or ""):
            if excuse and session.token is None:
                error.advise("Or pass --repo-id NAME/MODEL to rehearse without one.")
            raise
        excuse(error)
        return NOBODY


def _target_id(recipe: Recipe, *, identity: Identity, terms: BaseCard) -> str:
    repo_id = identity.repo_id(recipe.target.repo_id, default=bare_name(recipe.default_name, card=terms))
    _check_length(repo_id)
    if recipe.layout != "stock" and not set(recipe.methods) <= WITHOUT_CODE:
        check_name_loads(repo_id)
    return repo_id


def _check_length(repo_id: str) -> None:
    name = repo_id.split("/")[-1]
    if len(name) > LONGEST_NAME:
        raise RecipeError(
            f"The result would be called {name}, which has {len(name)} characters, and the Hub allows {LONGEST_NAME}.",
            hint=SHORTER,
        )


def _look_at(
    repo_id: str,
    *,
    recipe: Recipe,
    base: BaseCheckpoint,
    identity: Identity,
    session: HubSession,
    overwrite: Overwrite,
    excuse: Excuse | None = None,
    weights: Sequence[str] | None = None,
) -> Target:
    """Refuse what the commit itself would refuse hours later, as far as it can be told which files are coming."""
    wanted = recipe.target
    private = is_private(repo_id, session=session)
    exists = private is not None
    may = check_can_write if exists else check_can_create
    try:
        if identity is not NOBODY:
            may(repo_id, identity=identity, create_pr=wanted.create_pr, session=session)
    except PermissionDeniedError as error:
        if excuse is None:
            raise
        excuse(error)
    check_visibility(recipe, base=base, repo_id=repo_id, private=private, endpoint=session.endpoint)
    refs = refs_of(repo_id, session=session) if exists else None
    check_branch(wanted.revision, refs=refs)
    heads = branch_heads(refs) if refs else {}
    head = heads.get(wanted.revision)
    if exists and head is None and wanted.create_pr:
        raise RecipeError(f"{repo_id} has no branch {wanted.revision!r} to open a pull request on.")
    # Nobody reads yet what does not exist yet, so it needs no stage.
    staged = wanted.staged and head is not None
    target = Target(
        repo_id=repo_id, revision=wanted.revision, exists=exists, branch_exists=head is not None,
        parent=head or heads.get("main"), private=wanted.private or base.private,
        create_pr=wanted.create_pr or staged, staged=staged, user=identity.name,
    )  # fmt: skip
    if target.parent:
        remote = read_remote(repo_id, commit=target.parent, session=session)
        own = weights or (SINGLE, INDEX, *(file.path for file in weight_files(base.files)))
        made = {CARD, "config.json", *own}
        carried = [file for file in needed_files(base) if file.path not in made]
        coming = [*carried, *(RepoFile(path=path, size=UNKNOWN_SIZE) for path in sorted(made))]
        check_is_ours(remote, session=session, overwrite=overwrite, coming=coming)
    return target


def check_disk(
    base: BaseCheckpoint, *, folder: Path | None = None, written: bool = False, loads_back: bool = True
) -> None:
    """Check the room for what is yet to be downloaded and written; a result counts as large as the base.

    Args:
        base: what of it is in the cache already needs no room.
        folder: where the result is written, and where it is downloaded to when it is loaded back.

    Raises:
        DiskSpaceError: with both figures.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    def is_cached(file: RepoFile) -> bool:
        return isinstance(try_to_load_from_cache(base.name, file.path, revision=base.commit), str)

    copies = (not written) + loads_back
    output = copies * sum(f.size for f in weight_files(base.files))
    missing = 0 if base.folder else sum(f.size for f in needed_files(base) if not is_cached(f))
    need: dict[int, tuple[Path, int]] = {}
    for place, amount in ((Path(constants.HF_HUB_CACHE), missing), (folder or Path.cwd(), output)):
        there = next(p for p in (place.absolute(), *place.absolute().parents) if p.exists())
        disk = there.stat().st_dev
        need[disk] = (there, amount + (need[disk][1] if disk in need else 0))
    for there, amount in need.values():
        if (free := shutil.disk_usage(there).free) < amount:
            raise DiskSpaceError(
                f"The run needs {size(amount)} on the disk of {there}, which has {size(free)} free.",
                hint="Free some space, or move the cache with HF_HOME.",
            )


def _check_metadata(card: str, *, session: HubSession) -> None:
    """Let the Hub read the front matter that the card will have."""
    body, doing = {"content": card, "repoType": "model"}, "check the card's metadata"
    answer = session.post("/api/validate-yaml", body=body, doing=doing, accepted=(400,))
    errors = [str(e.get("message")) for e in answer.body.get("errors") or () if isinstance(e, Mapping)]
    if errors:
        raise RecipeError(
            f"The Hub refuses the card's metadata: {' '.join('; '.join(errors).split())}",
            hint="What it says of language and licence comes from the card of the base, and from --license.",
        )


READ_ONLY = ("read",)
CREATES = frozenset({"repo.write"})
PROPOSES = frozenset({"discussion.write", "repo.write"})
JOBS_REPO = f"Set {VARIABLE} to the repo, OWNER/NAME, that lists this job under Trusted Publishers."


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What the Hub says of a token."""

    user: str | None
    """None for the token of a trusted publisher, which is for one repo and belongs to nobody."""
    role: str | None = None
    """`write`, `read`, `fineGrained`, or what else the Hub has."""
    orgs: Mapping[str, str | None] = field(default_factory=dict)
    """Organizations, each with the user's role in it."""
    scopes: tuple[tuple[str, frozenset[str]], ...] | None = None
    """Of a fine-grained token: names of repos and namespaces, and what it may do there; "" is everywhere.  None where
    that is not told."""

    @property
    def name(self) -> str:
        """Who it is in an error message."""
        return self.user or "a trusted publisher"

    def repo_id(self, wanted: str | None, *, default: str) -> str:
        """Return the target: what is wanted, completed with a namespace; a job's own repo comes before the default.

        Raises:
            RecipeError: the token is nobody's, and nothing says for which repo.
        """
        if wanted and "/" in wanted:
            return wanted
        if self.user:
            return f"{self.user}/{wanted or default}"
        if repo := trusted_repo():
            return f"{repo.split('/')[0]}/{wanted}" if wanted else repo
        raise RecipeError(
            "The token is a trusted publisher's, which is for one repo, and --repo-id does not say for which.",
            hint="Pass --repo-id OWNER/NAME, the repo that lists this job under Trusted Publishers.",
        )

    def may(self, what: frozenset[str], *places: str) -> bool:
        """Return whether a fine-grained token lists a right at one of these places; any other is left to the Hub."""
        return self.scopes is None or any(name in places and rights & what for name, rights in self.scopes)


NOBODY = Identity(user=None)
"""Who runs without a token."""


def identify(session: HubSession) -> Identity:
    """Ask whose token it is; the Hub knows no user behind that of a trusted publisher.

    Raises:
        AuthenticationError: there is no token, or one that is not valid.
    """
    token = session.token
    if token is None:
        raise AuthenticationError(f"Publishing on {session.endpoint} needs a token, and there is none.", hint=LOGIN)
    if is_publishers(token):
        return Identity(user=None)
    answer: Mapping[str, Any] = session.ask(lambda api: api.whoami(), doing="look up whose token this is")
    given = (answer.get("auth") or {}).get("accessToken")
    given = given if isinstance(given, Mapping) else {}
    orgs = {str(o.get("name")): o.get("roleInOrg") for o in answer.get("orgs") or () if isinstance(o, Mapping)}
    role = "read" if reads_only() and not session.given_token else given.get("role")
    fine, scopes = given.get("fineGrained"), None
    if isinstance(fine, Mapping) and isinstance(scoped := fine.get("scoped"), list):
        found = [((s.get("entity") or {}).get("name"), s.get("permissions")) for s in scoped if isinstance(s, Mapping)]
        found.append(("", fine.get("global")))
        scopes = tuple((str(name), frozenset(map(str, may or ()))) for name, may in found)
    return Identity(user=str(answer["name"]), role=str(role) if role else None, orgs=orgs, scopes=scopes)


def check_can_write(repo_id: str, *, identity: Identity, create_pr: bool, session: HubSession) -> None:
    """Ask for the right to write, or to propose.

    Creating a repo that exists "succeeds" with any token, so only this proves anything.

    Raises:
        PermissionDeniedError: with what else could be done.
    """
    from huggingface_hub.errors import HfHubHTTPError

    if create_pr and identity.user:
        _check_role(identity, session=session)
        if not identity.may(PROPOSES, "", repo_id, repo_id.split("/")[0]):
            where = f"{session.endpoint}/settings/tokens"
            raise PermissionDeniedError(
                f"The fine-grained token of {identity.name} may not open pull requests on {repo_id}.",
                hint=f"Allow it to interact with discussions and open pull requests at {where}.",
            )
        return
    doing = f"write to {repo_id}"
    try:
        session.ask(lambda api: api.auth_check(repo_id, write=True), doing=doing, passing=(HfHubHTTPError,))
    except HfHubHTTPError as error:
        if status_of(error) not in (403, 404):
            raise translate(error, doing=doing, endpoint=session.endpoint) from error
        kind = {"read": " (read-only)", "fineGrained": " (fine-grained)"}.get(identity.role or "", "")
        raise PermissionDeniedError(
            f"The token of {identity.name}{kind} may not write to {repo_id}.",
            hint=_way_to_write(repo_id, identity=identity, endpoint=session.endpoint),
        ) from error


def _way_to_write(repo_id: str, *, identity: Identity, endpoint: str) -> str:
    namespace, name = repo_id.split("/")
    if identity.user is None:
        return f"It is for one repo alone: list this job under Trusted Publishers at {endpoint}/{repo_id}/settings."
    if identity.role in READ_ONLY:
        return JOBS_REPO if reads_only() else _new_token(endpoint)
    if namespace != identity.user and namespace not in identity.orgs:
        return f"Publish as {identity.user}/{name}, or propose the result with --create-pr."
    if identity.role == "fineGrained":
        return f"Give it write access to {repo_id} at {endpoint}/settings/tokens, or use a write token."
    return f"Ask the admins of {namespace} for write access, or propose the result with --create-pr."


def _new_token(endpoint: str) -> str:
    return f"Make one with write permission at {endpoint}/settings/tokens, and run `hf auth login` or set HF_TOKEN."


def check_can_create(repo_id: str, *, identity: Identity, create_pr: bool, session: HubSession) -> None:
    """Refuse a target that is not there and that this token cannot create.

    Raises:
        PermissionDeniedError: with what else could be done.
    """
    (namespace, name), user = repo_id.split("/"), identity.user
    own = namespace == user or namespace in identity.orgs
    if create_pr:
        raise PermissionDeniedError(
            f"There is no {repo_id} to open a pull request on, or this token may not see it.",
            hint=f"Create it once with `hf repos create {repo_id}`, or leave out --create-pr to create it."
            if own
            else "Check its name.",
        )
    if user is None:
        raise PermissionDeniedError(
            f"There is no {repo_id}, and the token of a trusted publisher cannot create it.",
            hint=f"Create it once with `hf repos create {repo_id}`, and list this job under Trusted Publishers in its"
            " settings.",
        )
    _check_role(identity, session=session)
    if not own:
        known = ", ".join(dict.fromkeys([user, *identity.orgs]))
        raise PermissionDeniedError(
            f"The token of {user} may not create {repo_id}: {namespace} is not one of its namespaces ({known}).",
            hint=f"Publish as {user}/{name}.",
        )
    if identity.orgs.get(namespace) in READ_ONLY:
        raise PermissionDeniedError(
            f"{user} may only read in {namespace}.",
            hint=f"Ask its admins for write access, or publish as {user}/{name}.",
        )
    if not identity.may(CREATES, namespace):
        raise PermissionDeniedError(
            f"The fine-grained token of {user} may not create repos in {namespace}.",
            hint=f"Give it write access to the repos of {namespace} at {session.endpoint}/settings/tokens, or create"
            f" {repo_id} on the Hub and give it write access to that.",
        )


def _check_role(identity: Identity, *, session: HubSession) -> None:
    if identity.role not in READ_ONLY:
        return
    if user := reads_only():
        raise PermissionDeniedError(f"{VARIABLE}={user} gives this job a token that only reads.", hint=JOBS_REPO)
    raise PermissionDeniedError(f"The token of {identity.name} is read-only.", hint=_new_token(session.endpoint))
