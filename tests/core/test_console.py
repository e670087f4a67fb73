"""What a person sees: on a terminal, in a log, and when they asked for quiet."""

from __future__ import annotations

import io
import time
from contextlib import suppress

import pytest
from rich.console import Console

from hubprune.core import console
from hubprune.core.console import Reporter, duration, size


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(console.time, "monotonic", made)
    return made


def progress_lines(capsys):
    return [line.strip() for line in capsys.readouterr().err.splitlines()]


# ---- logs --------------------------------------------------------------------------------------------------------


def test_a_log_gets_a_line_now_and_then_with_the_time_that_is_left(clock, capsys):
    with Reporter().progress("scoring", total=1600, unit="batches") as advance:
        for _ in range(1600):
            clock.now += 0.0625
            advance()
    assert progress_lines(capsys) == [
        "scoring: 160 of 1,600 batches, 1 min 30 s left",
        "scoring: 320 of 1,600 batches, 1 min 20 s left",
        "scoring: 480 of 1,600 batches, 1 min 10 s left",
        "scoring: 640 of 1,600 batches, 1 min 00 s left",
        "scoring: 800 of 1,600 batches, 50 s left",
        "scoring: 960 of 1,600 batches, 40 s left",
        "scoring: 1,120 of 1,600 batches, 30 s left",
        "scoring: 1,280 of 1,600 batches, 20 s left",
        "scoring: 1,440 of 1,600 batches, 10 s left",
        "scoring: 1,600 batches in 1 min 40 s",
    ]


def test_bytes_are_written_with_a_unit(clock, capsys):
    with Reporter().progress("writing", total=3_000_000, unit="B") as advance:
        clock.now += 11
        advance(1_000_000)
        clock.now += 1
        advance(2_000_000)
    assert progress_lines(capsys) == ["writing: 1.00 MB of 3.00 MB, 22 s left", "writing: 3.00 MB in 12 s"]


def test_the_end_is_told_once_however_far_the_count_runs_over(clock, capsys):
    with Reporter().progress("writing", total=10, unit="files") as advance:
        advance(4)
        advance(8)
        advance(1)
    assert progress_lines(capsys) == ["writing: 10 files in 0.0 s"]


def test_the_time_that_is_left_is_told_once_it_can_be_known(clock, capsys):
    """Not after the first of a thousand, nor in the first seconds, in which libraries warm up."""
    with Reporter().progress("scoring", total=1000, unit="tokens") as advance:
        for seconds, amount in ((11, 5), (11, 5), (11, 20), (1, 970)):
            clock.now += seconds
            advance(amount)
    assert progress_lines(capsys) == [
        "scoring: 5 of 1,000 tokens",
        "scoring: 10 of 1,000 tokens",
        "scoring: 30 of 1,000 tokens, 17 min 47 s left",
        "scoring: 1,000 tokens in 34 s",
    ]


def test_what_is_taken_back_and_done_again_ends_once_and_nothing_is_drawn_after_the_end(clock, capsys):
    with Reporter().progress("writing", total=10, unit="tokens") as advance:
        for amount in (10, -10, 10):
            clock.now += 11
            advance(amount)
    clock.now += 11
    advance(-5)
    assert progress_lines(capsys) == ["writing: 10 tokens in 33 s"]


def test_of_work_that_failed_no_end_is_told(clock, capsys):
    with suppress(OSError), Reporter().progress("writing", total=1, unit="files") as advance:
        advance()
        raise OSError
    assert progress_lines(capsys) == []


def test_nothing_to_do_is_nothing_to_tell(clock, capsys):
    with Reporter().progress("writing", total=0, unit="B"):
        pass
    assert progress_lines(capsys) == []


def test_nothing_is_ever_written_to_stdout(capsys):
    reporter = Reporter()
    reporter.stage(1, 6, "Scores")
    reporter.note("note")
    reporter.warn("careful")
    reporter.error("wrong", "do this")
    with reporter.progress("scoring", total=1, unit="batches") as advance:
        advance()
    seen = capsys.readouterr()
    assert seen.out == ""
    for text in ("[1/6] Scores", "note", "warning: careful", "error: wrong", "hint:  do this", "scoring: 1 batches in"):
        assert text in seen.err


