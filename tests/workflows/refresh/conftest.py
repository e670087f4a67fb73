"""A repo that the last version published, and the base that it was made of, on the Hub."""

from __future__ import annotations

import pytest
from last_version_repo import BASE_COMMIT, BASE_ID, TIME, commit, files_of, publish_last_version

from hubprune.hub.session import HubSession


@pytest.fixture(scope="session", autouse=True)
def old_base(hub, admin):
    """The base at the time that gives its commit the name which the published files say."""
    from hubprune.localhub import git

    with pytest.MonkeyPatch.context() as clock:
        for name in ("GIT_AUTHOR_DATE", "GIT_COMMITTER_DATE"):
            clock.setitem(git._ENVIRONMENT, name, TIME)
        admin.create_repo(BASE_ID)
        assert commit(admin, BASE_ID, files_of("base")) == BASE_COMMIT


@pytest.fixture
def api(admin):
    return admin


@pytest.fixture(autouse=True)
def own_work(monkeypatch, tmp_path, hub):
    """What is unfinished is kept for one test, and the machine is logged in."""
    monkeypatch.setenv("HUBPRUNE_HOME", str(tmp_path / "work"))
    monkeypatch.setenv("HF_TOKEN", hub.token)


@pytest.fixture
def session(hub):
    return HubSession.open(endpoint=hub.endpoint, token=hub.token)


@pytest.fixture
def published(api):
    """The id of that repo."""
    return publish_last_version(api)
