"""Tokens of trusted publishers: a CI job proves who it is and gets a token for an hour, so that it keeps no secret.

https://huggingface.co/docs/hub/trusted-publishers
"""

from __future__ import annotations

import os

from hubprune.core.errors import AuthenticationError
from hubprune.core.privacy import scrub
from hubprune.hub.retry import repeat

__all__ = ["PUBLISHER_PREFIX", "VARIABLE", "exchanged_token", "is_publishers", "reads_only", "trusted_repo"]

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
    try:
        return repeat(
            get_token,
            doing=f"get a token for {VARIABLE}={resource}",
            endpoint=endpoint,
            passing=(OIDCError, BadRequestError),
        )
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
