"""Whose token it is, and whether it may do what a publish ends with: asked before any compute."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hubprune.core.errors import AuthenticationError, PermissionDeniedError, RecipeError
from hubprune.hub.retry import LOGIN, status_of, translate
from hubprune.hub.session import VARIABLE, HubSession, is_publishers, reads_only, trusted_repo

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
        """Return who it is in an error message."""
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
    return Identity(
        user=str(answer["name"]), role=str(role) if role else None, orgs=orgs, scopes=_scopes(given.get("fineGrained"))
    )


def _scopes(fine_grained: Any) -> tuple[tuple[str, frozenset[str]], ...] | None:
    values = fine_grained if isinstance(fine_grained, Mapping) else {}
    scoped, everywhere = values.get("scoped"), values.get("global")
    if not isinstance(scoped, list):
        return None
    found = [((s.get("entity") or {}).get("name"), s.get("permissions")) for s in scoped if isinstance(s, Mapping)]
    found.append(("", everywhere))
    return tuple((str(name), frozenset(map(str, may or ()))) for name, may in found)


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
            raise PermissionDeniedError(
                f"The fine-grained token of {identity.name} may not open pull requests on {repo_id}.",
                hint="Allow it to interact with discussions and open pull requests at"
                f" {session.endpoint}/settings/tokens.",
            )
        return
    try:
        session.ask(
            lambda api: api.auth_check(repo_id, write=True), doing=f"write to {repo_id}", passing=(HfHubHTTPError,)
        )
    except HfHubHTTPError as error:
        if status_of(error) not in (403, 404):
            raise translate(error, doing=f"write to {repo_id}", endpoint=session.endpoint) from error
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
            hint="Leave out --create-pr to create it." if own else "Check its name.",
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
