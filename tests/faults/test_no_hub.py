"""Where there is no Hub, or something else in its place, and where the disk is full: one clear error each."""

from __future__ import annotations

import errno
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from on_hub import BASE_ID

from hubprune.core.errors import DiskSpaceError, HubError, HubUnreachableError
from hubprune.core.recipe import BaseModelSpec
from hubprune.hub.preflight import identify
from hubprune.hub.repos import resolve_base
from hubprune.hub.session import HubSession

PAGE = b"<html><body><h1>Please log in to this network</h1></body></html>"


@pytest.fixture(autouse=True)
def at_once(quick):
    """Waits between tries are short for every test."""


@pytest.fixture
def proxy():
    """Serve a web page, with a status, to whatever is asked."""
    status = [200]

    class Handler(BaseHTTPRequestHandler):
        def answer(self):
            self.send_response(status[0])
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(PAGE)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(PAGE)

        do_GET = do_HEAD = do_POST = answer  # noqa: N815 - what the class calls

        def log_message(self, *args):
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", status
    server.shutdown()
    server.server_close()


def refusal(endpoint, error, *, of=None, token="hf_" + "a" * 34):
    session = HubSession.open(endpoint=endpoint, token=token)
    with pytest.raises(HubError) as caught:
        identify(session) if of is None else resolve_base(BaseModelSpec(repo_id=of), session=session)
    assert type(caught.value) is error
    assert token not in str(caught.value)
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("of", [None, BASE_ID])
@pytest.mark.parametrize("status", [200, 403, 404, 407, 511])
def test_a_proxy_that_answers_with_a_page_is_no_hub(world, proxy, status, of):
    endpoint, chosen = proxy
    chosen[0] = status
    found = refusal(endpoint, HubError, of=of)
    said = f"what answers at {endpoint} is no Hub" if status == 200 else f"a web page came back, with status {status}"
    assert said in found.message
    assert "HF_ENDPOINT" in found.hint
    assert "HTTPS_PROXY" in found.hint


def test_a_page_that_says_the_hub_is_overloaded_is_trouble_of_the_hub(world, proxy):
    endpoint, chosen = proxy
    chosen[0] = 502
    assert "has trouble" in refusal(endpoint, HubError).message


@pytest.mark.parametrize("of", [None, BASE_ID])
def test_a_hub_that_is_not_there(world, of):
    found = refusal("http://127.0.0.1:9", HubUnreachableError, of=of)
    assert "no connection to http://127.0.0.1:9" in found.message
    assert "HF_ENDPOINT" in found.hint


def test_a_proxy_that_is_not_there(world, monkeypatch):
    from huggingface_hub import close_session

    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    close_session()
    found = refusal("https://hub.example", HubUnreachableError)
    close_session()
    assert "no connection to https://hub.example" in found.message
    assert "HTTPS_PROXY" in found.hint


@pytest.mark.parametrize("of", [None, BASE_ID])
def test_an_offline_mode_is_named(world, monkeypatch, of):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    found = refusal(world.hub.endpoint, HubUnreachableError, of=of)
    assert "HF_HUB_OFFLINE is set" in found.message
    assert found.hint == "Unset HF_HUB_OFFLINE."


def test_a_disk_that_fills_up_during_a_download(world, monkeypatch, tmp_path):
    from huggingface_hub import constants, file_download

    def full(*args, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(file_download, "http_get", full)
    session = HubSession.open(endpoint=world.hub.endpoint, token=world.token)
    with pytest.raises(DiskSpaceError) as caught:
        resolve_base(BaseModelSpec(repo_id=BASE_ID), session=session)
    assert (
        str(caught.value) == f"Cannot read config.json of {BASE_ID}: the disk is full. Free some space and try again."
    )
