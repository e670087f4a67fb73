"""What the terminal shows of benchmarks is what the card says."""

from __future__ import annotations

import re

import made

from hubprune.commands.summary import benchmarks_table, free_text_line, publish_summary
from hubprune.evaluation.repetition import compare_repetition


def test_every_metric_has_its_change_with_an_interval_and_a_verdict():
    lines = benchmarks_table(made.benchmarks()).splitlines()
    assert [line.split("  ")[-1] for line in lines[:-1]] == ["verdict", "not distinguishable", "worse", "worse"]
    cells = [re.split(r" {2,}", line) for line in lines]
    assert cells[2][5:8] == ["-7.80", "-11.00 to -4.60", "-11.19 %"]
    assert cells[3][5:7] == ["+26.10 to +34.08 %", "+30.03 %"]
    assert lines[-1] == "mean change of the shares: -4.28 points [-6.22 to -2.34]"


def test_without_tests_changes_stand_alone():
    bare = tuple(row.model_copy(update={"paired": None}) for row in made.benchmarks().tasks)
    text = benchmarks_table(made.benchmarks(tasks=bare))
    assert " to " not in text
    assert text.splitlines()[-1] == "mean change of the shares: -4.28 points"


def test_free_text_is_one_line():
    line = free_text_line(made.generation().repetition)
    assert line in publish_summary(made.report()).splitlines()
    assert line == (
        "free text: seq-rep-4 0.00 % -> 23.53 %, +23.53 points [-77.71 to +100.00]; texts ending in a loop: 0 -> 1 of 3"
    )
    single = free_text_line(compare_repetition([[1, 2, 3, 4, 5]], [[1] * 20]))
    assert single == "free text: seq-rep-4 0.00 % -> 94.12 %, +94.12 points; texts ending in a loop: 0 -> 1 of 1"
