"""One Hub and one token for a whole run.

A CI job that is a trusted publisher keeps no secret: it proves who it is and gets a token for an hour
(https://huggingface.co/docs/hub/trusted-publishers).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hubprune.core.errors import AuthenticationError, HubError
from hubprune.core.extras import client_library
from hubprune.core.privacy import scrub
from hubprune.hub.retry import repeat

if TYPE_CHECKING:
    import httpx2
    from huggingface_hub import HfApi

ANSWER_SECONDS = 300.0
"""How long the Hub may keep silent in the middle of a request: to join the parts of a large file takes it minutes."""
CONNECT_SECONDS = 30.0
REACH_ATTEMPTS, REACH_SECONDS = 2, 2.0
"""How often, and how long for a connection, the Hub is tried by those who only ask whether it is there."""

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a request of one's own came back with."""

    status: int
    body: Mapping[str, Any]
    """Empty where the answer was no JSON object."""


@dataclass(frozen=True, kw_only=True)
class HubSession:
    """Which Hub, and as whom.  No request is made before the first question.

    Make one with `HubSession.open()`.
    """

    endpoint: str
    """Address of the Hub, without a trailing slash."""
    given_token: str | None = field(default=None, repr=False)
    """Token that the caller passed; None to use the one that the machine is logged in with."""

    @classmethod
    def open(cls, *, endpoint: str | None = None, token: str | None = None) -> HubSession:
        """Make a session; what is not given comes from HF_ENDPOINT and from the login of this machine.

        Raises:
            AuthenticationError: the token is none that can be sent.
            HubError: the client cannot start in this environment.
        """
        try:
            from huggingface_hub import constants, get_session

            _bound_waiting()
            get_session()
        except ValueError as error:  # a timeout that is no number, a proxy of no known scheme
            hint = "Check the variables that start with HF_, and HTTP_PROXY, HTTPS_PROXY and ALL_PROXY."
            raise HubError(f"The client of the Hub cannot start in this environment: {error}.", hint=hint) from error
        sent = token or _stored_token(Path(constants.HF_TOKEN_PATH))
        if not (sent.isascii() and sent.isprintable() and " " not in sent):
            hint = "Copy it again from https://huggingface.co/settings/tokens into HF_TOKEN, or run `hf auth login`."
            raise AuthenticationError("The token of this machine holds characters that no token has.", hint=hint)
        return cls(endpoint=(endpoint or str(constants.ENDPOINT)).rstrip("/"), given_token=token)

    @property
    def token(self) -> str | None:
        """The token in use, or None; looked up each time, since some logins hand out short-lived ones.

        Raises:
            HubError: this job is to exchange its identity for a token, and did not get one.
        """
        from huggingface_hub import get_token

        if self.given_token:
            return self.given_token
        return exchanged_token(endpoint=self.endpoint) if VARIABLE in os.environ else get_token()

    @property
    def api(self) -> HfApi:
        """A client that sends this session's token, and none where there is none."""
        from huggingface_hub import HfApi

        from hubprune.core import __version__

        return HfApi(
            endpoint=self.endpoint, token=self.token or False, library_name="hubprune", library_version=__version__
        )

    def ask(
        self, question: Callable[[HfApi], Result], *, doing: str, passing: tuple[type[Exception], ...] = ()
    ) -> Result:
        """Ask the Hub something that may be asked twice, again after a passing failure.

        Args:
            doing: what the call is for, as in "Cannot <doing>".
            passing: exceptions of the client that the caller deals with itself.

        Raises:
            HubError: the Hub refused, or did not answer in several tries.
        """
        return repeat(lambda: question(self.api), doing=doing, endpoint=self.endpoint, passing=passing)

    def reach(self) -> None:
        """Look whether the Hub answers; where there is no network, that is known within seconds.

        Raises:
            HubUnreachableError: there is no connection.
            HubError: it refuses to answer.
        """
        from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status  # type: ignore[attr-defined]

        def ask() -> None:
            """Ask for one name; the client's own listing would wait half a minute for a network."""
            limits = client_library().Timeout(ANSWER_SECONDS, connect=REACH_SECONDS)
            headers, url = build_hf_headers(token=self.token or False), f"{self.endpoint}/api/models?limit=1"
            hf_raise_for_status(get_session().get(url, headers=headers, timeout=limits))

        repeat(ask, doing="reach the Hub", endpoint=self.endpoint, attempts=REACH_ATTEMPTS)

    def post(
        self, path: str, *, body: Mapping[str, Any], doing: str, accepted: tuple[int, ...] = (), busy: str | None = None
    ) -> Answer:
        """Send a request that may be sent twice and that the client has no fitting call for.

        Args:
            path: below the endpoint.
            accepted: statuses that are answers although they look like errors.
            busy: text of an answer that is to be asked for again whatever its status.

        Raises:
            HubError: the Hub refused, or did not answer in several tries.
        """
        from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status  # type: ignore[attr-defined]

        def send(api: HfApi) -> Answer:
            """Send it once."""
            headers = build_hf_headers(token=api.token, library_name="hubprune")
            response = get_session().post(f"{self.endpoint}{path}", json=dict(body), headers=headers)
            if response.status_code not in accepted or (busy and busy in response.text):
                hf_raise_for_status(response)
            values = response.json() if response.content else {}
            return Answer(status=response.status_code, body=values if isinstance(values, dict) else {})

        return self.ask(send, doing=doing)


