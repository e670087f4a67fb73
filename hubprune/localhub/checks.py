"""Who asks, and what may be asked for: accounts, tokens and stamps, names that are safe, and how a request is refused.

A handler turns a request down by raising `RefusedError`. Every repository name, revision, file path and hash that a
client sends passes through here before it names anything on disk; whatever comes out is safe to join to a folder or to
hand to git. Files are written so that a reader sees the old content or the new, never half of one.
"""

import base64
import binascii
import hashlib
import hmac
import json
import os
import re
import secrets
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Literal


class RefusedError(Exception):
    """Answer the request with an error that the Hub's clients understand.

    `code` becomes the X-Error-Code header, from which `huggingface_hub` picks its exception class: RepoNotFound,
    RevisionNotFound, EntryNotFound or GatedRepo.
    """

    def __init__(
        self, status: int, message: str, *, code: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.headers = status, message, code, dict(headers or {})


def conflict() -> RefusedError:
    """Refuse a commit because the branch has moved."""
    return RefusedError(412, "A commit has happened since. Please refresh and try again.")


def revision_not_found(revision: str) -> RefusedError:
    """Refuse a revision that no branch, tag, pull request or commit answers to."""
    return RefusedError(404, f"Invalid rev id: {revision}", code="RevisionNotFound")


def entry_not_found(path: str, sha: str) -> RefusedError:
    """Refuse a path that the commit does not hold; clients note the commit to remember the absence."""
    message = f'{path} does not exist on "{sha}"'
    return RefusedError(404, message, code="EntryNotFound", headers={"X-Repo-Commit": sha})


KINDS = ("models", "datasets")

_REPO_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?")
_REF_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/+@=-]{0,199}")
_HASH = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{5,40}")
_MAX_PATH_BYTES = 1024
_IGNORED = dict.fromkeys([*range(0x200C, 0x2010), *range(0x202A, 0x202F), *range(0x206A, 0x2070), 0xFEFF])
"""Characters that HFS+ leaves out of names."""


def repo_id(namespace: str, name: str) -> str:
    """Return `namespace/name` if both can be what they are."""
    for text in (namespace, name):
        if not _REPO_NAME.fullmatch(text) or ".." in text or "--" in text or text.endswith(".git"):
            raise RefusedError(400, f"Invalid repository name: {text}")
    return f"{namespace}/{name}"


def kind_of(repo_type: str) -> str:
    """Return the plural that addresses use for a repository type."""
    kind = f"{repo_type}s"
    if kind not in KINDS:
        raise RefusedError(400, f"This Hub keeps models and datasets, not {kind}")
    return kind


def file_path(text: str) -> str:
    """Return `text` if it can be the path of a file in a repository: relative, and inside it."""
    if not is_file_path(text):
        raise RefusedError(400, f"Invalid path in repository: {text}")
    return text


def is_file_path(text: str) -> bool:
    """Tell whether `text` can be the path of a file in a repository."""
    if not is_clean(text) or "\\" in text or len(text.encode()) > _MAX_PATH_BYTES:
        return False
    for segment in text.split("/"):
        # Some file system may take it for `.git`: NTFS, which has short names and streams, or HFS+.
        plain = segment.translate(_IGNORED).split(":")[0].rstrip(". ").lower()
        if segment in ("", ".", "..") or plain in (".git", "git~1"):
            return False
    return True


def is_clean(text: str) -> bool:
    """Tell whether `text` is free of control characters and of halves of surrogate pairs."""
    return not any(ord(char) < 0x20 or 0x7F <= ord(char) < 0xA0 or 0xD800 <= ord(char) < 0xE000 for char in text)


def ref_name(text: str) -> str:
    """Return `text` if git takes it as the name of a new branch or tag."""
    if not is_ref_name(text):
        raise RefusedError(400, f"Invalid reference name: {text}")
    return text


def is_ref_name(text: str) -> bool:
    """Tell whether `text` is the name of a reference and nothing that git would work out, such as `main~1`."""
    bad = any(part in text for part in ("..", "//", "/.", "./", ".lock/"))
    return not bad and _REF_NAME.fullmatch(text) is not None and not text.endswith((".", "/", ".lock"))


def is_commit(text: str) -> bool:
    """Tell whether `text` can be a commit's hash, in full or shortened to five digits or more."""
    return _COMMIT.fullmatch(text) is not None


def digest(text: str) -> str:
    """Return `text` if it is 64 lower-case hexadecimal digits: a SHA-256 or a Xet hash."""
    if not _HASH.fullmatch(text):
        raise RefusedError(400, "Invalid hash: 64 hexadecimal digits were expected")
    return text


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a new file for writing that takes the place of `path` when the block ends without an error.

    The file can be read by its owner only (mode 0600).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".incoming-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink()
        raise


def write_bytes(path: Path, content: bytes) -> None:
    """Give `path` this content at once."""
    with replacing(path) as file:
        file.write(content)


def timestamp(seconds: float) -> str:
    """Write a time, in seconds since the epoch, as the Hub does: 2026-01-31T12:00:00.000Z."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


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
        admins = (token for token, account in self._tokens.items() if account.admin)
        self.admin_token = next(admins, None) or self.add(Account(name=ADMIN, admin=True))
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
            write_bytes(self._file, json.dumps(state, indent=1, sort_keys=True).encode())

    def identify(self, authorization: str | None) -> Account | None:
        """Return the account behind an Authorization header, None where there is none.

        The token comes by itself or, from git, as the password of whatever user. Like the Hub, it turns a bad token
        down even if the request would have done without one.
        """
        token = (authorization or "").removeprefix("Bearer ").strip()
        scheme, _, value = (authorization or "").strip().partition(" ")
        if scheme.lower() == "basic":
            try:
                user, _, password = base64.b64decode(value, validate=True).decode().partition(":")
            except (binascii.Error, ValueError) as error:
                raise RefusedError(401, "Invalid credentials in Authorization header") from error
            token = password or user
        if not token:
            return None
        account = self._tokens.get(token)
        if account is None or account.expired:
            raise RefusedError(401, "Invalid credentials in Authorization header")
        return account


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
        return hmac.compare_digest(self.stamp(permission, expires=int(expires)), stamp) and int(expires) > time.time()
