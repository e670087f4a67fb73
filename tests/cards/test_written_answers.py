"""What a card says of answers that the models wrote, beside those of answers that were given."""

from __future__ import annotations

import made

from hubprune.cards.limits import benchmark_limits, purpose
from hubprune.cards.measured import benchmarks
from hubprune.core.artifacts import MetricValue
from hubprune.evaluation import compare

ASKED = {"requests": 2000, "new_tokens": None}


def comparison(*, written=True, known=True):
    """Two tasks of given answers, and one that the models write the answers of."""
    arc, lambada, *_ = made.benchmarks().tasks
    loss = made.right_or_wrong(40, 10, points=-6.0, error=1.2)
    nq = made.task("nq_open", "exact_match", (0.2, 0.01), (0.14, 0.01), dataset="google-research-datasets/nq_open",
                   config=None, paired=loss).model_copy(
        update={"filter": "remove_whitespace", "requests": 3610, "new_tokens": 256, "num_fewshot": 5}
    )  # fmt: skip
    rows = compare.judge([*(row.model_copy(update=ASKED) for row in (arc, lambada)), *([nq] if written else [])])
    rows = rows if known else tuple(row.model_copy(update={"requests": None, "new_tokens": None}) for row in rows)
    means = {
        "mean_written": compare.mean_change([row for row in rows if row.is_written]),
        "mean_scored": compare.mean_change([row for row in rows if row.is_written is False]),
    }
    return made.benchmarks(tasks=rows).model_copy(update=means)


def told(seen):
    section = benchmarks(seen)
    return " ".join((*section.sentences, *section.notes))


def test_what_a_model_writes_is_put_beside_what_it_scores_with_both_intervals():
    text = told(comparison())
    assert (
        "Each model was asked 7,610 times: 3,610 times it wrote an answer (nq_open, at most 256 tokens each),"
    ) in text
    # -0.76 and -7.80 with errors of 1.1 and 1.6: their mean -4.28, its interval 2 x sqrt(1.1^2 + 1.6^2) / 2 wide
    assert (
        "On average, answers that it writes (nq_open) changed by −6.00 points (95 % interval −8.40 to −3.60),"
        " those that it scores by −4.28 points (95 % interval −6.22 to −2.34)."
    ) in text
    assert "exact_match: share of the answers that are a right one" in text
    assert "how lm-eval extracts the answer from the text" in text


def test_nothing_is_put_side_by_side_where_only_one_kind_was_measured_or_it_is_not_known():
    for seen in (comparison(written=False), comparison(known=False)):
        text = told(seen)
        assert not any(words in text for words in ("answers that it writes", "it wrote an answer", "written answers"))


def test_a_card_without_written_answers_says_that_it_knows_nothing_of_them():
    said = [
        any("the benchmarks score given ones" in line for line in purpose(seen, repetition=None))
        for seen in (comparison(written=False), comparison(), comparison(known=False))
    ]
    assert said == [True, False, False]  # an older file does not tell


def test_a_loss_of_written_answers_is_told_as_one():
    found = list(benchmark_limits(comparison()))
    start = "nq_open (exact_match), whose answers the model writes itself, got worse:"
    assert any(line.startswith(start) for line in found)


def test_a_base_that_gets_nothing_right_is_told_to_have_little_to_lose():
    *rows, nq = comparison().tasks
    for value, error, said in ((0.0, 0.0, True), (0.05, 0.0284, True), (0.06, 0.0284, False), (0.0, None, True)):
        base = MetricValue(value=value, standard_error=error)
        found = list(benchmark_limits(made.benchmarks(tasks=(*rows, nq.model_copy(update={"base": base})))))
        assert any("the base itself gets hardly any right" in line for line in found) is said


def test_a_task_with_no_share_takes_no_side():
    perplexity = made.task("wiki", "word_perplexity", (10, 0.1), (12, 0.1), better="lower")
    rows = (perplexity.model_copy(update=ASKED), *comparison().tasks[2:])
    seen = made.benchmarks(tasks=rows)
    assert [row.task for row in seen.shares(written=True)] == ["nq_open"]
    assert seen.shares(written=False) == ()
    assert isinstance(rows[0].base, MetricValue)