def _stored_token(login: Path) -> str:
    """Return the token that this machine keeps, if any; the client's own function would exchange identities, too."""
    if named := os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN"):
        return named.strip()
    with suppress(OSError):
        return login.read_text(encoding="utf-8", errors="surrogateescape").strip()
    return ""


def _bound_waiting() -> None:
    """Let the client give up on a connection that keeps silent, where it would wait for ever by itself.

    A program that has set a client of its own keeps it.
    """
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils import _http

    def bound(request: httpx2.Request) -> None:
        # Some of the client's functions ask for no limit.
        asked: Mapping[str, float | None] = request.extensions.get("timeout", {})
        limits = {"connect": CONNECT_SECONDS, "read": ANSWER_SECONDS, "write": ANSWER_SECONDS, "pool": ANSWER_SECONDS}
        request.extensions["timeout"] = {kind: asked.get(kind) or limit for kind, limit in limits.items()}

    def bounded_client() -> httpx2.Client:
        client = _http.default_client_factory()
        hooks = client.event_hooks
        client.event_hooks = {**hooks, "request": [*hooks["request"], bound]}
        return client

    if getattr(_http, "_GLOBAL_CLIENT_FACTORY", None) is _http.default_client_factory:
        set_client_factory(bounded_client)


VARIABLE = "HF_OIDC_RESOURCE"
"""Names the repo, or the user, that the token is for; where it is set, it comes before HF_TOKEN."""
PUBLISHER_PREFIX = "hf_jwt_"


def is_publishers(token: str) -> bool:
    """Return whether a token is for one repo and belongs to no user."""
    return token.startswith(PUBLISHER_PREFIX)


def reads_only() -> str | None:
    """Return the user whose gated repos the token of this job reads and who it is for alone, or None."""
    resource = os.environ.get(VARIABLE, "")
    return resource if resource and "/" not in resource else None


def trusted_repo() -> str | None:
    """Return the model repo that the token of this job is for, or None."""
    resource = os.environ.get(VARIABLE, "")
    return resource if resource.count("/") == 1 else None


def exchanged_token(*, endpoint: str) -> str | None:
    """Return the token that the identity of this job is exchanged for; the client keeps it for as long as it lasts.

    Raises:
        AuthenticationError: the job has no identity, or nobody trusts it.
        HubError: the Hub did not answer.
    """
    from huggingface_hub import get_token
    from huggingface_hub.errors import BadRequestError, OIDCError

    resource = os.environ.get(VARIABLE)
    doing, passing = f"get a token for {VARIABLE}={resource}", (OIDCError, BadRequestError)
    try:
        return repeat(get_token, doing=doing, endpoint=endpoint, passing=passing)
    except OIDCError as error:
        raise AuthenticationError(
            f"This job has no identity to exchange for a token: {scrub(str(error))}",
            hint=f"Give the job `permissions: id-token: write`, or unset {VARIABLE} and set HF_TOKEN.",
        ) from error
    except BadRequestError as error:
        where = f"{endpoint}/{resource}/settings" if trusted_repo() else f"{endpoint}/settings/authentication"
        why = scrub(error.server_message or "it does not say why")
        raise AuthenticationError(
            f"{endpoint} gives this job no token for {resource}: {why}.",
            hint=f"List the job as a trusted publisher at {where}. An identity lasts some minutes: start a new job"
            " if it was an old one.",
        ) from error
