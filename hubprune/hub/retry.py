"""Try again where that can help, and say in one's own words what went wrong.

The client retries uploads and downloads by itself.  It does not retry questions, nor the creation of repos and tags:
`repeat` does.  One table turns its many exceptions into the package's few.
"""

from __future__ import annotations

import errno
import functools
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from hubprune.core.errors import (
    AuthenticationError,
    ConflictError,
    DiskSpaceError,
    HubError,
    HubpruneError,
    HubUnreachableError,
    PermissionDeniedError,
)
from hubprune.core.extras import client_library
from hubprune.core.privacy import scrub

ATTEMPTS = 4
FIRST_WAIT_SECONDS = 0.5
LONGEST_WAIT_SECONDS = 60.0
REQUEST_SECONDS = 10.0
"""How long one question may take where the client lets us say so."""

TRANSIENT_STATUS = frozenset({408, 429, 500, 502, 503, 504})
STORAGE_STATUS = re.compile(r"HTTP status \w+ error \((\d{3})\b")
"""Where the storage client, whose exceptions are builtin ones, says a status."""
STORAGE_TROUBLE = re.compile(r"connect|timed? ?out|timeout|reset|broken pipe|unavailable", re.IGNORECASE)
"""What it says where another try may help and there was no status."""

BUSY = "another conflicting operation is in progress"
"""The Hub creates one repo at a time for a user, and says this with a 409 until it is done."""

Result = TypeVar("Result")


# ---- again -------------------------------------------------------------------------------------------------------


def repeat(
    action: Callable[[], Result], *, doing: str, endpoint: str, passing: tuple[type[Exception], ...] = (),
    attempts: int = ATTEMPTS,
) -> Result:  # fmt: skip
    """Run an action that may run twice, a bounded number of times.

    Args:
        doing: what it is for, as in "Cannot <doing>".
        passing: exceptions that go to the caller as they are; those that another try may help against do so last.

    Raises:
        HubError: translated from the last failure.
    """
    from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt

    def wait(state: RetryCallState) -> float:
        return wait_seconds(state.outcome.exception() if state.outcome else None, attempt=state.attempt_number)

    transient = retry_if_exception(is_transient)
    try:
        return Retrying(stop=stop_after_attempt(attempts), retry=transient, wait=wait, reraise=True)(action)
    except passing:
        raise
    except _client_errors() as error:
        raise translate(error, doing=doing, endpoint=endpoint) from error


def wait_seconds(error: BaseException | None, *, attempt: int) -> float:
    """Compute the wait after an attempt (from 1): what the server asks for, else doubling from half a second."""
    asked = getattr(getattr(error, "response", None), "headers", {}).get("retry-after", "")
    seconds = float(asked) if asked.isdecimal() else FIRST_WAIT_SECONDS * 2 ** (attempt - 1)
    return min(seconds, LONGEST_WAIT_SECONDS)


def is_transient(error: BaseException | None) -> bool:
    """Return whether another try may help: the network, an overloaded server, a storage hiccup."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    # A download that found no connection was tried several times by the client already.
    if error is None or isinstance(error, (OfflineModeIsEnabled, LocalEntryNotFoundError)):
        return False
    if isinstance(error, HfHubHTTPError):
        code = error.response.status_code
        return code in TRANSIENT_STATUS or (code == 409 and BUSY in str(error))
    if isinstance(error, (client_library().TransportError, ConnectionError)):
        return True
    if status := _storage_status(error):
        return status in TRANSIENT_STATUS
    return isinstance(error, RuntimeError) and (
        is_transient(error.__cause__) or bool(STORAGE_TROUBLE.search(str(error)))
    )


@contextmanager
def advising(advice: str, *, of: type[HubError] = HubError, but: tuple[type[HubError], ...] = ()) -> Iterator[None]:
    """Add to the errors of a block what the user should know of the Hub by then; those of `but` pass as they are."""
    try:
        yield
    except of as error:
        if not isinstance(error, but):
            error.advise(advice)
        raise


# ---- in one's own words ------------------------------------------------------------------------------------------


LOGIN = "Run `hf auth login`, or set HF_TOKEN to a token from the Hub's settings."
WRONG_ADDRESS = "Check HF_ENDPOINT if it is set, and HTTPS_PROXY and NO_PROXY if there is a proxy."
NO_ADVICE = "Run the command again. Where it says the same, HF_DEBUG=1 shows the requests."
LATER = "Wait some minutes and run the command again."
NOT_TWICE = "what has arrived is not sent twice."

_Rule = tuple[Callable[[Exception], bool], type[HubpruneError], str, str]
"""One row of the table: which exceptions, what they become, its message and its hint.

The message may use {doing}, {endpoint}, {status} and {said}, the server's own words.
"""


def translate(error: Exception, *, doing: str, endpoint: str) -> HubpruneError:
    """Turn an exception of the client into the package's own, by the first row of the table that fits."""
    error = _behind(error)
    _, kind, text, hint = next(rule for rule in _rules() if rule[0](error))
    # The server's words, or those of the network, in one line that ends with a full stop.
    answered = f"It answered {status}" if (status := status_of(error)) else ""
    words = getattr(error, "server_message", None) or answered or str(error.__cause__ or error)
    said = " ".join(words.split()) or type(error).__name__
    said = said if said.endswith((".", "!", "?")) else f"{said}."
    return kind(scrub(text.format(doing=doing, endpoint=endpoint, said=said, status=status)), hint=hint)


