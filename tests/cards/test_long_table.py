"""The table of accuracy against the number of examples, as of Table 11 of arXiv 2406.15786."""

from __future__ import annotations

import made

from hubprune.cards.limits import limits
from hubprune.cards.measured import benchmarks


def row(shots, metric, base, pruned, *, tokens):
    task = made.task(f"banking77_{shots}shot", metric, (base, 0.04), (pruned, 0.04), chance=1 / 77)
    return task.model_copy(update={"documents": 100, "num_fewshot": 77 * shots, "prompt_tokens": tokens})


ROWS = [
    row(1, "acc", 0.26, 0.33, tokens=2034), row(1, "exact_match", 0.25, 0.31, tokens=2034),
    row(5, "acc", 0.81, 0.77, tokens=14012), row(5, "exact_match", 0.80, 0.75, tokens=14012),
]  # fmt: skip


def test_examples_stand_beside_the_accuracy_of_both_models():
    made_of = benchmarks(made.benchmarks(tasks=ROWS))
    assert made_of.long.table.columns == ("Model", "Answer", "1 (2,034 tokens)", "5 (14,012 tokens)", "Mean")
    assert made_of.long.table.rows == (
        ("base", "likeliest of all", "26.0", "81.0", "53.5"),
        ("this model", "likeliest of all", "33.0", "77.0", "55.0"),
        ("base", "written greedily", "25.0", "80.0", "52.5"),
        ("this model", "written greedily", "31.0", "75.0", "53.0"),
    )
    assert "100 rows of BANKING77" in made_of.long.sentence
    assert "Guessing gives 1.3." in made_of.long.sentence


def test_other_benchmarks_have_no_such_table_and_did_not_measure_long_contexts():
    assert benchmarks(made.benchmarks()).long is None
    said = [limits(made.plan(), scores=None, comparison=c, generation=None) for c in (made.benchmarks(), None)]
    assert all("long contexts" in lines[-1] for lines in said)
    long = limits(made.plan(), scores=None, comparison=made.benchmarks(tasks=ROWS), generation=None)
    assert "long contexts" not in long[-1]
