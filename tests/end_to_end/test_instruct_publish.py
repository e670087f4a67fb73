"""A base with a chat template: asked through it where that is wanted, and refused within seconds where it cannot be."""

from __future__ import annotations

import json

from little import leftovers

TARGET = "local/chat-told-attn-drop-2"


def test_an_instruct_model_is_asked_through_its_template_and_keeps_it(publish, files, api):
    done = publish(
        "--attn-drop", 2, "--apply-chat-template", "--calibration-chat-template", "--num-fewshot", 0, "--out", "out",
        base="meta/chat-told",
    )  # fmt: skip
    assert done.code == 0, done.err
    card = (files / "out" / "README.md").read_text()
    assert "Prompts went through the base's chat template" in card
    assert "each as a user's message in the base's chat template" in card
    assert "all of them as the base's chat template writes them" in card
    assert "inputs = tokenizer.apply_chat_template(\n" in card
    assert "    --apply-chat-template \\\n    --calibration-chat-template \\\n" in card
    manifest = json.loads((files / "out" / "hubprune.json").read_text())
    assert manifest["benchmarks"]["chat"] == manifest["generation"]["chat"] == {"date": None}
    assert manifest["fingerprint"]["benchmarks"]["apply_chat_template"] == "true"
    assert manifest["fingerprint"]["calibration"]["chat_template"] == "true"
    for name in ("chat_template.jinja", "additional_chat_templates/tool_use.jinja"):
        one, other = (api.hf_hub_download(repo, name) for repo in ("meta/chat-told", TARGET))
        assert open(one, "rb").read() == open(other, "rb").read()  # noqa: SIM115, PTH123


def test_a_base_that_cannot_be_asked_so_is_refused_before_anything_is_computed(publish, files):
    ended = publish("--attn-drop", 1, base="meta/chat-broken")
    assert ended.code == 1, ended.err
    assert "error: The chat template of meta/chat-broken cannot be rendered: not to you\n" in ended.err
    assert "hint:  Leave it out: --no-apply-chat-template." in ended.err
    assert "[2/6]" not in ended.err
    assert leftovers(files) == []