def _behind(error: Exception) -> Exception:
    """Return what made a download or an upload fail; the client wraps it into an exception that says less."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    cause = error.__cause__
    wraps = isinstance(error, (LocalEntryNotFoundError, RuntimeError)) and isinstance(cause, Exception)
    return _behind(cause) if wraps else error  # type: ignore[arg-type]


@functools.cache
def _rules() -> tuple[_Rule, ...]:
    """The table; subclasses come before their parents."""
    from huggingface_hub import errors as hub

    return (
        # What no server said, or no Hub.
        (lambda error: isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT), DiskSpaceError,
         "Cannot {doing}: the disk is full.", "Free some space and try again."),
        (_is(hub.LocalTokenNotFoundError), AuthenticationError, "There is no token for {endpoint}.", LOGIN),
        (_is(hub.OfflineModeIsEnabled), HubUnreachableError, "Cannot {doing}: HF_HUB_OFFLINE is set.",
         "Unset HF_HUB_OFFLINE."),
        (_is(json.JSONDecodeError, hub.FileMetadataError), HubError,
         "Cannot {doing}: what answers at {endpoint} is no Hub.", WRONG_ADDRESS),
        (_is_web_page, HubError,
         "Cannot {doing}: a web page came back, with status {status}. Something on the way to {endpoint}, such as a"
         " proxy, answers in its place.", WRONG_ADDRESS),
        # What the Hub said.
        (_is(hub.GatedRepoError), PermissionDeniedError,
         "Cannot {doing}: the repo is gated and this token was not granted access.", "Ask for access on its page."),
        (_is(hub.DisabledRepoError), PermissionDeniedError, "Cannot {doing}: the repo was disabled by the Hub.",
         "Its page says why."),
        (_is(hub.RepositoryNotFoundError), HubError,
         "Cannot {doing}: {endpoint} has no such repo, or this token may not see it.",
         "Check its name, and whose token it is with `hf auth whoami`."),
        (_has_status(401), AuthenticationError,
         "{endpoint} does not accept the token: it is unknown there or has expired. Even public repos cannot be read"
         " with it, though they can without any token.",
         "Run `hf auth login --force`, or set HF_TOKEN to a valid token, or unset it."),
        (_has_status(403, reads=True), PermissionDeniedError, "Cannot {doing}: the token may not. {said}",
         "Use a token that may read it."),
        (_has_status(403), PermissionDeniedError, "Cannot {doing}: the token may not do that. {said}",
         "Use a token with write permission for that namespace."),
        (_has_status(409, 412, reads=False), ConflictError, "Cannot {doing}: somebody else was faster. {said}",
         "Run the command again to publish on top of it."),
        (_has_status(429), HubError, "Cannot {doing}: too many requests to {endpoint}. {said}", LATER),
        (_has_status(500, 502, 503, 504), HubError, "Cannot {doing}: {endpoint} has trouble. {said}",
         "Run the command again later."),
        (_is(hub.HfHubHTTPError), HubError, "Cannot {doing}: {said}", NO_ADVICE),
        # What the storage said, what became of the connection, and whatever is left.
        (_storage_has(401, 403), PermissionDeniedError,
         "Cannot {doing}: the storage of {endpoint} does not let this token in. {said}",
         "Run the command again. Where it says the same, see whose token it is with `hf auth whoami`."),
        (_storage_has(429), HubError, "Cannot {doing}: too many requests to {endpoint}. {said}", LATER),
        (_storage_has(*TRANSIENT_STATUS), HubError, "Cannot {doing}: the storage of {endpoint} has trouble. {said}",
         f"Run the command again later; {NOT_TWICE}"),
        (_is(client_library().TransportError, ConnectionError, hub.LocalEntryNotFoundError), HubUnreachableError,
         "Cannot {doing}: no connection to {endpoint}. {said}", f"Check the network. {WRONG_ADDRESS}"),
        (is_transient, HubUnreachableError, "Cannot {doing}: the transfer broke off. {said}",
         f"Run the command again; {NOT_TWICE}"),
        (lambda error: True, HubError, "Cannot {doing}: {said}", NO_ADVICE),
    )  # fmt: skip


@functools.cache
def _client_errors() -> tuple[type[Exception], ...]:
    """What the client raises when the Hub or the way to it is at fault; anything else is a bug and shows itself."""
    from huggingface_hub import errors as hub

    client = (client_library().HTTPError, hub.OfflineModeIsEnabled, hub.LocalEntryNotFoundError)
    return (*client, json.JSONDecodeError, OSError, RuntimeError)


def _is_web_page(error: Exception) -> bool:
    """A page for people, with a status that the Hub would explain in headers: proxies and log-in portals send such."""
    response = getattr(error, "response", None)
    if response is None or "x-error-message" in response.headers or "x-error-code" in response.headers:
        return False
    return "html" in response.headers.get("content-type", "") and response.status_code not in TRANSIENT_STATUS


def _storage_status(error: BaseException) -> int | None:
    """Read the status in the words of the storage client."""
    said = STORAGE_STATUS.search(str(error)) if isinstance(error, (ConnectionError, RuntimeError)) else None
    return int(said[1]) if said else None


def _storage_has(*statuses: int) -> Callable[[Exception], bool]:
    return lambda error: _storage_status(error) in statuses


def _is(*classes: type[Exception]) -> Callable[[Exception], bool]:
    return lambda error: isinstance(error, classes)


def _has_status(*statuses: int, reads: bool | None = None) -> Callable[[Exception], bool]:
    """Match an answer by its status; where `reads` is given, only that to a question, or only that to a change."""

    def matches(error: Exception) -> bool:
        response = getattr(error, "response", None)
        if response is None or response.status_code not in statuses:
            return False
        return reads is None or reads == (response.request.method in ("GET", "HEAD"))

    return matches


def status_of(error: BaseException) -> int | None:
    """Return the status that a server answered with, or None where none did."""
    response = getattr(error, "response", None)
    return response.status_code if response is not None else None
