"""What went wrong on cards that were written by hand cannot go wrong on these."""

from __future__ import annotations

import ast
import difflib
import re

import made
from card_text import card, fences, split
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
    row = next(line for line in text.splitlines() if line.startswith("| lambada_openai, acc, % ↑ |"))
    points = row.strip("| ").split(" | ")[4]
    assert points.startswith("−7.80 points (")
    assert "| lambada_openai | acc, % ↑ |" in text
    assert "| −11.19 |" in text
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
    assert "All changes are computed from unrounded values." in text


def test_no_cause_and_no_use_is_claimed():
    for text in (card(benchmarks=measured()), card(**narrow())):
        words = split(text)[1].lower()
        assert not re.search(r"\b(because|surprising|surgical|demonstrate|suggests|meaningful|significan\w+)\b", words)


def test_memory_and_parameters_of_the_removed_are_differences_of_counts():
    text = card()
    assert "| Parameters | 3.21 B | 3.14 B | −2.36 % |" in text
    assert "| 32,768 | 20,480 | −37.50 % |" in text


def changed_lines(before, after):
    return [line[1:] for line in difflib.ndiff(before.splitlines(), after.splitlines()) if line[:1] in "+-"]


def test_one_changed_score_changes_only_the_lines_that_hold_it():
    """A small change of one task that is neither the worst nor decides anything."""
    before, after = card(benchmarks=measured()), card(benchmarks=measured(piqa=(0.7813, 0.7694)))
    lines = changed_lines(before, after)
    holders = ("This is ", " | piqa, acc", " | piqa |", "Mean of 5 benchmarks", "      value: 0.769")
    assert all(any(part in f" {line}" for part in holders) for line in lines), lines
    assert len(lines) == 2 * len(holders), lines


def test_one_changed_importance_changes_only_its_row():
    scores = made.scores()
    attn = (*scores.mean.attn[:7], 0.052001)
    other = scores.model_copy(update={"mean": scores.mean.model_copy(update={"attn": attn})})
    lines = changed_lines(card(), card(scores=other))
    assert [line.split(" | ")[2] for line in lines] == ["7", "7"]


# ---- what was left out, or claimed without a number ---------------------------------------------------------------


def test_the_snippet_uses_no_name_that_it_does_not_define():
    """`torch.float16` without `import torch`."""
    snippet = next(f.content for f in fences(card()) if f.info == "python")
    tree = ast.parse(snippet)
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    names = [n for n in ast.walk(tree) if isinstance(n, ast.Name)]
    defined = imported | {n.id for n in names if isinstance(n.ctx, ast.Store)} | {"print"}
    assert {n.id for n in names if isinstance(n.ctx, ast.Load)} <= defined


def test_the_table_of_scores_leaves_no_layer_out():
    """Four of 28 rows, dots, and two more."""
    text = card()
    assert len(re.findall(r"^\| \d+ \| \d+ \| [\d.]+ \|", text, re.M)) == made.plan().num_hidden_layers
    assert "..." not in text.split("## What was removed")[1].split("## Calibration")[0]


def test_layers_are_called_protected_only_where_somebody_protected_them():
    """ "Never candidates for removal" was a look at the scores."""
    assert "protected" not in split(card(plan=made.plan(protected=())))[1].lower()
    assert "Protected from removal: layers 0 and 1." in card()


def test_free_text_is_shown_with_how_it_was_written():
    """Two texts without decoding, length or prompt."""
    text = card()
    assert "greedy decoding, no penalty, at most 64 new tokens, bfloat16 on cpu" in text
    assert "<summary>Prompt 1, the first one</summary>" in text
    assert "chosen by a fixed rule" in text


def test_a_task_that_is_named_has_its_row():
    """MUSR was among the benchmarks that were named and in no table."""
    text = split(card(benchmarks=measured()))[1]
    rows = set(re.findall(r"^\| (\w+) \| acc", text, re.M))
    known = {"arc_easy", "hellaswag", "lambada_openai", "piqa", "winogrande", "musr", "boolq", "mmlu", "gsm8k"}
    assert {name for name in known if re.search(rf"\b{name}\b", text.replace("\\", ""), re.I)} <= rows


def test_a_loss_is_never_told_without_its_number():
    """ "Exceptionally high" perplexities, "extreme" drops."""
    limits = card(benchmarks=measured()).split("## Limits")[1].split("\n## ")[0]
    losses = [line for line in limits.splitlines() if "worse" in line or "lost" in line]
    assert losses
    assert all(re.search(r"−?\d+\.\d+ (points|%)", line) for line in losses)
    words = split(card(benchmarks=measured()))[1].lower()
    assert not re.search(r"\b(extreme|severe|exceptional\w*|robust|efficien\w+|minimal|contained|non-trivial)\b", words)


def test_guessing_is_not_called_reasoning():
    """32 % of four choices showed "basic reasoning"; 50.7 % of two choices were "better performance"."""
    guess = made.right_or_wrong(20, 18, points=-0.4, error=1.2, at_chance=("base", "pruned"))
    row = made.task("boolq", "acc", (0.5, 0.1), (0.5, 0.1), chance=0.5, paired=guess)
    text = card(benchmarks=made.benchmarks(tasks=(row,)))
    assert "boolq (acc): the base itself is no better than guessing (50.0 ± 10.0 %, chance 50.0 %)." in text
    assert not re.search(r"\breason(s|ing)\b", split(text)[1])


def test_memory_is_claimed_where_it_was_counted_and_nowhere_else():
    """ "~40 % less memory" was the share of the parameters."""
    assert "Peak memory" not in card()
    assert "memory" not in split(card())[1].lower()
    assert "| Peak memory (NVIDIA L4) | 6.60 GB | 6.40 GB | −200.00 MB (−3.03 %) |" in card(speed=made.speed())


def test_licence_language_and_dtype_are_named_and_not_the_same_as_the_bases():
    """ "Same as original model"; files in F16 of a base in BF16, without a word."""
    matter, body = split(card())
    assert (matter["license"], matter["language"]) == ("llama3.2", ["en", "no"])
    assert "same as" not in body.lower()
    assert "| Weights on disk (BF16) |" in body
