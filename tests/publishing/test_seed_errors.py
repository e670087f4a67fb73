"""What went wrong on cards that were written by hand cannot go wrong on these."""

from __future__ import annotations

import difflib
import re

import made
from test_card import card, split
from test_card_widths import narrow

HAND = {
    "arc_easy": (0.7180, 0.7104), "hellaswag": (0.7405, 0.7274), "lambada_openai": (0.6969, 0.6189),
    "piqa": (0.7813, 0.7693), "winogrande": (0.6961, 0.6843),
}  # fmt: skip


def measured(**scores):
    """The five benchmarks of a card of that kind, each change with what is behind it."""
    values = {**HAND, **scores}
    changes = {name: 100 * (now - base) for name, (base, now) in values.items()}
    lost = {name: (54, 15) if name == "lambada_openai" else (6, 5) for name in values}
    return made.benchmarks(
        tasks=tuple(
            made.task(
                name, "acc", (base, 0.01), (now, 0.01),
                paired=made.right_or_wrong(*lost[name], points=changes[name], error=1.0),
            )
            for name, (base, now) in values.items()
        )
    )  # fmt: skip


def test_a_relative_change_is_never_called_points():
    """-7.80 points, -11.19 %: once told as a "11.2 percentage point drop"."""
    text = card(benchmarks=measured())
    row = next(line for line in text.splitlines() if line.startswith("| lambada_openai |"))
    points, relative = (cell.strip() for cell in row.strip("| ").split("|")[-3:-1])
    assert points.startswith("−7.80 (")
    assert relative == "−11.19"
    assert not re.search(r"11\.\d+ (percentage )?points", text)


def test_how_many_times_larger_a_loss_is_gets_computed():
    """7.0 times the mean of the others by points, 7.4 times by relative change: once told as "ten times larger"."""
    told = "lambada_openai lost 7.80 points, 7.0 times the mean loss of the other 4 benchmarks (1.11 points)."
    assert told in card(benchmarks=measured())


def test_neurons_parameters_and_bytes_have_each_their_own_percentage():
    """60 % of the neurons, 39 % of the parameters and "size" were one number of 60 % and one of 40 %."""
    text = card(**narrow())
    top = text.split("## At a glance")[1].split("## Use it")[0]
    rows = {line.split(" | ")[0].strip("| "): line.split(" | ")[-1].strip("| ") for line in top.splitlines()}
    assert rows["Neurons per MLP"] == "−60.00 %"
    assert rows["Parameters"] == f"−{100 - 100 * 1_944_443_904 / 3_212_749_824:.2f} %"
    assert re.fullmatch(r"−[\d.]+ GB \(−39\.48 %\)", rows["Weights on disk (BF16)"])
    assert not re.search(r"\b(40|60) %", text)


def test_base_and_pruned_are_said_to_come_from_one_run_and_there_is_one_value_of_the_base():
    """The same base had 0.718 on one card and 0.652 on the other."""
    text = card(benchmarks=measured())
    assert "Base and this model were measured in the same run, on the same documents" in text
    (model,) = split(text)[0]["model-index"]
    values = {m["value"] for r in model["results"] for m in r["metrics"]}
    assert values == {now for _, now in HAND.values()}


def test_means_and_their_change_agree_and_rounding_is_explained():
    text = card(benchmarks=measured())
    row = next(line for line in text.splitlines() if line.startswith("| Mean of 5 benchmarks"))
    base, now, change = (float(n.replace("−", "-")) for n in re.findall(r"\| ([−\d.]+)(?= )", row))
    assert abs((now - base) - change) < 0.0151
    assert "Changes, here and below, are computed from values that are not rounded yet." in text


def test_no_cause_and_no_use_is_claimed():
    for text in (card(benchmarks=measured()), card(**narrow())):
        words = split(text)[1].lower()
        assert not re.search(r"\b(because|surprising|surgical|demonstrate|suggests|meaningful|significan\w+)\b", words)


def test_memory_and_parameters_of_the_removed_are_differences_of_counts():
    text = card()
    assert "| Parameters | 3,212,749,824 | 3,137,000,000 | −2.36 % |" in text
    assert "| 32,768 | 20,480 | −37.50 % |" in text


def changed_lines(before, after):
    return [line[1:] for line in difflib.ndiff(before.splitlines(), after.splitlines()) if line[:1] in "+-"]


def test_one_changed_score_changes_only_the_lines_that_hold_it():
    """A small change of one task that is neither the worst nor decides anything."""
    before, after = card(benchmarks=measured()), card(benchmarks=measured(piqa=(0.7813, 0.7694)))
    lines = changed_lines(before, after)
    holders = (
        "This is ", " | piqa |", "Mean of 5 benchmarks", "      value: 0.769", "- The mean of 5 benchmarks got worse"
    )  # fmt: skip
    assert all(any(part in f" {line}" for part in holders) for line in lines), lines
    assert len(lines) == 2 * len(holders), lines


def test_one_changed_importance_changes_only_its_row():
    scores = made.scores()
    attn = (*scores.mean.attn[:7], 0.052001)
    other = scores.model_copy(update={"mean": scores.mean.model_copy(update={"attn": attn})})
    lines = changed_lines(card(), card(scores=other))
    assert [line.split(" | ")[2] for line in lines] == ["7", "7"]
