"""A base that cannot be asked through a chat template is refused by its tokenizer's files alone, with what to pass."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest
from bases import write_tokenizer

from hubprune.core.errors import RecipeError, UnsupportedFormatError
from hubprune.core.recipe import CalibrationMix, CalibrationSubset, EvaluationSpec, Recipe
from hubprune.core.specs import DropSpec
from hubprune.pruning.tokenizer_files import load_tokenizer, token_ids
from hubprune.workflows.chat import asks_in_chat, check_chat

ASKED = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
FAILS = "{{ raise_exception('not to you\nreally') }}"
MIX = CalibrationMix(name="own", subsets=(CalibrationSubset(dataset="a", weight=1),), chat_template=True)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    write_tokenizer(folder)
    return folder


@pytest.fixture
def base(plain, tmp_path):
    """A tokenizer with chat templates, by the paths of their files."""

    def write(files):
        folder = shutil.copytree(plain, tmp_path / "base")
        for name, text in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text)
        return folder

    return write


def recipe(*, calibration=None, **spec):
    plain = MIX.plain
    return Recipe(
        base="meta/tiny", drop=DropSpec(attn_drop=1), calibration=calibration or plain,
        evaluation=EvaluationSpec(tasks=("piqa",), **spec),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("files", "error", "said"),
    [
        ({}, RecipeError, "The tokenizer of meta/tiny has no chat template, which {} asks for."),
        ({"chat_template.jinja": ""}, RecipeError, "The tokenizer of meta/tiny has no chat template, which {}"),
        ({"chat_template.jinja": "Hi!"}, UnsupportedFormatError, "leaves out what is said as plain text"),
        ({"chat_template.jinja": FAILS}, UnsupportedFormatError, "of meta/tiny cannot be rendered: not to you"),
        ({"chat_template.jinja": "{% if %}"}, UnsupportedFormatError, "of meta/tiny cannot be rendered: Expected an"),
        ({"chat_template.jinja": "{{ messages[0]['content'][0]['text'] }}"}, UnsupportedFormatError, "leaves out what"),
        (
            {"additional_chat_templates/rag.jinja": ASKED, "additional_chat_templates/tool_use.jinja": ASKED},
            RecipeError,
            "Of the chat templates of meta/tiny, rag, tool_use, none is the default one.",
        ),
    ],
)
def test_a_base_without_a_template_that_does_is_refused(base, reporter, files, error, said):
    folder = base(files)
    asked = {
        "--apply-chat-template": recipe(apply_chat_template=True),
        "--calibration-chat-template": recipe(calibration=MIX),
    }
    for option, wanted in asked.items():
        with pytest.raises(error) as caught:
            check_chat(wanted, folder, name="meta/tiny", reporter=reporter)
        assert said.format(option) in caught.value.message
        assert "\n" not in caught.value.message
        assert "chat-template" in str(caught.value.hint)
    for other in (recipe(), recipe(apply_chat_template=False)):
        check_chat(other, folder, name="meta/tiny", reporter=reporter)


def test_a_template_that_takes_no_system_message_is_told(base):
    notes = []
    folder = base({"chat_template.jinja": "{% if messages[0]['role'] == 'system' %}{{ x.y.z }}{% endif %}" + ASKED})
    check_chat(recipe(apply_chat_template=True), folder, name="meta/tiny", reporter=SimpleNamespace(note=notes.append))
    assert ["takes no system message" in note for note in notes] == [True]


def test_free_text_asks_through_a_template_that_is_there_unless_it_is_left_out(base, plain):
    folder = base({"chat_template.jinja": ASKED})
    chosen = {asked: asks_in_chat(EvaluationSpec(apply_chat_template=asked), folder) for asked in (None, True, False)}
    assert chosen == {None: True, True: True, False: False}
    assert not asks_in_chat(EvaluationSpec(), plain)


def test_token_ids_of_a_base_with_a_template_that_fails_can_still_be_compared(base, plain):
    assert token_ids(load_tokenizer(base({"chat_template.jinja": FAILS}))) == token_ids(load_tokenizer(plain))
