"""`hubprune` in processes of its own which share, as forks of one, what importing torch and transformers takes.

That is nine tenths of a command with a small model.  What such a command's own processes import is shared as well.
A command with variables of its own, and one that is interrupted, is started as any other; so are those of modules that
do not ask for it.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from hubprune.core import fresh

WITHIN = """
import json, runpy, sys
from pathlib import Path
from hubprune.core import fresh
server, settings, *sys.argv[1:] = sys.argv[1:]
within = fresh._Server(Path(server))
within._process, within.settings = server, json.loads(settings)
fresh._running.set(within)
# Those of the server stand for files, which can be sought.
sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)
sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)
"""
"""Lets the process that it runs in share imports with others: it is given a server's folder and settings first."""
COMMAND = WITHIN + "runpy.run_module('hubprune', run_name='__main__', alter_sys=True)\n"


class WarmCommands:
    """The two servers of a test process, one for commands and one for what these start; the first command starts both.

    Whatever runs finds its caches at `caches`, a link: the libraries read where they are when they are imported.
    """

    def __init__(self, folder: Path) -> None:
        self.caches = folder / "hf"
        self._commands, self._within = fresh._Server(folder / "commands"), fresh._Server(folder / "within")
        for server in (self._commands, self._within):
            server.address.parent.mkdir()

    def command(self, code: str, arguments: Sequence[str], environment: dict[str, str]) -> list[str] | None:
        """Return what runs `code`, which begins with WITHIN; None where the libraries would have to be others.

        `environment` is changed: its caches are those of the link.
        """
        caches = Path(environment["HF_HOME"])
        warm = {**environment, "HF_HOME": str(self.caches), "OMP_WAIT_POLICY": "PASSIVE"}  # as commands set it
        if not self._within.suits(warm):
            return None
        self._start(warm)
        self.caches.unlink(missing_ok=True)
        caches.mkdir(parents=True, exist_ok=True)
        self.caches.symlink_to(caches)
        environment.update(warm)
        told = [str(self._within.address.parent), json.dumps(self._within.settings)]
        ask = [sys.executable, "-I", "-S", fresh.__file__, "ask", str(self._commands.address)]
        return [*ask, "-c", code, *told, *arguments]

    def _start(self, environment: dict[str, str]) -> None:
        """Start the server of commands, which are not kept from the Hub as what else it is for is."""
        server = self._commands
        if server._process is None:
            place = [str(server.address), str(server.modules), str(os.getpid())]
            server._process = subprocess.Popen(
                [sys.executable, fresh.SAFE_PATH, __file__, *place], stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                env={**environment, fresh.MODULES: str(server.modules), "OPENBLAS_NUM_THREADS": "1"},
            )  # fmt: skip
            server._process.stdout.readline()

    def end(self) -> None:
        """End both, with what they may still run."""
        self._commands.end()
        self._within.end()


@contextmanager
def warm_commands() -> Iterator[WarmCommands | None]:
    """Have such servers while the block runs, where processes can share imports at all."""
    if sys.platform != "linux" or any(Path(device).exists() for device in fresh.GPUS):
        yield None
        return
    # No name of something half-done: data sets name their locks by the path of the caches.
    with TemporaryDirectory(prefix="hubprune-commands-") as folder:
        commands = WarmCommands(Path(folder))
        try:
            yield commands
        finally:
            commands.end()


def _import() -> None:
    """Import what most commands do and starts no thread."""
    libraries()
    for name in ("hubprune.workflows.publish", "hubprune.cli", "matplotlib.pyplot", "scipy.stats"):
        importlib.import_module(name)


if __name__ == "__main__":
    libraries, fresh._import = fresh._import, _import
    fresh.serve(*sys.argv[1:])
