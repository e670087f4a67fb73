"""Which failures are tried again, and what is said of them."""

from __future__ import annotations

import errno
import json

import pytest
from huggingface_hub.errors import FileMetadataError, HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

from hubprune.core.errors import (
    AuthenticationError,
    ConflictError,
    DiskSpaceError,
    HubError,
    HubUnreachableError,
    PermissionDeniedError,
)
from hubprune.core.extras import client_library
from hubprune.hub.retry import LONGEST_WAIT_SECONDS, is_transient, translate, wait_seconds

httpx = client_library()
HUB = "https://hub.example"
TOKEN = "hf_" + "a" * 34
STORED = "Request error: HTTP status {kind} error ({status} Reason), domain: https://cas.example/v1/xorbs/{hash}"


def answered(status, *, method="POST", said=None, **headers):
    request = httpx.Request(method, HUB)
    response = httpx.Response(status, request=request, headers=headers)
    return HfHubHTTPError(f"{status}", response=response, server_message=said)


def stored(status, *, kind=ConnectionError, digits="502"):
    text = STORED.format(kind="client" if status < 500 else "server", status=status, hash=digits * 20)
    return kind(text)


def caused(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "kind", "said", "transient"),
    [
        (answered(401), AuthenticationError, "unknown there or has expired", False),
        (answered(403), PermissionDeniedError, "may not do that", False),
        (answered(403, method="GET"), PermissionDeniedError, "a token that may read it", False),
        (answered(409), ConflictError, "somebody else was faster", False),
        (answered(412, method="GET"), HubError, "It answered 412", False),
        (answered(409, said="another conflicting operation is in progress"), ConflictError, "faster", False),
        (answered(429), HubError, "too many requests", True),
        (answered(503), HubError, "has trouble", True),
        (answered(418, said="I am a teapot"), HubError, "I am a teapot. Run the command again", False),
        (answered(407, **{"content-type": "text/html"}), HubError, "a web page came back, with status 407", False),
        (answered(502, **{"content-type": "text/html"}), HubError, "has trouble", True),
        (answered(404, **{"content-type": "text/html", "x-error-code": "x"}), HubError, "It answered 404", False),
        (httpx.ReadTimeout("timed out"), HubUnreachableError, "no connection to https://hub.example. timed out", True),
        (httpx.ProxyError("407"), HubUnreachableError, "HTTPS_PROXY", True),
        (json.JSONDecodeError("Expecting value", "<html>", 0), HubError, "is no Hub", False),
        (OfflineModeIsEnabled("offline"), HubUnreachableError, "HF_HUB_OFFLINE is set", False),
        (OSError(errno.ENOSPC, "No space left on device"), DiskSpaceError, "the disk is full", False),
        (stored(401), PermissionDeniedError, "storage of https://hub.example does not let this token in", True),
        (stored(403, kind=RuntimeError), PermissionDeniedError, "does not let this token in", False),
        (stored(429), HubError, "too many requests", True),
        (stored(503, kind=RuntimeError), HubError, "the storage of https://hub.example has trouble", True),
        (RuntimeError("connection reset by peer"), HubUnreachableError, "the transfer broke off", True),
        (RuntimeError("File 0429503 is odd"), HubError, "File 0429503 is odd", False),
        (caused(RuntimeError("Error while uploading"), answered(503)), HubError, "has trouble", True),
        (caused(LocalEntryNotFoundError("no file"), answered(503, method="HEAD")), HubError, "has trouble", False),
        (caused(LocalEntryNotFoundError("no file"), OfflineModeIsEnabled("x")), HubUnreachableError, "OFFLINE", False),
        (caused(LocalEntryNotFoundError("no file"), FileMetadataError("no etag")), HubError, "is no Hub", False),
    ],
)
def test_every_failure_becomes_one_of_ours_and_says_what_to_do(error, kind, said, transient):
    found = translate(error, doing="do it", endpoint=HUB)
    assert type(found) is kind
    assert said in str(found)
    assert found.hint
    assert "\n" not in str(found)
    assert is_transient(error) == transient


def test_a_busy_hub_is_asked_again(monkeypatch):
    busy = HfHubHTTPError("another conflicting operation is in progress", response=answered(409).response)
    assert is_transient(busy)


def test_a_token_in_the_servers_words_is_taken_out():
    said = f"Bearer {TOKEN} is wrong, as is hf_jwt_eyJhbGciOi.eyJzdWIi-x_y.sig12345 and eyJhbGciOiJSUz.eyJpc3MiOiJo.abc"
    text = str(translate(answered(400, said=said), doing="do it", endpoint=HUB))
    assert text.startswith("Cannot do it: Bearer hf_… is wrong, as is hf_… and hf_….")


@pytest.mark.parametrize(("asked", "seconds"), [("7", 7), ("100000", LONGEST_WAIT_SECONDS), ("soon", 1), (None, 1)])
def test_no_wait_is_longer_than_a_minute(monkeypatch, asked, seconds):
    from hubprune.hub import retry

    monkeypatch.setattr(retry, "FIRST_WAIT_SECONDS", 0.5)
    headers = {"Retry-After": asked} if asked else {}
    assert wait_seconds(answered(429, **headers), attempt=2) == seconds
