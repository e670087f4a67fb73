"""What a person sees, and how they stop it: stdout is the result, stderr is the talk, Ctrl-C ends it.

The library never prints; stages get a `Reporter` and tell it what they are doing.  On a terminal it draws bars, in a
log it writes a line now and then, so that a CI job stays readable.  Libraries are held to the same manners: no bars
beside ours, no chatter.
"""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Protocol

if TYPE_CHECKING:
    from rich.console import Console

Unit = Literal[
    "B", "documents", "sequences", "batches", "requests", "tokens", "files", "points", "rounds", "passes", "steps"
]
LOG_INTERVAL_SECONDS = 10.0
KNOWN_SHARE, KNOWN_SECONDS = 0.02, 5.0
"""Share of the work and seconds of it from which on the remaining time is told."""
LARGEST = 1e150
"""A value from here on is told as this, a bound: no float holds a perplexity beyond 1.8e308, which a ruined model may
have.  Its square, of which errors are made, is a float too."""
SCIENTIFIC = 1e9
"""From which value on a power of ten says more than all the digits."""


class Advance(Protocol):
    """Tell a progress bar that so many units more are done."""

    def __call__(self, amount: int = 1, /) -> None:
        """Add `amount` units."""


class Reporter:
    """Talks on stderr; the silent form, `Reporter(quiet=...)`, still shows warnings."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._console: Console | None = None
        self._warned: list[str] = []

    @property
    def warned(self) -> tuple[str, ...]:
        """The warnings so far."""
        return tuple(self._warned)

    @property
    def console(self) -> Console:
        """The stderr console, made on first use since rich costs time to import."""
        if self._console is None:
            from rich.console import Console

            self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        return self._console

    def stage(self, number: int, total: int, title: str) -> None:
        """Announce a stage; a run that was interrupted ends here at the latest, and where a progress begins."""
        end_if_interrupted()
        if not self._quiet:
            self.console.print(f"[bold cyan][{number}/{total}][/] [bold]{_plain(title)}[/]")

    def note(self, text: str) -> None:
        """Say something that is good to know."""
        if not self._quiet:
            self.console.print(f"      {_plain(text)}")

    def warn(self, text: str) -> None:
        """Say something that the user should look at."""
        self._warned.append(text)
        self.console.print(f"[yellow]warning:[/] {_plain(text)}")

    def error(self, message: str, hint: str | None) -> None:
        """Show an error in red, and below it what to do next."""
        self.console.print(f"[bold red]error:[/] {_plain(message)}")
        if hint:
            self.console.print(f"[bold]hint:[/]  {_plain(hint)}")

    @contextmanager
    def progress(self, description: str, *, total: int, unit: Unit) -> Iterator[Advance]:
        """Show the progress of `total` units with rate and remaining time while the block runs."""
        end_if_interrupted()
        if self._quiet or not total:
            yield lambda amount=1, /: None
            return
        count = _Count(total)
        # Bars can move on a terminal, and in a notebook that has widgets.
        if self.console.is_terminal or (self.console.is_jupyter and find_spec("ipywidgets") is not None):
            with _bar(self.console, description, count, unit=unit) as advance:
                yield advance
        else:
            yield _LogProgress(self.note, description, count, unit=unit)
        # Of work that failed, the end is not told.
        count.ended = True
        self.note(f"{description}: {_amount(total, unit)} in {duration(count.seconds)}")


class _Count:
    """What is done of so many units, and when the rest will be: unknown until enough is done for long enough."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.ended = total, 0, False
        self._start = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start

    @property
    def left(self) -> str:
        """The remaining time in words, with a comma before it."""
        share, seconds = self.done / self.total, self.seconds
        known = share >= KNOWN_SHARE and seconds >= KNOWN_SECONDS
        return f", {duration(seconds * (1 / share - 1))} left" if known and share < 1 else ""


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


@contextmanager
def _bar(console: Console, description: str, count: _Count, *, unit: Unit) -> Iterator[Advance]:
    from rich import progress as rich

    done = [rich.MofNCompleteColumn(), rich.TextColumn(unit)]
    if unit == "B":
        done = [rich.DownloadColumn(), rich.TransferSpeedColumn()]
    left = rich.TextColumn("{task.fields[left]}")
    columns = [rich.TextColumn("      {task.description}"), rich.BarColumn(), *done, left]
    with rich.Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task(_plain(description), total=count.total, left="")

        def advance(amount: int = 1, /) -> None:
            if not count.ended:
                count.done += amount
                bars.update(task, completed=min(count.done, count.total), left=count.left.removeprefix(", "))

        yield advance


