"""The code of a card is the code that was run on its files, and what it printed is what the card shows."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import made
import pytest
from little import byte_tokenizer
from markdown_it import MarkdownIt
from transformers import LlamaConfig, LlamaForCausalLM

from hubprune.cards.card import render
from hubprune.cards.overview import Snippet, asks_for_more, samples
from hubprune.core.artifacts import SnippetRun
from hubprune.core.errors import VerificationError
from hubprune.core.files import StageStore
from hubprune.core.recipe import EvaluationSpec
from hubprune.workflows.publish import stages

REPO_ID = "acme/tiny-attn-drop-1"
HOSTILE_PROMPT = 'It said: "```\n{{ 7 * 7 }}\\" \u202e\u115f \U0001f426 # no end'

CHAT = (
    "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}A:{% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of bytes that draws its words at random unless it is told not to."""
    path = tmp_path_factory.mktemp("model")
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(path)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(path)
    settings = json.loads((path / "generation_config.json").read_text())
    (path / "generation_config.json").write_text(json.dumps({**settings, "do_sample": True, "temperature": 2.0}))
    return path


def snippet(folder, **changes):
    values = {"repo_id": REPO_ID, "revision": "hubprune-0", "custom_code": False, "samples": samples(folder)}
    return Snippet(**{**values, **changes})


def python_blocks(text):
    return [t.content for t in MarkdownIt("commonmark").parse(text) if t.type == "fence" and t.info == "python"]


def test_what_the_card_shows_is_what_was_run_and_what_that_printed(folder, tmp_path):
    run = snippet(folder, revision=made.snippet().revision, prompt=HOSTILE_PROMPT).run(folder, gpu=False)
    card = render(made.card_context(snippet=run, repo_id=REPO_ID))

    shown, *_ = python_blocks(card)  # behind it come the lines to train it on
    assert shown == run.code + "\n"
    assert "do_sample=False" in shown
    # The same by other means: the card's block in a script, the repo id changed by hand.
    (tmp_path / "reader.py").write_text(shown.replace(f'"{REPO_ID}"', repr(str(folder))), encoding="utf-8")
    done = subprocess.run([sys.executable, tmp_path / "reader.py"], capture_output=True, encoding="utf-8", check=True)
    assert done.stdout == run.output + "\n"
    assert run.output.startswith('It said: "```\n{{ 7 * 7 }}\\" ')
    assert str(folder) not in run.model_dump_json()


def test_the_output_of_another_place_is_not_shown_as_that_of_the_code():
    card = render(made.card_context(repo_id="somebody/else"))
    assert 'repo_id = "somebody/else"' in card
    assert "It printed" not in card


def test_code_that_fails_is_an_error_that_names_why(folder, tmp_path):
    for path in folder.iterdir():
        if path.name != "tokenizer.json":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(VerificationError, match="does not run on the written files: ") as caught:
        snippet(tmp_path).run(tmp_path, gpu=False)
    assert "Nothing was published" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, False),
        ({"generation_config.json": {"temperature": 0.6}}, False),
        ({"generation_config.json": {"do_sample": True}}, True),
        ({"generation_config.json": {"do_sample": False}, "config.json": {"do_sample": True}}, True),
    ],
)
def test_a_model_that_would_draw_at_random_is_told_not_to(tmp_path, files, expected):
    for name, values in files.items():
        (tmp_path / name).write_text(json.dumps(values))
    assert samples(tmp_path) is expected
    assert ("do_sample=False" in snippet(tmp_path).code()) is expected


def test_code_for_a_model_with_settings_that_generate_refuses_puts_them_aside(folder, tmp_path):
    wishes = {
        "stop_strings": ["a"], "prompt_lookup_num_tokens": 3, "return_dict_in_generate": True, "num_beams": 2,
        "cache_implementation": "quantized", "eos_token_id": 1,
    }  # fmt: skip
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "generation_config.json").write_text(json.dumps(wishes))
    assert not asks_for_more(folder)
    assert asks_for_more(tmp_path)
    run = snippet(tmp_path, plain=True).run(tmp_path, gpu=False)
    assert run.output == snippet(folder).run(folder, gpu=False).output
    assert "GenerationConfig\n\nrepo_id" in run.code


def test_the_code_of_a_card_asks_through_the_template_and_prints_the_answer(folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "chat_template.jinja").write_text(CHAT)
    run = snippet(tmp_path, prompt='Say "hi"', chat=True).run(tmp_path, gpu=False)
    assert 'messages = [{"role": "user", "content": "Say \\"hi\\""}]' in run.code
    assert "user" not in run.output
    assert run.output != snippet(tmp_path, prompt='Say "hi"').run(tmp_path, gpu=False).output


def test_a_token_in_a_prompt_is_neither_run_nor_shown():
    code = Snippet(repo_id=REPO_ID, revision=None, prompt="hf_" + "a" * 30, custom_code=False).code()
    assert "hf_a" not in code
    assert "hf_…" in code


def test_reports_of_versions_that_ran_nothing_can_still_be_read():
    values = made.report().model_dump(mode="json")
    assert SnippetRun.model_validate(values.pop("snippet")) == made.snippet()
    assert type(made.report()).model_validate(values).snippet is None


def test_a_snippet_template_of_ones_own_is_what_is_run(folder, tmp_path):
    own = tmp_path / "templates"
    own.mkdir()
    (own / "snippet.py.jinja").write_text('{% include "shipped/snippet.py.jinja" %}\nprint("mine")\n')
    evaluation = EvaluationSpec(prompts=("Why",))
    run = SimpleNamespace(
        recipe=SimpleNamespace(evaluation=evaluation), device="cpu", circumstances="here", store=StageStore(tmp_path)
    )
    plan = made.plan().model_copy(update={"layout": "stock"})
    done = stages.run_snippet(run, plan, folder, repo_id=REPO_ID, tag=None, template=own)
    assert done.code.endswith('print("mine")')
    assert done.output.endswith("mine")
