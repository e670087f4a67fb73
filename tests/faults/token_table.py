"""What every kind of token meets at every step of a publish, message by message."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field

import made
import pytest
from fault_world import SCENARIOS, World
from on_hub import BASE_FILES, BASE_ID, commit_files

from hubprune.core.console import Reporter
from hubprune.core.errors import HubpruneError
from hubprune.core.recipe import BaseModelSpec, TargetSpec
from hubprune.hub import commit
from hubprune.hub.preflight import preflight
from hubprune.hub.repos import resolve_base
from hubprune.hub.session import HubSession
from hubprune.hub.target import Target

OWNER, ORG, STRANGER = "tess", "acorn", "bob"
GATED, PRIVATE = "meta-llama/Gated-Tiny", f"{ORG}/Hidden-Tiny"
MINE, OURS, THEIRS = f"{OWNER}/mine", f"{ORG}/ours", f"{STRANGER}/theirs"
OIDC = ("HF_OIDC_RESOURCE", "HF_OIDC_ID_TOKEN")
WRITES = ("POST", "PUT", "DELETE")
HARMLESS = ("/api/validate-yaml", "/paths-info/", "/oauth/token")


@dataclass(frozen=True)
class Token:
    """One kind of token and how a run comes by it."""

    name: str
    make: Callable[[World], str | None]
    """Return what the run is given; None where the libraries look for themselves."""
    variables: Callable[[World], Mapping[str, str]] = field(default=lambda world: {})


@dataclass(frozen=True)
class Action:
    """One thing that a publish is asked to do."""

    name: str
    target: Mapping[str, object]
    base: str = BASE_ID
    runs_out: bool = False
    """Whether the token ends its life between the preflight and the commit."""


@dataclass(frozen=True)
class Row:
    """What one token met at one action."""

    token: str
    action: str
    outcome: str
    exit_code: int
    said: str
    wrote: tuple[str, ...] = ()
    """Requests that change something on the Hub and were sent before it was refused."""

    def as_json(self) -> dict[str, object]:
        """Return the plain values."""
        return asdict(self)


def _user(**rights: object) -> Callable[[World], str]:
    return lambda world: world.hub.add_user(OWNER, **{"orgs": (ORG,), **rights})


def _job(resource: str, trusted: str | None = None) -> Callable[[World], Mapping[str, str]]:
    return lambda world: {OIDC[0]: resource, OIDC[1]: world.hub.trust(trusted or resource)}


def _nothing(world: World) -> None:
    return None


TOKENS = (
    Token("no token", _nothing),
    Token("unknown", lambda world: "hf_" + "0" * 34),
    Token("expired", _user(expired=True)),
    Token("read", _user(role="read", granted=(GATED,))),
    Token("write", _user(granted=(GATED,))),
    Token("write, access not granted", _user()),
    Token("write, no organization", _user(orgs=())),
    Token("fine-grained, no rights", _user(role="fineGrained")),
    Token("fine-grained, one repo", _user(role="fineGrained", writable=(MINE,), granted=(GATED,))),
    Token("fine-grained, own namespace", _user(role="fineGrained", creatable=(OWNER,), granted=(GATED,))),
    Token(
        "fine-grained, gated repos not allowed",
        _user(role="fineGrained", creatable=(OWNER,), granted=(GATED,), reads_gated=False),
    ),
    Token("fine-grained, pull requests", _user(role="fineGrained", proposes=True)),
    Token("trusted publisher of a repo", _nothing, _job(MINE)),
    Token("trusted publisher of a user", _nothing, _job(OWNER)),
    Token("publisher that nobody trusts", _nothing, _job(MINE, trusted="acorn/another")),
    Token("publisher without an identity", _nothing, lambda world: {OIDC[0]: MINE}),
)
ACTIONS = (
    Action("public base to an own repo", {"repo_id": MINE}),
    Action("gated base to an own repo", {"repo_id": MINE}, base=GATED),
    Action("private base to a new private repo", {"repo_id": f"{OWNER}/new", "private": True}, base=PRIVATE),
    Action("public base to a new repo", {"repo_id": f"{OWNER}/new"}),
    Action("no --repo-id", {}),
    Action("to an organization's repo", {"repo_id": OURS}),
    Action("to a new repo of an organization", {"repo_id": f"{ORG}/new"}),
    Action("to somebody else's repo", {"repo_id": THEIRS}),
    Action("to a new repo of somebody else", {"repo_id": f"{STRANGER}/new"}),
    Action("--create-pr to somebody else's repo", {"repo_id": THEIRS, "create_pr": True}),
    Action("--create-pr to a repo that is not there", {"repo_id": f"{STRANGER}/new", "create_pr": True}),
    Action("it runs out before the commit", {"repo_id": MINE}, runs_out=True),
)


def prepare(world: World) -> None:
    """Put the repos on the Hub that the actions name."""
    for repo_id, settings in ((GATED, {"gated": "manual"}), (PRIVATE, {"private": True})):
        world.admin.create_repo(repo_id)
        commit_files(world.admin, repo_id, BASE_FILES)
        world.admin.update_repo_settings(repo_id, **settings)
    for repo_id in (MINE, OURS, THEIRS):
        world.admin.create_repo(repo_id)


def rows(world: World) -> Iterator[Row]:
    """Yield what every token meets at every action."""
    prepare(world)
    for token, action in itertools.product(TOKENS, ACTIONS):
        yield row(world, token, action)


def row(world: World, token: Token, action: Action) -> Row:
    """Let a token try an action: all of it up to the computing, and the commit where the token runs out before."""
    from huggingface_hub.utils import _auth

    given = token.make(world)
    world.hub.clear_log()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_auth, "_OIDC_TOKEN_CACHE", None)
        for name, value in token.variables(world).items():
            patch.setenv(name, value)
        outcome, code, said = _try(world, given, action)
    wrote = tuple(r.line for r in world.hub.log if r.method in WRITES and not any(h in r.path for h in HARMLESS))
    return Row(token.name, action.name, outcome, code, said.replace(world.hub.endpoint, "HUB"), wrote)


def _try(world: World, given: str | None, action: Action) -> tuple[str, int, str]:

    recipe = made.recipe(base=BaseModelSpec(repo_id=action.base), target=TargetSpec(**action.target))
    session = HubSession.open(endpoint=world.hub.endpoint, token=given)
    try:
        base = resolve_base(recipe.base, session=session)
        target = preflight(recipe, base=base, session=session)
        if action.runs_out:
            _commit_too_late(world, target, session)
    except HubpruneError as error:
        return type(error).__name__, error.exit_code, f"{error.message}\nhint: {error.hint}"
    except Exception as error:
        return f"bare {type(error).__name__}", 1, str(error)
    return "goes on", 0, f"as {target.user} to {target.repo_id}{' (new)' if not target.exists else ''}"


def _commit_too_late(world: World, target: Target, session: HubSession) -> None:
    from huggingface_hub.utils import _auth

    world.hub.expire(session.token)
    if identity := os.environ.get(OIDC[1]):  # lasts no longer than the token that it was exchanged for
        world.hub.expire(identity)
        _auth._OIDC_TOKEN_CACHE = None
    case = world.case(SCENARIOS[0])
    try:
        commit.publish(case.folder, target=target, message="Drop 3", session=session, reporter=Reporter(quiet=True))
    finally:
        world.forget(case)


def as_text(found: list[Row]) -> str:
    """Return the rows as the text that the tests keep."""
    lines = []
    for name, group in itertools.groupby(found, key=lambda r: r.token):
        lines.append(f"\n{name}\n{'-' * len(name)}")
        for said, same in itertools.groupby(group, key=lambda r: (r.outcome, r.exit_code, r.said)):
            lines += [f"{one.action}:" for one in same]
            ending = said[0] if said[0] == "goes on" else f"{said[0]}, exit {said[1]}"
            lines += [f"    {ending}", *(f"    {line}" for line in said[2].splitlines())]
    return "\n".join(lines).lstrip() + "\n"
