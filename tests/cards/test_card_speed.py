"""Speed and memory on a card: each figure with its hardware and its interval, and nothing where nothing was timed."""

from __future__ import annotations

import made
import pytest
from card_text import card, check_golden, headings

from hubprune.cards.timed import _three_digits
from hubprune.core.artifacts import PeakMemory


def glance(text):
    lines = text.split("## At a glance")[1].split("## Use it")[0].splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("|")]
    return {row[0]: row[1:] for row in rows}


def section(text):
    return text.split("## Speed and memory")[1].split("\n## ")[0]


def test_a_timed_card_is_the_golden_one():
    text = card(speed=made.speed())
    check_golden("timed", text)
    assert set(headings(text)) - set(headings(card())) == {"Speed and memory"}


def test_speed_stands_at_a_glance_with_hardware_and_interval():
    rows = glance(card(speed=made.speed()))
    # 32 tokens in 0.9 and 0.8 s; a ratio of 1.125, 1.10 to 1.15
    told = ["35.6", "40.0", "+12.5 % (+10.0 to +15.0)"]
    assert rows["Decoding, tokens/s (NVIDIA L4)"] == told
    told = ["10,240", "10,343", "not resolved (−2.0 to +4.0 %)"]
    assert rows["Prefill, tokens/s (NVIDIA L4)"] == told
    assert rows["Peak memory (NVIDIA L4)"] == ["6.60 GB", "6.40 GB", "−200.00 MB (−3.03 %)"]


def test_a_speed_up_that_the_base_has_over_itself_is_not_told():
    row = made.timed("decode", (1.2, 1.1, 1.3), control=(1.1, 1.02, 1.2), seconds=(0.9, 0.8), tokens=32)
    text = card(speed=made.speed(rows=(row,)))
    told = glance(text)["Decoding, tokens/s (NVIDIA L4)"]
    assert told[-1] == "not resolved: the base differs from itself"
    assert "| Decoding, tokens/s | not resolved |" in section(text)
    assert "| – | +2.0 to +20.0 |" in section(text)


def test_sdr_has_both_of_its_numbers_and_exists_where_the_model_is_faster():
    text = section(card(speed=made.speed()))
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    sdr = {row[0]: row[-2] for row in rows if len(row) == 7}
    # 4.28 points / 12.5 %; ends: 2.34 / 15 and 6.22 / 10
    assert sdr["Decoding, tokens/s"] == "0.342 (0.156 to 0.622)"
    assert sdr["Prefill, tokens/s"] == "–"
    assert sdr["First token, ms"] == "–"
    assert "the mean of 2 benchmarks changed by −4.28 points" in text
    assert "SDR is" not in section(card(speed=made.speed(benchmarks=None)))


def test_the_hardware_the_shape_and_the_software_are_named():
    text = section(card(speed=made.speed()))
    assert "on NVIDIA L4 (cuda, bfloat16, attention sdpa, torch 2.13.0, transformers 5.23.0)" in text
    assert "a prompt of 512 tokens, then 32 new tokens, batch size 1." in text
    environment = made.environment()
    one = made.speed(device="cpu", threads=1, environment=environment, peak_memory=None)
    assert "on Two-Core CPU, 1 thread (cpu," in section(card(speed=one))
    assert "Peak" not in section(card(speed=one))
    two = made.speed(device="cpu", environment=environment, peak_memory=PeakMemory(
        how="resident", base=9, pruned=8, depth=512, new_tokens=32, batch_size=1
    ))  # fmt: skip
    assert "| Peak: resident memory of a process of its own, libraries and loading included | 9 B | 8 B |" in section(
        card(speed=two)
    )


def test_what_was_not_timed_is_a_limit_and_what_was_holds_for_its_hardware():
    assert "Not measured: speed, safety" in card()
    timed = card(speed=made.speed())
    assert "Not measured: safety" in timed
    assert "Speed and memory are those of NVIDIA L4: other hardware may gain more or less." in timed
    assert "tokens/s" not in card()


@pytest.mark.parametrize(
    ("value", "text"),
    [(12345.6, "12,346"), (100.0, "100"), (99.96, "100"), (99.94, "99.9"), (9.996, "10.0"), (9.994, "9.99"),
     (0.9996, "1.00"), (0.0123, "0.012")],
)  # fmt: skip
def test_a_pace_has_three_digits(value, text):
    assert _three_digits(value) == text
