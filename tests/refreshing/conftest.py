"""A local Hub with a repo that the last version published, and the base that it was made of."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from hubprune.core.console import Reporter
from hubprune.hub.session import HubSession

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "publishing"))

from last_version_repo import BASE_COMMIT, BASE_ID, TIME, commit, files_of, publish_last_version


@pytest.fixture(scope="package")
def hub(tmp_path_factory):
    """A Hub for all tests of this folder, and libraries that know no other one and no login of this machine."""
    pytest.importorskip("starlette")
    from huggingface_hub import HfApi
    from on_hub import only_hub

    from hubprune.localhub import git, running_hub

    home = tmp_path_factory.mktemp("hf_home")
    with running_hub(tmp_path_factory.mktemp("hub")) as running, only_hub(running, home) as patch:
        patch.setenv("HF_TOKEN", running.token)
        patch.setenv("HF_HOME", str(home))
        api = HfApi(endpoint=running.endpoint, token=running.token)
        with pytest.MonkeyPatch.context() as clock:
            for name in ("GIT_AUTHOR_DATE", "GIT_COMMITTER_DATE"):
                clock.setitem(git._ENVIRONMENT, name, TIME)
            api.create_repo(BASE_ID)
            assert commit(api, BASE_ID, files_of("base")) == BASE_COMMIT
        yield running


@pytest.fixture
def api(hub):
    from huggingface_hub import HfApi

    return HfApi(endpoint=hub.endpoint, token=hub.token)


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    """Waits between tries are as short as they can be, and what is unfinished is kept for one test."""
    from hubprune.hub import retry

    monkeypatch.setattr(retry, "FIRST_WAIT_SECONDS", 0.01)
    monkeypatch.setenv("HUBPRUNE_HOME", str(tmp_path / "work"))


@pytest.fixture
def session(hub):
    return HubSession.open(endpoint=hub.endpoint, token=hub.token)


@pytest.fixture
def reporter():
    return Reporter(quiet=True)


@pytest.fixture
def published(api):
    """The id of that repo."""
    return publish_last_version(api)
