"""Processes that share imports are as fresh as any."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextvars import ContextVar
from pathlib import Path
from threading import Event, Thread

import pytest

from hubprune.core import fresh
from hubprune.core.devices import run_to_end

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks are for Linux alone")
SETTINGS = {"HF_HUB_OFFLINE": "1"}
LOOK = """
import json, os, sys
print(json.dumps({
    "torch": "torch" in sys.modules, "ours": [name for name in sys.modules if name.startswith("hubprune")],
    "names": sorted(globals()), "arguments": sys.argv, "folder": os.getcwd(), "read": sys.stdin.read(),
    "told": os.environ.get("TOLD"), "modules": os.path.exists(os.environ["HF_MODULES_CACHE"]),
    "parent": os.getppid(),
}))
os.makedirs(os.environ["HF_MODULES_CACHE"])
print("a word", file=sys.stderr)
sys.exit(3)
"""


@pytest.fixture
def nobody(monkeypatch):
    """No block is open, not even that of all tests, and there is no GPU."""
    monkeypatch.setattr(fresh, "GPUS", ())
    monkeypatch.setattr(fresh, "_running", ContextVar("running", default=None))


def test_without_a_server_a_command_runs_alone(nobody):
    with fresh.warm():
        command = fresh.python(["-c", "print(5)"], {**os.environ, **SETTINGS})
        fresh._running.get().end()
        done = run_to_end(command, env={**os.environ, **SETTINGS}, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "5\n")


def test_beside_a_gpu_nothing_is_shared(nobody, monkeypatch, tmp_path):
    monkeypatch.setattr(fresh, "GPUS", (str(tmp_path),))
    with fresh.warm():
        assert fresh.python(["-c", ""], {**os.environ, **SETTINGS}) == [sys.executable, "-P", "-c", ""]


def test_nothing_is_started_before_it_is_needed_or_outside_of_a_block(nobody):
    environment = {**os.environ, **SETTINGS}
    assert fresh.python(["-c", ""], environment) == [sys.executable, "-P", "-c", ""]
    with fresh.warm():
        assert fresh._running.get()._process is None


def test_a_block_that_ends_in_another_thread_ends_nothing_here(nobody):
    environment, opened, done = {**os.environ, **SETTINGS}, Event(), Event()

    def beside():
        with fresh.warm():
            opened.set()
            done.wait(60)

    other = Thread(target=beside)
    other.start()
    try:
        opened.wait(60)
        with fresh.warm():
            command = fresh.python(["-c", "import time; print(4, flush=True); time.sleep(1); print(5)"], environment)
            with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
                assert process.stdout.readline() == "4\n"
                done.set()
                other.join()
                assert process.stdout.read() == "5\n"
    finally:
        done.set()


# ---- with one, which stays for the rest of these tests ----


@pytest.fixture(scope="module")
def warm():
    if any(Path(device).exists() for device in fresh.GPUS):  # pragma: no cover
        pytest.skip("beside a GPU nothing is shared")
    outer = fresh._running.get()  # that of all tests may have been started by one with settings of its own
    fresh._running.set(None)
    with fresh.warm():
        yield fresh._running.get()
    fresh._running.set(outer)


def run(*arguments, **options):
    environment = {**os.environ, **SETTINGS, **options.pop("environment", {})}
    command = fresh.python(arguments, environment)
    assert "ask" in command
    return run_to_end(command, env=environment, capture_output=True, text=True, **options)


def test_a_command_starts_in_a_process_that_has_imported_and_done_nothing_else(warm, tmp_path):
    for number in range(2):
        done = run("-c", LOOK, "x", cwd=tmp_path, input="abc", environment={"TOLD": str(number)})
        seen = json.loads(done.stdout)
        assert (done.returncode, done.stderr) == (3, "a word\n")
        assert (seen["torch"], seen["ours"], seen["modules"]) == (True, [], False)
        assert set(seen["names"]) <= {"__name__", "__doc__", "__package__", "__loader__", "__spec__", "__builtins__",
                                      "json", "os", "sys"}  # fmt: skip
        assert (seen["arguments"], seen["folder"]) == (["-c", "x"], str(tmp_path))
        assert (seen["read"], seen["told"], seen["parent"]) == ("abc", str(number), warm._process.pid)


def test_a_module_is_run_as_python_runs_it(warm, tmp_path):
    done = run("-m", "calendar", "2026", "11", cwd=tmp_path)
    assert (done.returncode, done.stdout.split()[:2], done.stderr) == (0, ["November", "2026"], "")
    done = run("-m", "calendar", "November", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "invalid int value: 'November'" in done.stderr


def test_nothing_is_imported_from_the_folder_where_somebody_stands(warm, tmp_path):
    for name in ("here", "colorsys", "wave"):
        (tmp_path / f"{name}.py").write_text("print('foreign')")
    for command in (("-m", "here"), ("-c", "import here"), ("-m", "colorsys"), ("-c", "import wave")):
        done, cold = (
            run(*command, cwd=tmp_path),
            run_to_end(fresh.python(command, {}), cwd=tmp_path, capture_output=True, text=True),
        )
        assert (done.stdout, cold.stdout) == ("", "")
        assert (done.returncode, cold.returncode) == (("here" in str(command)),) * 2


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_command_that_was_killed_ends_so(warm, number):
    assert run("-c", f"import os; os.kill(os.getpid(), {int(number)})").returncode == -number


def test_a_command_ends_with_whoever_asked_for_it(warm):
    environment = {**os.environ, **SETTINGS}
    command = fresh.python(["-c", "import os, time; print(os.getpid(), flush=True); time.sleep(60)"], environment)
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as asking:
        place = Path("/proc", asking.stdout.readline().strip())
        assert place.exists()
        asking.kill()
    for _ in range(100):
        if not place.exists():
            break
        time.sleep(0.1)
    assert not place.exists()
    assert run("-c", "").returncode == 0


def test_where_it_could_make_a_difference_nothing_is_shared(warm):
    assert run("-c", "").returncode == 0
    alone = [sys.executable, "-P", "-c", ""]
    for differs in ({"HF_HUB_OFFLINE": "0"}, {"HF_HOME": "/elsewhere"}, {"PYTHONPATH": "/elsewhere"}):
        assert fresh.python(["-c", ""], {**os.environ, **SETTINGS, **differs}) == alone
