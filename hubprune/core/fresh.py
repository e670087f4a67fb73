"""Fresh processes that load a model, of which several in a row share what importing torch and transformers takes.

Importing them is nine tenths of what loading a small model costs.  Within a block of `warm()`, on Linux, a process of
its own imports both libraries and nothing else, and is forked for each command.  So a command starts in a process that
has loaded no model, run no operation and seen nothing of this package: what an interpreter is after the same imports.
It takes the arguments, environment, folder and streams of whoever asks.  Where the libraries would have been started
with other settings, or no fork is safe, since there is a GPU or importing has started threads, it starts as any other.

This file runs as three programs, the last two of which must not import the package:

    parent   asks for a command line, and runs it as it would any
    client   `fresh.py ask SOCKET ...`: that command line; hands its streams to the server, ends as what it asked for
    server   `fresh.py serve SOCKET MODULES PID`: imports, and forks
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NoReturn

MODULES = "HF_MODULES_CACHE"
"""Variable with the folder that transformers copies code of a repo to before it imports it."""
OFFLINE = "HF_HUB_OFFLINE"
LIBRARIES_READ = re.compile(r"(HF_|HUGGING|TRANSFORMERS_|TORCH|OMP_|MKL_|KMP_|PYTHON|LD_|USE_)")
"""How the variables begin that interpreter and libraries read when they start."""
GPUS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""What is there where CUDA or ROCm may be: what a process has asked of these, its forks can use no more."""
SAFE_PATH = "-P"
"""Option of Python: what is imported is not looked for in the folder where it is started."""
OWN = (MODULES, OFFLINE, "PYTHONUTF8")
"""Those that are set for the server itself."""


# ---- parent ----------------------------------------------------------------------------------------------------------


class _Server:
    """A server that is started when it is first needed."""

    def __init__(self, folder: Path) -> None:
        self.address, self.modules = folder / "s", folder / "modules"
        self.settings: dict[str, str] = {}
        """What the libraries read when they were imported here."""
        self._process: Any = None

    def suits(self, environment: Mapping[str, str]) -> bool:
        """Start it with an environment unless it runs, and tell whether the libraries would be the same with that."""
        settings = {n: v for n, v in environment.items() if LIBRARIES_READ.match(n) and n not in OWN}
        if self._process is None:
            import subprocess

            self.settings = settings
            own = {MODULES: str(self.modules), OFFLINE: "1", "PYTHONUTF8": "1", "OPENBLAS_NUM_THREADS": "1"}
            place = [str(self.address), str(self.modules)]
            command = [sys.executable, SAFE_PATH, __file__, "serve", *place, str(os.getpid())]
            self._process = subprocess.Popen(
                command, env={**environment, **own}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )  # fmt: skip
            self._process.stdout.readline()  # it listens now, or has ended; what connects waits for it
        return self.settings == settings

    def end(self) -> None:
        """End it, with what it may still run."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()


_running: ContextVar[_Server | None] = ContextVar("running", default=None)
"""The server of the block that this thread is in: the end of a block in another thread is not the end of this one's."""


@contextmanager
def warm() -> Iterator[None]:
    """Let commands of `python` share imports while the block runs; nothing is imported before the first of them."""
    if _running.get() or sys.platform != "linux" or any(Path(device).exists() for device in GPUS):
        yield
        return
    from hubprune.core.files import scratch_folder

    with scratch_folder(name="hubprune-warm") as folder:
        server = _Server(folder)
        _running.set(server)
        try:
            yield
        finally:
            _running.set(None)
            server.end()


