"""Commands that are measured as a whole, with all that they start, and held to so much memory where it is asked for.

A command costs CPU seconds, wall seconds and bytes read from disk, which the system adds up over all processes that it
started and waited for, and the peak of the largest one of them.  A memory control group ends what takes more than it
may, as a container, a notebook or a batch scheduler does; it counts the page cache of what its members read first, so
that a file that is larger than the group is read from disk every time.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

SAMPLE_SECONDS = 0.1
VERSION_1, VERSION_2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")


class RefusedError(Exception):
    """This user can make no memory control group here."""


@dataclass(frozen=True)
class MemoryGroup:
    """A memory control group; `anonymous` and so on are the names that its version has for them (cgroups(7))."""

    folder: Path
    first: bool
    """Whether it is of version 1."""

    def join(self) -> None:
        """Put the calling process, and all that it starts from now on, into the group."""
        (self.folder / "cgroup.procs").write_text(str(os.getpid()))

    @property
    def highest_bytes(self) -> int:
        """The most that it held so far, page cache included."""
        return int((self.folder / ("memory.max_usage_in_bytes" if self.first else "memory.peak")).read_text())

    @property
    def anonymous_bytes(self) -> int:
        """What its members hold now that could not be dropped: everything but page cache."""
        return self._field("memory.stat", "total_rss" if self.first else "anon")

    @property
    def kills(self) -> int:
        """How many processes the kernel ended for want of memory."""
        return self._field("memory.oom_control" if self.first else "memory.events", "oom_kill")

    def _field(self, file: str, name: str) -> int:
        found = re.search(rf"^{name} (\d+)$", (self.folder / file).read_text(), re.MULTILINE)
        return int(found[1]) if found else 0


@contextmanager
def memory_group(limit_bytes: int) -> Iterator[MemoryGroup]:
    """Make a control group with a memory limit; whoever is still in it when the block ends is ended too.

    Raises:
        RefusedError: this user may not, or there are none here.
    """
    name, refusals = f"hubprune-{os.getpid()}-{time.monotonic_ns()}", []
    for top, limit, first in ((VERSION_1, "memory.limit_in_bytes", True), (VERSION_2, "memory.max", False)):
        group = MemoryGroup(top / name, first)
        try:
            group.folder.mkdir()
            with (group.folder / limit).open("r+") as file:
                file.write(str(limit_bytes))
        except OSError as error:
            refusals.append(str(error))
            with suppress(OSError):
                group.folder.rmdir()
            continue
        try:
            yield group
        finally:
            _remove(group)
        return
    raise RefusedError(f"This user can make no memory control group: {'; '.join(refusals)}.")


def _remove(group: MemoryGroup) -> None:
    for _ in range(100):
        for pid in (group.folder / "cgroup.procs").read_text().split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        try:
            return group.folder.rmdir()
        except OSError:  # the dead are still leaving
            time.sleep(SAMPLE_SECONDS)
    return None


@dataclass(frozen=True)
class Kill:
    """When a command is ended by SIGKILL, with all that it started: so many seconds after it has said something."""

    words: str
    """A regular expression for all of its talk; a dot is a new line, too."""
    seconds: float


@dataclass(frozen=True)
class Cost:
    """What a command cost, and what it said."""

    code: int
    """Exit code; negative for the signal that ended it."""
    cpu: float
    """Seconds of all processes, user and system."""
    wall: float
    """Seconds."""
    peak_bytes: int
    """Largest maximum resident set size of a process; mapped files count."""
    read_bytes: int
    """Read from disk by all processes, mapped files included (proc_pid_io(5))."""
    stdout: str
    talk: tuple[tuple[float, str], ...]
    """Lines of stderr, with the seconds since the start."""
    highest_anonymous_bytes: int = 0
    """Of the whole control group, seen ten times a second; 0 without one."""
    kills: int = 0
    """Processes that the kernel ended in the control group."""

    @property
    def lines(self) -> list[str]:
        """The talk, with the second of each line."""
        return [f"{second:7.1f}  {line}" for second, line in self.talk]


def measure(
    command: Sequence[object], environment: Mapping[str, str], *, folder: Path, group: MemoryGroup | None = None,
    kill: Kill | None = None,
) -> Cost:  # fmt: skip
    """Run a command in a folder, in a session of its own, and see what it costs.

    What the system says for a process includes the peak of the one that started it, so this one has to stay small.
    """
    start, read_before = time.monotonic(), _bytes_read()
    with subprocess.Popen(
        list(map(str, command)), env=dict(environment), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        cwd=folder, start_new_session=True, preexec_fn=group.join if group else None,
    ) as child:  # fmt: skip
        talk, said = list[tuple[float, str]](), list[str]()
        over = threading.Event()
        highest = [0]

        def listen() -> None:
            for line in child.stderr or ():
                talk.append((time.monotonic() - start, line.rstrip()))
                if kill and re.search(kill.words, "\n".join(line for _, line in talk), re.DOTALL):
                    threading.Timer(kill.seconds, _kill_session, [child.pid, over]).start()

        def look() -> None:
            while group and not over.wait(SAMPLE_SECONDS):
                highest[0] = max(highest[0], group.anonymous_bytes)

        threads = [threading.Thread(target=work) for work in (listen, look)]
        threads.append(threading.Thread(target=lambda: said.append(child.stdout.read() if child.stdout else "")))
        for thread in threads:
            thread.start()
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        wall = time.monotonic() - start
        over.set()
        for thread in threads:
            thread.join()
    return Cost(
        code=child.returncode, cpu=usage.ru_utime + usage.ru_stime, wall=wall, peak_bytes=usage.ru_maxrss * 1024,
        read_bytes=_bytes_read() - read_before, stdout="".join(said), talk=tuple(talk),
        highest_anonymous_bytes=highest[0], kills=group.kills if group else 0,
    )  # fmt: skip


def _kill_session(pid: int, over: threading.Event) -> None:
    if not over.is_set():
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


def _bytes_read() -> int:
    """Bytes that this process, and those that it waited for, caused to be read from disk."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["read_bytes"])
