"""Ctrl-C in any stage ends with one line and code 130, leaves nothing half-done, and the same command goes on."""

import pytest
from conftest import leftovers

STAGES = ("[1/6]", "[2/6]", "[3/6]", "[4/6]", "[5/6]", "[6/6]")


@pytest.mark.parametrize("stage", STAGES)
def test_ctrl_c_in_every_stage(publish, api, files, stage):
    target = f"local/stopped-{stage[1]}"
    ended = publish("--attn-drop", 1, "--repo-id", target, "--out", "out", stop_at=stage)

    assert ended.code == 130, ended.err
    assert "Traceback" not in ended.err
    assert "Interrupted." in ended.err
    assert leftovers(files) == []
    assert not (files / "out").exists()
    # Either nothing is there, or, where the commit had been sent already, all of it.
    if api.repo_exists(target):
        assert "hubprune.json" in api.list_repo_files(target)


def test_the_same_command_goes_on_after_the_last_finished_stage(publish, api, files):
    stopped = publish("--attn-drop", 1, "--repo-id", "local/resumed", stop_at="[4/6]")
    assert stopped.code == 130
    resumed = publish("--attn-drop", 1, "--repo-id", "local/resumed")
    assert resumed.code == 0, resumed.err
    assert "scores: taken from an earlier run" in resumed.err
    assert "checkpoint: taken from an earlier run" in resumed.err
    assert api.repo_exists("local/resumed")
