"""What was written and not verified is kept for the next run of the same, and only that."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from bases import LLAMA, write_base

from hubprune.core.console import Reporter
from hubprune.core.errors import RecipeError, UnverifiedError, VerificationError
from hubprune.core.requests import PruneRequest
from hubprune.core.weights import SINGLE_NAME
from hubprune.pruning import loading, verify
from hubprune.workflows import prune as workflow

GOES_ON = "written by an earlier run"


class Listening(Reporter):
    """Keeps what is noted."""

    def __init__(self):
        super().__init__(quiet=True)
        self.notes = []

    def note(self, text):
        self.notes.append(text)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("base") / "tiny", LLAMA).folder


@pytest.fixture(autouse=True)
def in_process(monkeypatch, tmp_path):
    """Compare in this process, and keep nothing elsewhere."""
    monkeypatch.setenv("HUBPRUNE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(verify, "NEW_TOKENS", 2)
    monkeypatch.setattr(
        verify, "_in_fresh_process", lambda action, request, answer, **_: loading._ACTIONS[action][1](request)
    )


def prune(base, out, layer=0):
    """Prune, and return what was noted."""
    reporter = Listening()
    workflow.prune(PruneRequest(base, out=out, attn_layers=(layer,)), reporter=reporter)
    return reporter


def waiting(folder):
    return sorted(path.name for path in folder.iterdir() if workflow.WAITING in path.name)


def refuse_to_write(*_args, **_kwargs):
    pytest.fail("it was written again")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), UnverifiedError("killed"), MemoryError()], ids=repr)
def test_the_next_run_goes_on_with_verifying_what_an_interrupted_one_wrote(monkeypatch, base, tmp_path, error):
    out = tmp_path / "results" / "out"
    with monkeypatch.context() as once:
        once.setattr(workflow.verify, "verify", lambda *_args, **_kwargs: (_ for _ in ()).throw(error))
        with pytest.raises(type(error)):
            prune(base, out)
    assert not out.exists()
    assert len(waiting(out.parent)) == 1
    monkeypatch.setattr(workflow, "_write", refuse_to_write)
    notes = prune(base, out).notes
    assert [note for note in notes if note.startswith(GOES_ON)]
    assert (out / SINGLE_NAME).is_file()
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_a_process_that_is_killed_while_it_verifies_leaves_its_work_to_the_next(monkeypatch, base, tmp_path):
    command = [sys.executable, "-m", "hubprune", "prune", base, "--attn-layers", "0", "--out", str(tmp_path / "out")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        said = iter(process.stderr.readline, "")
        assert any("verifying on cpu in float32" in line for line in said)
        process.send_signal(signal.SIGKILL)
    [left] = waiting(tmp_path)
    assert not (tmp_path / "out").exists()
    assert f"-{process.pid}" in left
    monkeypatch.setattr(workflow, "_write", refuse_to_write)
    assert any(note.startswith(GOES_ON) for note in prune(base, tmp_path / "out").notes)
    assert waiting(tmp_path) == []


def test_a_folder_that_another_run_made_meanwhile_is_left_alone_and_what_was_written_is_kept(
    monkeypatch, base, tmp_path
):
    out, verified = tmp_path / "out", workflow._verified

    def slower(*args):
        made = verified(*args)
        out.mkdir()
        (out / "theirs").touch()
        return made

    monkeypatch.setattr(workflow, "_verified", slower)
    with pytest.raises(RecipeError, match="out"):
        prune(base, out)
    assert [path.name for path in out.iterdir()] == ["theirs"]
    assert len(waiting(tmp_path)) == 1


def test_what_fails_a_check_is_removed_and_an_earlier_run_that_wrote_it_is_not_to_blame(monkeypatch, base, tmp_path):
    write = workflow.checkpoint.write_checkpoint

    def spoil(base, plan, folder, **options):
        write(base, plan, folder, **options)
        path = folder / SINGLE_NAME
        path.write_bytes(path.read_bytes()[:-1] + b"\x3e")

    with monkeypatch.context() as once:
        once.setattr(workflow.checkpoint, "write_checkpoint", spoil)
        with pytest.raises(VerificationError, match="byte for byte"):
            prune(base, tmp_path / "out")
        assert waiting(tmp_path) == []
        once.setattr(workflow.verify, "verify", lambda *_args, **_kwargs: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            prune(base, tmp_path / "out")
    assert len(waiting(tmp_path)) == 1
    told = prune(base, tmp_path / "out")
    assert re.match(r"What an earlier run wrote is written again: .*byte for byte", told.warned[0])
    assert (tmp_path / "out").is_dir()
    assert waiting(tmp_path) == []


def test_only_the_same_goes_on_and_what_else_waits_for_a_target_or_too_long_goes(monkeypatch, base, tmp_path):
    with monkeypatch.context() as once:
        once.setattr(workflow.verify, "verify", lambda *_args, **_kwargs: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            prune(base, tmp_path / "out", layer=0)
    [left] = waiting(tmp_path)
    old, new, foreign, running = (tmp_path / left.replace("out", name, 1) for name in ("old", "new", "far", "busy"))
    foreign = foreign.with_name(re.sub(r"-\w+-(\d+)$", r"-elsewhere-\1", foreign.name))
    running = running.with_name(re.sub(r"\d+$", str(os.getppid()), running.name))
    for folder in (old, new, foreign, running):
        folder.mkdir()
        if folder != new:
            os.utime(folder, (time.time() - 2 * workflow.KEPT_SECONDS,) * 2)
    notes = prune(base, tmp_path / "out", layer=1).notes
    assert not [note for note in notes if note.startswith(GOES_ON)]
    assert waiting(tmp_path) == sorted(folder.name for folder in (new, foreign, running))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dropped_attn_layers"] == [1]
