"""Benchmarks and free text through a chat template: lm-eval's own values, one BOS, one day for both models."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from hubprune.core.errors import UnsupportedFormatError
from hubprune.core.prompts import chat_of, chat_templates, rendered
from hubprune.core.recipe import EvaluationSpec
from hubprune.evaluation import generation, harness
from hubprune.evaluation.pair import ModelFolder, Pair
from hubprune.evaluation.requests import Request

TURNS = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}\n{% endfor %}"
ASKED = TURNS + "{% if add_generation_prompt %}[assistant]\n{% endif %}"
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
TEMPLATES = {
    "begins with BOS": "{{ bos_token }}" + ASKED,
    "without BOS": ASKED,
    "takes no system": NO_SYSTEM + ASKED,
}


BOS = 256


def with_template(folder, place, template, *, more=None):
    """Copy a base with a chat template, and with a tokenizer that begins every text with BOS."""
    copy = shutil.copytree(folder, place / folder.name)
    tokenizer = AutoTokenizer.from_pretrained(copy)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    tokenizer.backend_tokenizer.save(str(copy / "tokenizer.json"))
    (copy / "chat_template.jinja").write_text(template)
    for name, text in (more or {}).items():
        (copy / "additional_chat_templates").mkdir(exist_ok=True)
        (copy / "additional_chat_templates" / f"{name}.jinja").write_text(text)
    return copy


@pytest.fixture
def chat_tasks(task_folder, write_task):
    """Choices with examples and a description, and answers that begin with words of the task's own."""
    shown = [{"question": f"{n} and {n}?", "choices": [str(2 * n), "none"], "answer": 0} for n in range(4)]
    one = {"num_fewshot": 1, "fewshot_config": {"sampler": "first_n"}}
    write_task(task_folder, "described", shown, description="Sums.", **one)
    write_task(task_folder, "prefixed", shown, gen_prefix="It is", **one)
    return task_folder


TASKS = ["pets", "shown_pets", "words", "answers", "described", "prefixed"]


def lm_evals_own(folder, tasks):
    found = simple_evaluate(
        model="hf", model_args={"pretrained": str(folder), "softmax_dtype": "float32"}, tasks=TASKS, device="cpu",
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False), apply_chat_template=True,
        bootstrap_iters=0, random_seed=0, numpy_random_seed=0, torch_random_seed=0, fewshot_random_seed=0,
    )  # fmt: skip
    return {
        (task, name.partition(",")[0]): value
        for task, row in found["results"].items()
        for name, value in row.items()
        if isinstance(value, float) and "stderr" not in name
    }, found["samples"]


@pytest.fixture
def contexts(monkeypatch):
    """The tokens of every context that is scored."""
    seen, of = [], Request.of.__func__

    def noted(cls, context, ending, **more):
        seen.append(tuple(context))
        return of(cls, context, ending, **more)

    monkeypatch.setattr(Request, "of", classmethod(noted))
    return seen


@pytest.mark.parametrize("name", TEMPLATES)
def test_benchmarks_through_a_template_give_lm_evals_own_values(
    base_folder, pruned_folder, chat_tasks, reporter, contexts, tmp_path, name
):
    base, pruned = (with_template(f, tmp_path, TEMPLATES[name]) for f in (base_folder, pruned_folder))
    spec = EvaluationSpec(tasks=TASKS, include_path=str(chat_tasks), apply_chat_template=True)
    found = harness.run(
        ModelFolder(base), ModelFolder(pruned, own_code=True), spec=spec, seed=0, device="cpu", dtype="auto",
        reporter=reporter, samples_folder=tmp_path / "samples",
    )  # fmt: skip
    values, samples = lm_evals_own(base, chat_tasks)
    ours = {(row.task, row.metric): row.base.value for row in found.tasks}
    assert ours == pytest.approx({key: values[key] for key in ours}, rel=1e-4)
    assert len(ours) >= len(TASKS)
    for task in TASKS:
        rows = [json.loads(line) for line in (tmp_path / f"samples/base/samples_{task}.jsonl").read_text().splitlines()]
        asked = {row["doc_id"]: [a[:1] for a in row["arguments"]] for row in rows}
        assert asked == {row["doc_id"]: [list(a[:1]) for a in row["arguments"]] for row in samples[task]}
    assert (found.backend, found.chat.date) == ("shared", None)
    assert {(context[0], context.count(BOS)) for context in contexts} == {(BOS, 1)}


# ---- free text -----------------------------------------------------------------------------------------------------


def test_free_text_answers_what_the_template_makes_of_a_prompt(base_folder, reporter, tmp_path):
    base = with_template(base_folder, tmp_path, TEMPLATES["begins with BOS"])
    tokenizer = AutoTokenizer.from_pretrained(base)
    text = rendered(tokenizer, [{"role": "user", "content": "Hello"}], answer=True)
    plain = generation.Request(prompts=("Hello",), max_new_tokens=8)
    request = replace(plain, rendered=(text,), chat=chat_of(base))
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hello"}], add_generation_prompt=True, return_dict=True
    )["input_ids"]
    assert request.ids(tokenizer) == [ids]
    assert ids.count(BOS) == plain.ids(tokenizer)[0].count(BOS) == 1
    with Pair(ModelFolder(base), ModelFolder(base), device="cpu", dtype="auto", reporter=reporter) as pair:
        found, other = (generation.compare(pair, each, reporter=reporter) for each in (request, plain))
    assert found.chat is not None
    assert other.chat is None
    assert found.continuations[0].prompt == "Hello"
    assert found.continuations[0].base != other.continuations[0].base


# ---- templates -----------------------------------------------------------------------------------------------------


def test_templates_are_read_as_transformers_reads_them(base_folder, tmp_path):
    named = with_template(base_folder, tmp_path / "files", "one", more={"tool_use": "two"})
    listed = shutil.copytree(base_folder, tmp_path / "listed")
    config = json.loads((listed / "tokenizer_config.json").read_text())
    rows = [{"name": "default", "template": "one"}, {"name": "rag", "template": "two"}]
    (listed / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": rows}))
    single = shutil.copytree(base_folder, tmp_path / "single")
    (single / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": "one"}))
    for folder in (named, listed):
        assert chat_templates(folder) == AutoTokenizer.from_pretrained(folder).chat_template
    assert chat_templates(single) == {"default": AutoTokenizer.from_pretrained(single).chat_template}
    assert chat_templates(base_folder) == {}


def test_the_day_is_noted_where_a_template_asks_for_it(base_folder, tmp_path):
    dated = with_template(base_folder, tmp_path, "{{ strftime_now('%Y-%m-%d') }} " + ASKED)
    said = rendered(AutoTokenizer.from_pretrained(dated), [{"role": "user", "content": "Hello"}], answer=True)
    assert said.startswith(chat_of(dated).date)


@pytest.mark.parametrize("template", ["{% if %}", "{{ raise_exception('never') }}", "{{ messages.append(1) }}"])
def test_a_template_that_fails_is_one_error(base_folder, tmp_path, template):
    tokenizer = AutoTokenizer.from_pretrained(with_template(base_folder, tmp_path, template))
    with pytest.raises(UnsupportedFormatError, match="The chat template of the base cannot be rendered: ") as caught:
        rendered(tokenizer, [{"role": "user", "content": "Hello"}], answer=True)
    assert "\n" not in str(caught.value)
