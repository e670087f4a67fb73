"""What the tests of all rooms share: one Hub for a process, and no login, cache or Hub of the machine."""

from __future__ import annotations

import gc
import itertools
import os
import shutil
import socket
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

# Tiny models run fastest on one thread, and several test processes share the machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Over the objects of torch and transformers, looking for garbage as often as Python does takes a tenth of all the time.
gc.set_threshold(50_000, 20, 100)

# Libraries read these when they are imported, so they are set before any is.
HOME = Path(tempfile.mkdtemp(prefix="hubprune-tests-"))
RESERVED = socket.socket()
"""Holds the port of the Hub until a test needs one."""
RESERVED.bind(("127.0.0.1", 0))
for name in [name for name in os.environ if name.startswith(("HF_", "HUGGING"))]:
    del os.environ[name]
os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{RESERVED.getsockname()[1]}"
os.environ["HF_HOME"] = str(HOME / "hf")
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["HUBPRUNE_HOME"] = str(HOME / "work")
TESTS = Path(__file__).parent
sys.path[:0] = [str(TESTS / "shared"), str(TESTS.parent / "benchmarks")]

# The same examples in every run: a test that fails in one place fails in all.
settings.register_profile("hubprune", deadline=None, derandomize=True, database=None)
settings.load_profile("hubprune")

numbers = itertools.count(1)
LONG = ("benchmarks", "demo", "end_to_end", "faults")
"""Folders whose files take a minute or more."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the processes of xdist begin with the files that take longest, and so end at about the same time."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: item.path.relative_to(TESTS).parts[0] not in LONG)


def pytest_unconfigure() -> None:
    RESERVED.close()
    shutil.rmtree(HOME, ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def imported_once():
    """Processes that load a model, in tests as in a publish, share what importing the libraries takes."""
    from hubprune.core import fresh

    with fresh.warm():
        yield


@pytest.fixture(scope="session")
def hub_folder(tmp_path_factory):
    """Where the Hub keeps its repos."""
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="session")
def hub(hub_folder):
    """The only Hub that the libraries of this process know; users and namespaces are those of a test."""
    pytest.importorskip("starlette")
    from hubprune.localhub import running_hub

    port = RESERVED.getsockname()[1]
    RESERVED.close()
    with running_hub(hub_folder, port=port) as running:
        yield running


@pytest.fixture
def quick(monkeypatch):
    """Waits between tries are as short as they can be."""
    from hubprune.hub import retry

    monkeypatch.setattr(retry, "FIRST_WAIT_SECONDS", 0.01)


@pytest.fixture
def user(hub):
    """Name and token of a user who may write to the namespaces `name` and acme."""
    name = f"user{next(numbers)}"
    yield name, hub.add_user(name, role="write", orgs=("acme",))
    hub.set_faults([])


@pytest.fixture
def session(hub, user):
    from hubprune.hub.session import HubSession

    return HubSession.open(endpoint=hub.endpoint, token=user[1])


@pytest.fixture
def reporter():
    from hubprune.core.console import Reporter

    return Reporter(quiet=True)


@pytest.fixture(scope="session")
def admin(hub):
    from huggingface_hub import HfApi

    return HfApi(endpoint=hub.endpoint, token=hub.token)


@pytest.fixture(scope="session")
def base_repo(admin):
    """The commit of a base on the Hub."""
    from on_hub import put_base

    return put_base(admin)


@pytest.fixture
def new_repo(admin):
    """Make a repo with files, and return its id."""
    from on_hub import commit_files

    def make(files, **settings):
        repo_id = f"somebody/base-{next(numbers)}"
        admin.create_repo(repo_id)
        commit_files(admin, repo_id, files)
        if settings:
            admin.update_repo_settings(repo_id, **settings)
        return repo_id

    return make


@pytest.fixture
def recipe():
    import made
    from on_hub import BASE_ID

    from hubprune.core.recipe import BaseModelSpec

    return made.recipe(base=BaseModelSpec(repo_id=BASE_ID))


@pytest.fixture
def checkpoint_folder(tmp_path):
    """A small checkpoint with a card and a manifest, ready to be published."""
    from on_hub import make_folder

    return make_folder(tmp_path / "result")
