"""A publish that is killed leaves nothing behind that the next one does not sweep up, and the same repo."""

from __future__ import annotations

import pytest
from kill_rounds import open_kill_world


@pytest.fixture(scope="module")
def kill_world(tmp_path_factory):
    with open_kill_world(tmp_path_factory.mktemp("kills")) as opened:
        yield opened


@pytest.mark.parametrize("at", ["[3/6]", "loading it back"])
def test_the_next_run_completes_and_sweeps_up_after_one_that_was_killed(kill_world, at):
    found = kill_world.run(0, at=at)
    assert found.died
    assert found.problems == []
