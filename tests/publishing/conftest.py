"""A local Hub for this folder, with a base on it, and a session whose libraries all talk to it."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest

from hubprune.core.console import Reporter
from hubprune.hub.session import HubSession

sys.path.insert(0, str(Path(__file__).parent))

import made
from on_hub import BASE_FILES, BASE_ID, commit_files, make_folder, only_hub

numbers = itertools.count(1)


@pytest.fixture(scope="package")
def hub(tmp_path_factory):
    """A Hub for all tests of this folder, and libraries that know no other one and no login of this machine."""
    pytest.importorskip("starlette")
    from hubprune.localhub import running_hub

    home = tmp_path_factory.mktemp("hf_home")
    with running_hub(tmp_path_factory.mktemp("hub")) as running, only_hub(running, home):
        yield running


@pytest.fixture(autouse=True)
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
    return HubSession.open(endpoint=hub.endpoint, token=user[1])


@pytest.fixture
def reporter():
    return Reporter(quiet=True)


@pytest.fixture(scope="package")
def admin(hub):
    from huggingface_hub import HfApi

    return HfApi(endpoint=hub.endpoint, token=hub.token)


@pytest.fixture(scope="package")
def base_repo(admin):
    """A base on the Hub, with files that no publish needs."""
    admin.create_repo(BASE_ID)
    return commit_files(admin, BASE_ID, BASE_FILES)


@pytest.fixture
def new_repo(admin):
    """Make a repo with files, and return its id."""

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
    from hubprune.core.recipe import BaseModelSpec

    return made.recipe(base=BaseModelSpec(repo_id=BASE_ID))


@pytest.fixture
def checkpoint_folder(tmp_path):
    """A small checkpoint with a card and a manifest, ready to be published."""
    return make_folder(tmp_path / "result")
