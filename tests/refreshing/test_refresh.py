"""A published repo of the last version gets the files of this one, in one commit that nothing was computed for."""

from __future__ import annotations

import pytest

from hubprune.refreshing.command import RefreshOptions, refresh_all
from hubprune.refreshing.lines import refresh_lines


@pytest.fixture
def refresh(session, reporter):
    def run(*repo_ids, **options):
        return refresh_all(repo_ids, RefreshOptions(**options), session=session, reporter=reporter)

    return run


def test_a_check_tells_and_writes_nothing(refresh, published, api):
    [report] = refresh(published, check=True)
    print(refresh_lines([report]))
    assert report.outcome == "would change"


def test_refresh(refresh, published, api):
    [report] = refresh(published)
    print(refresh_lines([report]))
    [report] = refresh(published)
    print(refresh_lines([report]))