@pytest.mark.parametrize("say", ["stage", "note", "warn", "error", "hint", "progress"])
def test_text_in_brackets_is_shown_and_never_taken_for_markup(capsys, say):
    text = "a [red]b[/red] [/] [link=x]c \\[d]"
    reporter = Reporter()
    if say == "stage":
        reporter.stage(1, 6, text)
    elif say == "error":
        reporter.error(text, None)
    elif say == "hint":
        reporter.error("e", text)
    elif say == "progress":
        with reporter.progress(text, total=1, unit="files") as advance:
            advance()
    else:
        getattr(reporter, say)(text)
    assert text in capsys.readouterr().err


def test_long_lines_are_not_broken_in_a_log(capsys):
    Reporter().note("x" * 500)
    assert "x" * 500 in capsys.readouterr().err


def test_an_error_without_a_hint_is_one_line(capsys):
    Reporter().error("wrong", None)
    assert capsys.readouterr().err == "error: wrong\n"


def test_quiet_keeps_warnings_and_errors(capsys):
    reporter = Reporter(quiet=True)
    reporter.stage(1, 6, "Scores")
    reporter.note("note")
    with reporter.progress("scoring", total=1, unit="batches") as advance:
        advance()
    assert capsys.readouterr().err == ""
    reporter.warn("careful")
    reporter.error("wrong", None)
    assert capsys.readouterr().err == "warning: careful\nerror: wrong\n"


# ---- terminals ---------------------------------------------------------------------------------------------------


def test_a_terminal_shows_a_bar_and_keeps_one_line_of_it(monkeypatch, clock):
    screen = io.StringIO()
    reporter = Reporter()
    monkeypatch.setattr(reporter, "_console", Console(file=screen, force_terminal=True, width=100, color_system=None))
    with reporter.progress("drawing [x]", total=3, unit="documents") as advance:
        advance()
        clock.now += 2
        advance(2)
    assert "3/3" in screen.getvalue()
    last = screen.getvalue().rstrip().splitlines()[-1]
    assert last.endswith("drawing [x]: 3 documents in 2.0 s")


def test_a_bar_tells_the_time_that_is_left_once_it_can_be_known(monkeypatch, clock):
    screen = io.StringIO()
    reporter = Reporter()
    monkeypatch.setattr(reporter, "_console", Console(file=screen, force_terminal=True, width=100, color_system=None))
    seen = []
    with reporter.progress("drawing", total=100, unit="tokens") as advance:
        for seconds in (1, 9):
            clock.now += seconds
            advance(10)
            for _ in range(2):  # a thread draws the bar anew; the first drawing may have begun before
                drawn = len(screen.getvalue())
                while len(screen.getvalue()) == drawn:
                    time.sleep(0.01)
            seen.append("left" in screen.getvalue())
    assert seen == [False, True]
    assert "40 s left" in screen.getvalue()
    ended = screen.getvalue()
    advance(10)
    assert screen.getvalue() == ended


def test_a_bar_is_taken_away_when_the_work_fails(monkeypatch):
    screen = io.StringIO()
    reporter = Reporter()
    monkeypatch.setattr(reporter, "_console", Console(file=screen, force_terminal=True, width=100, color_system=None))
    with pytest.raises(KeyboardInterrupt), reporter.progress("drawing", total=3, unit="documents"):
        raise KeyboardInterrupt
    assert "3 documents in" not in screen.getvalue()
    assert screen.getvalue().endswith("\x1b[2K")
    assert "\x1b[?25h" in screen.getvalue()


# ---- figures -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (1_500_000, "1.50 MB"), (6.43e9, "6.43 GB"), (2.5e12, "2.50 TB"),
     (999_999, "1.00 MB"), (3e15, "3000.00 TB"), (-1500, "-1.50 kB")],
)  # fmt: skip
def test_sizes_have_decimal_units(number, text):
    assert size(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.9, "9.9 s"), (12.4, "12 s"), (59.4, "59 s"), (59.8, "1 min 00 s"), (185, "3 min 05 s"),
     (3599.9, "1 h 00 min"), (7800, "2 h 10 min"), (9.97, "10 s")],
)  # fmt: skip
def test_time_spans_have_the_two_units_that_matter(seconds, text):
    assert duration(seconds) == text