def python(arguments: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """Return the command line that runs Python with `-c CODE` or `-m MODULE` and more arguments in a fresh process.

    `environment` is what the command will be given.  It can share imports where it is to leave the Hub alone.  Nothing
    is imported from the folder that somebody stands in: it may be a downloaded one, with a torch.py in it.
    """
    server = _running.get()
    if not server or environment.get(OFFLINE) != "1" or not server.suits(environment):
        return [sys.executable, SAFE_PATH, *arguments]
    return [sys.executable, "-I", "-S", __file__, "ask", str(server.address), *arguments]


# ---- client ----------------------------------------------------------------------------------------------------------


def ask(address: str, arguments: list[str]) -> NoReturn:
    """Let the server run Python with some arguments and these streams, and end as that did; without it, run it here."""
    alone = [sys.executable, SAFE_PATH, *arguments]
    with socket.socket(socket.AF_UNIX) as server:
        request = json.dumps(
            {"arguments": arguments, "folder": str(Path.cwd()), "environment": dict(os.environ)}
        ).encode()
        try:
            server.connect(address)
            socket.send_fds(server, [len(request).to_bytes(4, "big")], [0, 1, 2])
            server.sendall(request)
            # Nothing is run before this is said.
            if server.recv(1) != b"+":
                os.execv(alone[0], alone)
        except OSError:
            os.execv(alone[0], alone)
        told = server.makefile().readline()
    code = int(told or -signal.SIGKILL)  # a server that says nothing is gone, as what it ran is
    if code < 0:
        signal.signal(-code, signal.SIG_DFL) if -code not in (signal.SIGKILL, signal.SIGSTOP) else None
        os.kill(os.getpid(), -code)
    sys.exit(code)


# ---- server ----------------------------------------------------------------------------------------------------------


def serve(address: str, modules: str, parent: str) -> None:
    """Import the libraries, then run what is asked for, one after the other, each in a fork."""
    import shutil

    _end_with(int(parent))
    interrupted = signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started it ends it
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(address)
    listening.listen()
    print(flush=True)
    _import()
    while True:
        connection, _ = listening.accept()
        with connection:
            _answer(connection, listening, interrupted)
        shutil.rmtree(modules, ignore_errors=True)


def _end_with(parent: int) -> None:
    """Let the kernel end this process once its parent is gone."""
    import ctypes

    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # it went before anybody could be asked
        os._exit(1)


def _import() -> None:
    import gc

    gc.disable()
    import importlib

    for name in ("auto.modeling_auto", "auto.tokenization_auto"):
        importlib.import_module(f"transformers.models.{name}")
    for name in ("modeling_utils", "generation.utils"):
        importlib.import_module(f"transformers.{name}")

    gc.collect()
    gc.freeze()
    gc.enable()


def _answer(connection: socket.socket, listening: socket.socket, interrupted: Any) -> None:
    """Run what is asked for, end it where whoever asks is gone, and tell its exit code, or the negative of a signal."""
    import select

    head, streams, _, _ = socket.recv_fds(connection, 4, 3)
    request = connection.recv(int.from_bytes(head, "big"), socket.MSG_WAITALL)
    if len(list(Path("/proc/self/task").iterdir())) > 1:
        for stream in streams:  # else whoever reads them would wait for their end as long as this process lives
            os.close(stream)
        connection.sendall(b"-")
        return
    connection.sendall(b"+")
    server, child = os.getpid(), os.fork()
    if child == 0:
        _end_with(server)
        connection.close()
        listening.close()
        signal.signal(signal.SIGINT, interrupted)
        _run(json.loads(request), streams)
    for stream in streams:
        os.close(stream)
    ended = os.pidfd_open(child)
    ready, _, _ = select.select([connection.fileno(), ended], [], [])
    if ended not in ready:  # whoever asks is gone
        os.kill(child, signal.SIGKILL)
    os.close(ended)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        connection.sendall(f"{code}\n".encode())
    except OSError:  # it is gone
        return


def _run(request: dict[str, Any], streams: Sequence[int]) -> NoReturn:
    """Be, in a fork, the interpreter that was asked for."""
    import atexit
    import runpy
    import traceback
    import types

    code = 1
    try:
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        os.chdir(request["folder"])
        modules = os.environ[MODULES]
        os.environ.clear()
        os.environ.update(request["environment"], **{MODULES: modules})
        options = request["arguments"]
        if "-m" in options[:2]:
            name, *rest = options[options.index("-m") + 1 :]
            sys.argv = [name, *rest]
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        else:
            text, *rest = options[options.index("-c") + 1 :]
            sys.argv = ["-c", *rest]
            main = sys.modules["__main__"] = types.ModuleType("__main__")
            exec(compile(text, "<string>", "exec"), main.__dict__)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code & 0xFF)


if __name__ == "__main__":
    {"ask": lambda address, *rest: ask(address, list(rest)), "serve": serve}[sys.argv[1]](*sys.argv[2:])
