"""The regression budget: what a result may lose, and what is said of one that lost more."""

from __future__ import annotations

import made
import pytest

from hubprune.cards.limits import budget_lines, check_budget
from hubprune.core.errors import OverBudgetError, RecipeError
from hubprune.core.recipe import EvaluationSpec, parse, read_recipe
from hubprune.core.requests import PublishRequest
from hubprune.evaluation import repetition
from hubprune.workflows.recipes import recipe_of

MEASURED = made.benchmarks()  # arc_easy -0.76, lambada_openai -7.80, in the mean -4.28
ASKED = {"base": "acme/base", "attn_drop": "1", "tasks": "arc_easy,piqa"}


def test_a_result_within_its_budget_passes_and_one_of_exactly_the_budget_too():
    check_budget({}, None)
    check_budget({"arc_easy": 1, "lambada_openai": 7.8, "mean": 4.28}, MEASURED)
    check_budget({"arc_easy": 0.76}, MEASURED)


def test_a_difference_of_two_shares_that_is_off_by_a_rounding_error_is_within_its_budget():
    tenth = made.task("arc_easy", "acc", (0.4, 0.01), (0.3, 0.01))
    assert tenth.points.value < -10
    check_budget({"arc_easy": 10}, made.benchmarks(tasks=(tenth,)))


def test_a_loss_over_the_budget_is_told_with_change_interval_and_allowance_of_every_task():
    with pytest.raises(OverBudgetError) as caught:
        check_budget({"arc_easy": 1, "lambada_openai": 5, "mean": 3.5}, MEASURED)
    assert caught.value.exit_code == 4
    assert caught.value.message == (
        "Nothing was published: lambada_openai, mean lost more than max_loss allows. "
        "arc_easy −0.76 (−2.96 to +1.44), 1.00 points allowed; "
        "lambada_openai −7.80 (−11.00 to −4.60), 5.00 points allowed, over budget; "
        "mean −4.28 (−6.22 to −2.34), 3.50 points allowed, over budget. "
        "(In points, with 95 % intervals; the change alone counts.)"
    )


def test_the_change_itself_decides_and_not_the_end_of_its_interval():
    assert [line.kept for line in budget_lines({"arc_easy": 1, "lambada_openai": 4.6}, MEASURED)] == [True, False]


def test_a_gain_keeps_a_budget_of_nothing():
    better = made.task("arc_easy", "acc", (0.5, 0.01), (0.6, 0.01))
    check_budget({"arc_easy": 0}, made.benchmarks(tasks=(better,)))


def test_a_task_counts_by_its_first_metric_that_is_a_share():
    rows = (
        made.task("wiki", "word_perplexity", (10, 0.1), (20, 0.1), better="lower"),
        made.task("wiki", "acc_norm", (0.5, 0.01), (0.4, 0.01)),
        made.task("wiki", "acc", (0.5, 0.01), (0.1, 0.01)),
    )
    check_budget({"wiki": 10}, made.benchmarks(tasks=rows))
    with pytest.raises(OverBudgetError):
        check_budget({"wiki": 9.99}, made.benchmarks(tasks=rows))


def test_what_was_not_measured_is_no_pass():
    perplexity = made.task("wiki", "word_perplexity", (10, 0.1), (10, 0.1), better="lower")
    with pytest.raises(OverBudgetError, match="wiki has no metric between 0 and 1"):
        check_budget({"wiki": 5}, made.benchmarks(tasks=(perplexity,)))


def test_the_option_and_the_recipe_file_say_the_same(tmp_path):
    made_of_options = recipe_of(PublishRequest(**ASKED, max_loss="arc_easy=10, mean=2.5,loops=5"))
    assert made_of_options.evaluation.max_loss == {"arc_easy": 10, "mean": 2.5, "loops": 5}
    file = tmp_path / "recipe.yaml"
    file.write_text(made_of_options.to_yaml())
    assert read_recipe(file) == made_of_options
    replaced = recipe_of(PublishRequest(recipe=file, max_loss="piqa=1"))
    assert replaced.evaluation.max_loss == {"piqa": 1}
    assert recipe_of(PublishRequest(recipe=file, max_loss="none")).evaluation.max_loss == {}


