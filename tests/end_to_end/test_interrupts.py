"""Ctrl-C in any stage ends with one line and code 130, leaves nothing half-done, and the same command goes on."""

import signal

from little import leftovers

STAGES = ("[1/6]", "[2/6]", "[3/6]", "[4/6]", "[5/6]", "[6/6]")
TARGET = "local/stopped"
# A shell reads both as 130.  CPython ends itself with the signal where Ctrl-C came in the middle of an exec().
INTERRUPTED = (130, -signal.SIGINT)


def test_a_run_that_is_stopped_in_every_stage_goes_on_each_time_and_arrives(publish, api, files):
    def run(**options):
        return publish("--attn-drop", 1, "--repo-id", TARGET, "--out", "out", **options)

    # In the middle of each stage (on a busy machine it may be that of a later one), and where the last begins.
    for stage, seconds in (*((stage, 0.2) for stage in STAGES[:-1]), (STAGES[-1], 0), (STAGES[-1], 0.2)):
        ended = run(stop_at=stage, stop_after=seconds)
        if ended.code == 0 and STAGES[-1] in ended.err:
            return  # hf-xet swallows a Ctrl-C that comes while it calls back: the publish is then complete
        assert ended.code in INTERRUPTED, (stage, ended.err)
        assert "Traceback" not in ended.err
        assert "Interrupted." in ended.err
        assert leftovers(files) == []
        assert not (files / "out").exists()
        # Either nothing is there, or, where the commit had been sent already, all of it.
        if api.repo_exists(TARGET):
            assert STAGES[-1] in ended.err
            assert "hubprune.json" in api.list_repo_files(TARGET)

    arrived = run()
    assert arrived.code == 0, arrived.err
    for stage in ("scores", "checkpoint", "benchmarks", "base-text", "generation"):
        assert f"{stage}: taken from an earlier run" in arrived.err
    assert len(api.list_repo_commits(TARGET)) == 2
    assert (files / "out" / "README.md").is_file()
