"""Who may do what: accounts, their tokens, and the stamps on short-lived addresses."""

import base64
import binascii
import hashlib
import hmac
import json
import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from hubprune.localhub import names
from hubprune.localhub.names import RefusedError

Role = Literal["write", "read", "fineGrained", "publisher"]

ADMIN = "local"
PUBLISHER = "[OIDC]"
STAMP = "stamp"
"""Query parameter that carries a stamp; request logs leave it out."""


@dataclass(frozen=True, kw_only=True)
class Account:
    """One access token's owner and rights."""

    name: str
    """User name, which is also a namespace."""
    role: Role = "write"
    """What the token may do. A `fineGrained` one writes to what `writable` and `creatable` name and nowhere else; a
    `publisher`'s belongs to nobody and is for the one repository in `writable`."""
    orgs: tuple[str, ...] = ()
    """Organizations, whose namespaces the user shares."""
    granted: tuple[str, ...] = ()
    """Gated repositories, as `namespace/name`, that have accepted the user."""
    writable: tuple[str, ...] = ()
    """Repositories, as `namespace/name`, that a token of the roles `fineGrained` and `publisher` may write to."""
    creatable: tuple[str, ...] = ()
    """Namespaces in which a `fineGrained` token may create repositories and write to all."""
    reads_gated: bool = True
    """Whether the token may use its owner's access to gated repositories, which a `fineGrained` one has to be told."""
    proposes: bool = False
    """Whether a `fineGrained` token may open pull requests everywhere."""
    expired: bool = False
    """An expired token is turned down everywhere, even where no token would do."""
    admin: bool = False
    """The admin belongs to every namespace."""

    def belongs_to(self, namespace: str) -> bool:
        """Tell whether the user sees what is private in the namespace."""
        return self.admin or namespace == self.name or namespace in self.orgs

    def knows(self, repo_id: str) -> bool:
        """Tell whether the user sees the repository even if it is private."""
        return self.belongs_to(repo_id.split("/")[0]) or (self.role == "publisher" and repo_id in self.writable)

    def may_create_in(self, namespace: str) -> bool:
        """Tell whether the token may create and delete repositories in the namespace."""
        named = self.role == "write" or (self.role == "fineGrained" and namespace in self.creatable)
        return named and self.belongs_to(namespace)

    def may_write(self, repo_id: str) -> bool:
        """Tell whether the token may change the repository."""
        named = self.role in ("fineGrained", "publisher") and repo_id in self.writable
        return named or self.may_create_in(repo_id.split("/")[0])

    def may_propose(self) -> bool:
        """Tell whether the token may open pull requests on repositories of others."""
        return self.role == "write" or (self.role == "fineGrained" and self.proposes)


class Accounts:
    """The tokens of one hub, kept in a file that only its owner can read."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock = threading.Lock()
        state: dict[str, Any] = json.loads(file.read_bytes()) if file.exists() else {}
        self._tokens = {token: account_of(stored) for token, stored in state.get("tokens", {}).items()}
        self._key: str = state.get("signing_key") or secrets.token_hex(32)
        self.admin_token = next((token for token, account in self._tokens.items() if account.admin), None) or self.add(
            Account(name=ADMIN, admin=True)
        )
        self.signer = Signer(self._key)
        self.lifetime_seconds = 3600
        """How long a token is said to last that an identity was exchanged for."""
        self._trusted: dict[str, str] = {}

    def trust(self, resource: str) -> str:
        """List a job as a trusted publisher of a repository or user, and return the token of its identity."""
        identity = f"eyJ{secrets.token_hex(12)}.eyJ{secrets.token_hex(12)}.{secrets.token_hex(12)}"
        self._trusted[identity] = resource
        return identity

    def trusts(self, identity: str, resource: str) -> bool:
        """Tell whether a job of this identity is a trusted publisher of the repository or user."""
        return self._trusted.get(identity) == resource

    def add(self, account: Account) -> str:
        """Make a token for the account and keep it."""
        token = ("hf_jwt_" if account.role == "publisher" else "hf_") + secrets.token_hex(17)
        self._keep(token, account)
        return token

    def expire(self, token: str) -> None:
        """End the life of a token, or of the token of an identity."""
        if self._trusted.pop(token, None) is None:
            self._keep(token, replace(self._tokens[token], expired=True))

    def _keep(self, token: str, account: Account) -> None:
        with self._lock:
            self._tokens[token] = account
            tokens = {known: asdict(owner) for known, owner in self._tokens.items()}
            state = {"signing_key": self._key, "tokens": tokens}
            names.write_bytes(self._file, json.dumps(state, indent=1, sort_keys=True).encode())

    def identify(self, authorization: str | None) -> Account | None:
        """Return the account behind an Authorization header, None where there is none.

        The token comes by itself or, from git, as the password of whatever user. Like the Hub, it turns a bad token
        down even if the request would have done without one.
        """
        token = _token(authorization or "")
        if not token:
            return None
        account = self._tokens.get(token)
        if account is None or account.expired:
            raise RefusedError(401, "Invalid credentials in Authorization header")
        return account


def _token(authorization: str) -> str:
    scheme, _, value = authorization.strip().partition(" ")
    if scheme.lower() != "basic":
        return authorization.removeprefix("Bearer ").strip()
    try:
        user, _, password = base64.b64decode(value, validate=True).decode().partition(":")
    except (binascii.Error, ValueError) as error:
        raise RefusedError(401, "Invalid credentials in Authorization header") from error
    return password or user


def account_of(fields: Mapping[str, Any]) -> Account:
    """Return the account that has these fields, lists in place of tuples."""
    typed: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
    return Account(**typed)


class Signer:
    """Makes and checks stamps: a permission that carries its own proof and its own end.

    They take the place of the signed addresses of a content delivery network and of the tokens of the Xet store.
    Nothing about a stamp is stored, so it outlives a restart.
    """

    def __init__(self, key: str) -> None:
        self._key = key.encode()

    def stamp(self, permission: str, *, expires: int) -> str:
        """Return a stamp for the permission that holds until `expires`, in seconds since the epoch."""
        proof = hmac.new(self._key, f"{permission}\n{expires}".encode(), hashlib.sha256).hexdigest()
        return f"{expires}-{proof[:40]}"

    def holds(self, permission: str, stamp: str) -> bool:
        """Tell whether the stamp is genuine, is for this permission and has not run out."""
        expires, _, _ = stamp.partition("-")
        if not (expires.isascii() and expires.isdigit() and len(expires) <= 12 and stamp.isascii()):
            return False
        genuine = self.stamp(permission, expires=int(expires))
        return hmac.compare_digest(genuine, stamp) and int(expires) > time.time()
