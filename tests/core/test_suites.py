"""Suites stand for their tasks, and what is written down are the tasks."""

from __future__ import annotations

import pytest
import yaml
from typer.testing import CliRunner

from hubprune.cli import app
from hubprune.core.errors import RecipeError
from hubprune.core.recipe import DEFAULT_TASKS, EvaluationSpec, Recipe, parse
from hubprune.core.requests import PublishRequest
from hubprune.core.suites import QUESTIONS, SUITES, Cost, cost_of
from hubprune.workflows.recipes import recipe_of

BASE = {"base": {"repo_id": "acme/base"}, "drop": {"attn_drop": 3}}
MIX = {"calibration": {"name": "mine", "subsets": [{"dataset": "acme/texts", "weight": 1}]}}


def spec(*tasks: str, **values) -> EvaluationSpec:
    return parse(EvaluationSpec, {"tasks": tasks, **values})


def given(**options):
    return recipe_of(PublishRequest("acme/base", attn_drop="3", **options)).evaluation


def test_the_suites_are_those_of_the_cards_and_of_the_paper():
    assert {name: list(tasks) for name, tasks in SUITES.items()} == {
        "card": ["arc_easy", "hellaswag", "lambada_openai", "piqa", "winogrande", "nq_open"],
        "card5": ["arc_easy", "hellaswag", "lambada_openai", "piqa", "winogrande"],
        "card-width": ["arc_easy", "boolq", "lambada_openai", "lambada_standard"],
        "paper": [
            "boolq", "rte", "openbookqa", "piqa", "mmlu", "winogrande", "gsm8k", "hellaswag", "arc_challenge",
        ],
        "quick": ["lambada_openai", "piqa", "winogrande"],
        "long": [f"banking77_{number}shot" for number in range(1, 6)],
        "generation": ["gsm8k", "ifeval", "squad_completion", "nq_open", "lambada_openai"],
    }  # fmt: skip
    shown = {"mmlu": 5, "winogrande": 5, "gsm8k": 5, "hellaswag": 10, "arc_challenge": 25}
    assert {task: number for task, number in SUITES["paper"].items() if number} == shown
    assert {task: number for task, number in SUITES["generation"].items() if number} == {"gsm8k": 5, "nq_open": 5}
    assert SUITES["card"]["nq_open"] == 5
    assert not any(number for name in ("card5", "card-width", "quick") for number in SUITES[name].values())


def test_a_recipe_from_before_the_default_had_a_written_task_keeps_its_tasks():
    old = {**BASE, **MIX, "evaluation": {"tasks": ["arc_easy", "hellaswag", "lambada_openai", "piqa", "winogrande"]}}
    assert parse(Recipe, old).evaluation.tasks == spec("card5").tasks
    assert EvaluationSpec().tasks == (*spec("card5").tasks, "nq_open")


def test_what_is_asked_is_counted_with_examples_and_within_the_limit():
    tasks, shots = ("piqa", "gsm8k", "of_my_own"), {"gsm8k": 5}
    piqa, gsm8k, other = (1838, 2, 60), (1319, 1, 130 + 5 * 230), (2000, 2, 100)
    asked = (piqa, gsm8k, other)
    counted = sum(n * each for n, each, _ in asked), sum(n * tokens for n, _, tokens in asked), 1319 * 256
    assert cost_of(tasks, shots) == Cost(*counted)
    assert cost_of(tasks, shots, limit=10) == Cost(50, 10 * (60 + 1280 + 100), 2560)
    # The same examples for all 100 rows are read once.
    assert cost_of(["banking77_5shot"], {"banking77_5shot": 385}) == Cost(7700, 100 * 500 + 385 * 28, 0)
    assert all(task in QUESTIONS for suite in SUITES.values() for task in suite)


def test_without_tasks_the_default_suite_is_run():
    assert EvaluationSpec() == spec("card") == given()
    assert EvaluationSpec().tasks == DEFAULT_TASKS


