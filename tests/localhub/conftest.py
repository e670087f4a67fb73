"""A running hub, real clients, and child processes whose clients know no other Hub."""

import http.client
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from hubprune.localhub import RunningHub, running_hub

_numbers = itertools.count(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if shutil.which("git") is None:
        here = Path(__file__).parent
        for item in items:
            if here in item.path.parents and "without_git" not in item.name:
                item.add_marker(pytest.mark.skip(reason="the local Hub needs the git program"))


@pytest.fixture(scope="session")
def open_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., RunningHub]]:
    """Start hubs that last for the session, each with an empty directory and a Xet cache of its own.

    A Xet cache that remembers an earlier hub at the same address would make uploads fail.
    """
    from huggingface_hub.utils._xet import abort_xet_session

    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:

        def start(**options: Any) -> RunningHub:
            patch.setenv("HF_XET_CACHE", str(tmp_path_factory.mktemp("xet")))
            abort_xet_session()
            return stack.enter_context(running_hub(tmp_path_factory.mktemp("hub"), **options))

        yield start


@pytest.fixture(scope="session")
def local_hub(open_hub: Callable[..., RunningHub]) -> RunningHub:
    return open_hub()


@pytest.fixture(autouse=True)
def no_leftovers(request: pytest.FixtureRequest) -> Iterator[None]:
    """Leave no fault behind."""
    yield
    if "local_hub" in request.fixturenames:
        request.getfixturevalue("local_hub").set_faults([])


@pytest.fixture(scope="session")
def api(local_hub: RunningHub) -> Any:
    """A client whose token may do everything."""
    from huggingface_hub import HfApi

    return HfApi(endpoint=local_hub.endpoint, token=local_hub.token)


@pytest.fixture
def repo(api: Any) -> str:
    """A new, empty model repository."""
    repo_id = f"acme/model-{next(_numbers)}"
    api.create_repo(repo_id)
    return repo_id


@dataclass(frozen=True)
class Answer:
    """What a raw request came back with."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@pytest.fixture
def raw(local_hub: RunningHub) -> Callable[..., Answer]:
    """Send a request exactly as written: no client tidies the path, follows redirects or tries again."""

    def send(method: str, path: str, *, token: str | None = None, body: bytes | None = None, **headers: str) -> Answer:
        connection = http.client.HTTPConnection(urlsplit(local_hub.endpoint).netloc, timeout=30)
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        try:
            connection.request(method, path, body=body, headers=headers)
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())
        finally:
            connection.close()

    return send


@pytest.fixture
def child(local_hub: RunningHub, tmp_path: Path) -> Callable[..., str]:
    """Run a command, or Python source, with HF_ENDPOINT naming the hub; return what it prints."""

    def run(source: str | list[str], **variables: str) -> str:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        settings = {
            "HF_ENDPOINT": local_hub.endpoint,
            "HF_TOKEN": local_hub.token,
            "HF_HOME": str(tmp_path / "hf_home"),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-c", source] if isinstance(source, str) else source
        environment = {**inherited, **settings, **variables}
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run
