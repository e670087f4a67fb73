"""What a card says of chat templates: what went through one, what did not, and nothing where there is none."""

from __future__ import annotations

import made
import pytest
from card_text import card, matter
from test_snippet import folder, python_blocks, snippet  # noqa: F401 - a fixture

from hubprune.cards.commands import publish_command
from hubprune.core.artifacts import Chat
from hubprune.core.recipe import EvaluationSpec

DATED, PLAIN = Chat(date="2026-12-31"), Chat()


def in_chat(value, chat=PLAIN):
    return value.model_copy(update={"chat": chat})


def test_a_card_says_what_went_through_the_template():
    text = card(benchmarks=in_chat(made.benchmarks()), generation=in_chat(made.generation()))
    assert "Prompts went through the base's chat template, with examples as turns of their own" in text
    assert "Both models answered 3 prompts, each as a user's message in the base's chat template" in text
    assert "the day" not in text


def test_benchmarks_that_did_not_go_through_a_template_that_is_there_are_told_so():
    text = card(generation=in_chat(made.generation()))
    assert "the tasks' own texts, without the base's chat template" in text


def test_nothing_is_said_of_templates_where_there_is_none():
    assert "chat" not in card()


def test_the_day_that_a_template_writes_into_prompts_is_told():
    text = card(benchmarks=in_chat(made.benchmarks(), DATED), generation=in_chat(made.generation(), DATED))
    assert text.count("The template writes the day into every prompt: here 2026-12-31") == 2
    assert "The chat template writes the day into the prompt. Exactly this code" in text


def test_a_result_that_others_would_compare_says_that_it_came_through_a_template():
    first, *_ = matter(benchmarks=in_chat(made.benchmarks()))["model-index"][0]["results"]
    assert "0-shot, chat template" in first["metrics"][0]["name"]


def test_scores_on_texts_of_a_template_say_so():
    scores = made.scores()
    record = scores.calibration.model_copy(update={"chat_template": True})
    text = card(scores=scores.model_copy(update={"calibration": record}))
    assert "all of them as the base's chat template writes them" in text


@pytest.mark.parametrize(
    ("asked", "typed"), [(True, " --apply-chat-template"), (False, " --no-apply-chat-template"), (None, None)]
)
def test_the_command_to_publish_it_again_says_what_was_asked(asked, typed):
    recipe = made.recipe(evaluation=EvaluationSpec(tasks=("piqa",), apply_chat_template=asked))
    recipe = recipe.model_copy(update={"calibration": recipe.calibration.model_copy(update={"chat_template": True})})
    command = publish_command(recipe)
    assert (typed in command) if typed else ("apply-chat" not in command)
    assert " --calibration-chat-template" in command
