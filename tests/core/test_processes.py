"""A program that is started never outlives the process that started it."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from hubprune.core.processes import run_to_end

PARENT = """
import sys
from hubprune.core.processes import run_to_end
run_to_end([sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(60)"])
"""


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


def is_running(pid: int) -> bool:
    """Tell whether a process is there, and more than an entry that nobody has asked for yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_signal_that_ended_a_program_is_told():
    done = run_to_end([sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGTERM)"])
    assert done.returncode == -15