def test_suites_and_tasks_mix_and_each_task_is_run_once():
    mixed = given(tasks="quick,boolq,card5")
    assert mixed.tasks == ("lambada_openai", "piqa", "winogrande", "boolq", "arc_easy", "hellaswag")
    assert "boolq" not in mixed.num_fewshot
    assert given(tasks="none").tasks == ()


def test_a_recipe_names_the_tasks_and_their_examples_and_not_the_suite():
    recipe = parse(Recipe, {**BASE, **MIX, "evaluation": {"tasks": ["paper"]}})
    written = yaml.safe_load(recipe.to_yaml())["evaluation"]
    assert written["tasks"] == list(SUITES["paper"])
    assert written["num_fewshot"] == dict(SUITES["paper"])
    assert parse(Recipe, yaml.safe_load(recipe.to_yaml())) == recipe


def test_examples_that_are_given_come_before_those_of_the_suite():
    assert given(tasks="paper", num_fewshot="mmlu=0, boolq=2").num_fewshot == {**SUITES["paper"], "mmlu": 0, "boolq": 2}
    assert given(tasks="paper", num_fewshot="0").num_fewshot == dict.fromkeys(SUITES["paper"], 0)
    assert given(tasks="boolq,rte", num_fewshot="4").num_fewshot == {"boolq": 4, "rte": 4}
    assert given(tasks="boolq").num_fewshot == {}


def test_suites_that_disagree_about_a_task_have_to_be_told_apart():
    with pytest.raises(RecipeError, match="as in --num-fewshot winogrande=5,hellaswag=10"):
        given(tasks="card5,paper")
    decided = given(tasks="card5,paper", num_fewshot="hellaswag=10,winogrande=0")
    assert (decided.num_fewshot["hellaswag"], decided.num_fewshot["winogrande"]) == (10, 0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("five", "'five' is no number of examples"),
        ("mmlu=", "is no number of examples"),
        ("mmlu=5,3", "is no number of examples"),
        ("gsm8k=5", "--num-fewshot names gsm8k, which is not among the tasks: mmlu"),
        ("mmlu=-1", r"num_fewshot\.mmlu: Input should be greater than or equal to 0"),
    ],
)
def test_examples_that_make_no_sense_are_one_clear_error(text, said):
    with pytest.raises(RecipeError, match=said):
        given(tasks="mmlu", num_fewshot=text)


@pytest.mark.parametrize("wrong", [{"tasks": 3}, {"tasks": [3]}, {"num_fewshot": [1]}, {"num_fewshot": True}])
def test_settings_of_another_type_are_refused(wrong):
    with pytest.raises(RecipeError):
        parse(EvaluationSpec, wrong)


def test_other_tasks_than_the_files_come_without_its_examples(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**BASE, **MIX, "evaluation": {"tasks": ["mmlu", "piqa"], "num_fewshot": 5}}))
    assert given(recipe=path).num_fewshot == {"mmlu": 5, "piqa": 5}
    assert given(recipe=path, num_fewshot="piqa=0").num_fewshot == {"mmlu": 5, "piqa": 0}
    assert given(recipe=path, tasks="paper").num_fewshot == dict(SUITES["paper"])
    assert given(recipe=path, tasks="boolq").num_fewshot == {}


def test_the_help_says_what_the_suites_are():
    shown = CliRunner().invoke(app, ["publish", "--help"], env={"COLUMNS": "250", "NO_COLOR": "1", "TERM": "dumb"})
    text = " ".join(shown.output.replace("│", " ").split())
    assert "paper: boolq, rte, openbookqa, piqa, mmlu (5-shot), winogrande (5-shot), gsm8k (5-shot)," in text
    assert all(f"{name}: " in text for name in SUITES)
    assert "nq_open (5-shot) [65 k requests, 2.9 M tokens, at most 924 k written]; card5: " in text
