"""A program never outlives the process that started it, and an interruption is noticed whoever swallows it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import typer

from hubprune.commands.terminal import errors_shown
from hubprune.core import console
from hubprune.core.artifacts import Check
from hubprune.core.console import Reporter
from hubprune.core.devices import run_to_end
from hubprune.core.errors import CalibrationError
from hubprune.core.files import StageStore

PARENT = """
import sys
from hubprune.core.devices import run_to_end
run_to_end([sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(60)"])
"""

TWO_STAGES = """
import os, time
from hubprune import cli
from hubprune.commands.terminal import errors_shown

@cli.app.command()
def stages(number: int):
    with errors_shown() as reporter:
        reporter.stage(1, 2, "one")
        try:
            os.kill(os.getpid(), number)
            time.sleep(0.1)
        except BaseException:
            pass
        reporter.stage(2, 2, "two")

cli.main()
"""


# ---- programs ----------------------------------------------------------------------------------------------------


def test_a_program_runs_to_its_end_with_what_it_was_given():
    command = [sys.executable, "-c", "print(input()[::-1]); raise SystemExit(3)"]
    done = run_to_end(command, input="abc", capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("cba\n", 3)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nobody tells a process that its parent is gone")
def test_a_program_ends_with_a_parent_that_was_killed():
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        child = int(parent.stdout.readline())
        parent.kill()
        parent.wait()
        end = time.monotonic() + 10
        while is_running(child) and time.monotonic() < end:
            time.sleep(0.01)
        assert not is_running(child)


def test_what_a_program_says_is_heard_while_it_runs_and_its_end_is_told():
    code = "import sys; print(input()); print('b', flush=True); print('why', file=sys.stderr); raise SystemExit(3)"
    heard = []
    done = run_to_end([sys.executable, "-c", code], input="a\n", listen=heard.append)
    assert (heard, done.stdout, done.stderr, done.returncode) == (["a\n", "b\n"], "a\nb\n", "why\n", 3)


def test_an_interruption_while_a_program_starts_ends_it(monkeypatch):
    start, started = subprocess.Popen, []

    def interrupted(*args, **kwargs):
        started.append(start(*args, **kwargs))
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        for options in ({"input": "", "listen": print}, {"input": "", "text": True}):
            with pytest.raises(KeyboardInterrupt):
                run_to_end([sys.executable, "-c", "import time; time.sleep(60)"], **options)
            assert started.pop().returncode == -signal.SIGKILL
    finally:
        signal.signal(signal.SIGINT, before)


def is_running(pid: int) -> bool:
    """Tell whether a process is there, and more than an entry that nobody has asked for yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_signal_that_ended_a_program_is_told():
    done = run_to_end([sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGTERM)"])
    assert done.returncode == -15


# ---- interruptions -----------------------------------------------------------------------------------------------


def swallowed(number=signal.SIGINT):
    """Do what some libraries do with a Ctrl-C that comes while they import or call back."""
    try:
        os.kill(os.getpid(), number)
        time.sleep(0.1)
    except BaseException:
        pass


@pytest.fixture
def listening():
    """The handlers of a command, for one test."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    console.listen_to_interruptions()
    yield
    console.listen_to_interruptions()  # and forget what came
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("quiet", [False, True])
def test_a_stage_and_a_progress_do_not_begin_after_an_interruption_that_was_swallowed(listening, quiet, number):
    reporter = Reporter(quiet=quiet)
    reporter.stage(1, 2, "before")
    swallowed(number)
    reporter.note("after")
    with pytest.raises(KeyboardInterrupt):
        reporter.stage(2, 2, "after")
    with pytest.raises(KeyboardInterrupt), reporter.progress("after", total=1, unit="files"):
        pytest.fail("it began")


def test_nor_is_anything_taken_or_kept(listening, tmp_path):
    def check(*, stopped):
        if stopped:
            swallowed()
        return Check(name="half of it", passed=True, detail="")

    store = StageStore(tmp_path)
    store.run("before", "k", Check, lambda: check(stopped=False))
    with pytest.raises(KeyboardInterrupt):
        store.run("stopped", "k", Check, lambda: check(stopped=True))
    assert [path.name for path in (tmp_path / "stages").iterdir()] == ["before-k.json"]
    for stage in ("before", "stopped", "later"):
        with pytest.raises(KeyboardInterrupt):
            store.run(stage, "k", Check, lambda: pytest.fail("it was computed"))


def test_what_cleans_up_after_an_interruption_is_not_disturbed(listening):
    cleaned = []

    def clean(name):
        with suppress(OSError):
            try:
                raise OSError
            finally:
                Reporter(quiet=True).stage(1, 1, name)
        with Reporter().progress(name, total=1, unit="files"):
            cleaned.append(name)

    @contextmanager
    def cleaning():
        try:
            yield
        finally:
            clean("manager")

    def work():
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
        except KeyboardInterrupt:
            clean("except")
            raise
        finally:
            clean("finally")

    with pytest.raises(KeyboardInterrupt), cleaning():
        work()
    assert cleaned == ["except", "finally", "manager"]


@pytest.mark.parametrize("error", [CalibrationError("maximum recursion depth exceeded"), RuntimeError("half imported")])
def test_what_fails_of_an_interruption_that_was_swallowed_is_told_as_one(listening, capsys, error):
    def work():
        swallowed()
        raise error

    with pytest.raises(typer.Exit) as ended, errors_shown():
        work()
    assert ended.value.exit_code == 130
    assert "error: Interrupted." in capsys.readouterr().err


def two_stages(number, *, on_ctrl_c):
    """Run a command as a process that inherits what this one does on Ctrl-C; tests in the background ignore it."""
    before = signal.signal(signal.SIGINT, on_ctrl_c)
    try:
        command = [sys.executable, "-c", TWO_STAGES, "stages", str(int(number))]
        return run_to_end(command, capture_output=True, text=True)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_whose_interruption_was_swallowed_ends_as_interrupted(number):
    done = two_stages(number, on_ctrl_c=signal.default_int_handler)
    assert done.returncode == 130
    assert "[1/2]" in done.stderr
    assert "error: Interrupted." in done.stderr
    assert "[2/2]" not in done.stderr


def test_a_command_in_the_background_of_a_shell_still_ignores_ctrl_c():
    done = two_stages(signal.SIGINT, on_ctrl_c=signal.SIG_IGN)
    assert done.returncode == 0
    assert "[2/2]" in done.stderr