def texts(*, tokens=64, base=3, pruned=9, of=32):
    """Free text of which so many end in a loop; seq-rep-4 is 1 where a text does and 0 where it does not."""
    loop, other = tuple([7] * 40), tuple(range(40))
    sides = [[loop if n < loops else other for n in range(of)] for loops in (base, pruned)]
    return made.generation().model_copy(
        update={"max_new_tokens": tokens, "repetition": repetition.compare_repetition(*sides)}
    )


def test_more_loops_than_allowed_are_told_with_their_number_and_interval():
    check_budget({"loops": 18.75, "repetition": 18.75}, MEASURED, texts())
    with pytest.raises(OverBudgetError) as caught:
        check_budget({"arc_easy": 0.5, "loops": 5, "mean": 5}, MEASURED, texts())
    lost, told = caught.value.message.split(". ", 1)
    assert lost == "Nothing was published: arc_easy lost, loops rose by more than max_loss allows"
    # 6 of 32 more; Agresti and Min: 6 / 34 within 1.96 x sqrt(7 - 36 / 34) / 34
    seen = "9 of 32 texts end in one, 3 of the base's"
    assert f"loops +18.75 (+3.60 to +31.70) ({seen}), 5.00 points more allowed, over" in told


def test_what_repeats_itself_more_is_over_its_own_budget_and_fewer_loops_are_a_gain():
    check_budget({"loops": 0, "repetition": 0}, None, texts(base=9, pruned=3))
    with pytest.raises(OverBudgetError, match=r"repetition rose by more.*seq-rep-4 27\.4 %, the base's 9\.1 %"):
        check_budget({"repetition": 10}, None, texts())


def test_texts_that_were_not_written_or_are_too_short_for_a_loop_are_no_pass():
    for generation in (None, texts(tokens=15, base=0, pruned=0)):
        with pytest.raises(OverBudgetError, match=r"loops was not measured, 5\.00 points more allowed"):
            check_budget({"loops": 5}, MEASURED, generation)
    assert budget_lines({"repetition": 5}, None, texts(tokens=15))[0].change is not None


@pytest.mark.parametrize(
    ("evaluation", "said"),
    [
        ({"max_new_tokens": 15, "max_loss": {"loops": 5}}, "loops, which a text of 15 tokens cannot show: set"),
        ({"tasks": ["loops"], "max_loss": {"loops": 5}}, "names loops, which is a task and more"),
        ({"tasks": ["mean"], "max_loss": {"mean": 5}}, "names mean, which is a task and more"),
        ({"tasks": [], "max_loss": {"loop": 5}}, "names loop, which is not measured: loops, repetition"),
    ],
)
def test_a_budget_of_texts_that_cannot_be_meant_is_refused_at_once(evaluation, said):
    with pytest.raises(RecipeError, match=said):
        parse(EvaluationSpec, evaluation)
    parse(EvaluationSpec, {"tasks": ["loops"], "max_new_tokens": 16})  # each by itself is meant


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"max_loss": "arc=10"}, "names arc, which is not measured: arc_easy, piqa, mean, loops, repetition."),
        ({"max_loss": "mean=3", "tasks": "none"}, "names mean, which is not measured: loops, repetition."),
        ({"max_loss": "ten"}, "--max-loss 'ten' is no budget."),
        ({"max_loss": "10", "tasks": "none"}, "names mean, which is not measured: loops, repetition."),
        ({"max_loss": "arc_easy=ten"}, "is no budget."),
        ({"max_loss": "arc_easy=-1"}, "evaluation.max_loss.arc_easy: Input should be greater than or equal to 0"),
        ({"max_loss": "arc_easy=nan"}, "evaluation.max_loss.arc_easy: Input should be a finite number"),
    ],
)
def test_a_budget_that_cannot_be_meant_is_refused_at_once(given, said):
    with pytest.raises(RecipeError) as caught:
        recipe_of(PublishRequest(**{**ASKED, **given}))
    assert said in str(caught.value)