class _LogProgress:
    """Progress as lines of a log: one every ten seconds, with the remaining time once it is known."""

    def __init__(self, write: Callable[[str], None], description: str, count: _Count, *, unit: Unit) -> None:
        self._write, self._description, self._count, self._unit = write, description, count, unit
        self._next = LOG_INTERVAL_SECONDS

    def __call__(self, amount: int = 1, /) -> None:
        count, unit = self._count, self._unit
        count.done += amount
        seconds = count.seconds
        if seconds < self._next or not 0 < count.done < count.total or count.ended:
            return
        self._next = seconds + LOG_INTERVAL_SECONDS
        done = _amount(count.done, unit) if unit == "B" else f"{count.done:,}"
        self._write(f"{self._description}: {done} of {_amount(count.total, unit)}{count.left}")


def _amount(number: int, unit: Unit) -> str:
    return size(number) if unit == "B" else f"{number:,} {unit}"


def ranges(numbers: Sequence[int]) -> str:
    """Write ascending numbers in few characters: 3, 7-9."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def size(number: float) -> str:
    """Write bytes with a decimal unit: 1.50 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(round(number, 2)) < 1000:
            return f"{number:.0f} B" if unit == "B" else f"{number:.2f} {unit}"
        number /= 1000
    return f"{number:.2f} TB"


def decimal(value: float, *, digits: int, sign: bool = False) -> str:
    """Write a number with a fixed number of digits; from a billion on as 1.23e+30, and a bound with a > before it."""
    plus = "+" if sign else ""
    if abs(value) < SCIENTIFIC:
        return f"{value:{plus}.{digits}f}"
    if abs(value) < LARGEST:
        return f"{value:{plus}.2e}"
    return f"> {LARGEST:{plus}.0e}" if value > 0 else f"< {-LARGEST:.0e}"


def duration(seconds: float) -> str:
    """Write a time span: 0.4 s, 12 s, 3 min 05 s, 2 h 10 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


# ---- interruptions ---------------------------------------------------------------------------------------------------

_interruptions: list[int] = []
"""The signals so far that asked this process to stop."""


def listen_to_interruptions() -> None:
    """Let Ctrl-C and a polite kill raise KeyboardInterrupt, and remember that they came.

    A process that was started to ignore Ctrl-C, as a shell starts those in the background, still ignores it.
    """
    _interruptions.clear()
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)


def _interrupt(number: int, frame: object) -> NoReturn:
    _interruptions.append(number)
    raise KeyboardInterrupt


def was_interrupted() -> bool:
    """Tell whether this process was asked to stop: what fails afterwards fails of it, whatever it says."""
    return bool(_interruptions)


def end_if_interrupted() -> None:
    """Raise KeyboardInterrupt again where a library swallowed the first, as by an `except:` or in a callback from C.

    What cleans up after an interruption is not disturbed.
    """
    error = sys.exception()
    while error and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    if _interruptions and not error:
        raise KeyboardInterrupt


# ---- the manners of libraries ----------------------------------------------------------------------------------------


@contextmanager
def quiet() -> Iterator[None]:
    """Keep lm-eval off stdout, logs at what matters, and every tqdm bar off while the block runs."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    original, workers = tqdm.__init__, os.environ.get("DISABLE_MULTIPROC")

    def silent(bar: Any, *args: Any, **kwargs: Any) -> None:
        # lm-eval passes `disable` itself or nothing at all, so no option of its own reaches all of its bars.
        original(bar, *args, **{**kwargs, "disable": True})

    tqdm.__init__ = silent
    # The bootstrap opens a pool of processes as wide as the machine, for a single piece of work.
    os.environ["DISABLE_MULTIPROC"] = "1"
    try:
        # It also announces itself with print(), and stdout is for results.  That weights stay on disk was said before
        # they did; accelerate warns of it again for every model.
        with (
            log_level("lm_eval", logging.WARNING), log_level("accelerate.big_modeling", logging.ERROR),
            redirect_stdout(io.StringIO()),
        ):  # fmt: skip
            yield
    finally:
        tqdm.__init__ = original
        if workers is None:
            del os.environ["DISABLE_MULTIPROC"]
        else:
            os.environ["DISABLE_MULTIPROC"] = workers


@contextmanager
def log_level(name: str, level: int) -> Iterator[None]:
    """Give a logger another level while the block runs."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)
