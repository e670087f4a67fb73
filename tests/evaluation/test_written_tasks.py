"""lm-eval's own tasks whose answers are written run from their YAML to a row of a card, on rows in the same columns."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

from hubprune.core.recipe import EvaluationSpec
from hubprune.core.suites import QUESTIONS, SUITES
from hubprune.evaluation import harness
from hubprune.evaluation.pair import ModelFolder

SUMS = [{"question": f"Ann has {n} pears and eats one. How many has she?", "answer": f"{n} - 1 = {n - 1}\n#### {n - 1}"}
        for n in range(2, 9)]  # fmt: skip
FACTS = [{"question": f"what is the colour of {thing}", "answer": [colour, f"a {colour}"]}
         for thing, colour in (("snow", "white"), ("grass", "green"), ("coal", "black"), ("blood", "red"),
                               ("the sea", "blue"), ("a lemon", "yellow"), ("a mouse", "grey"),
                               ("a pea", "green"))]  # fmt: skip
STORIES = [{"doc_id": n, "title": "made", "context": text, "question": "?", "value": value, "text": text}
           for n, (text, value) in enumerate((("Tom has a dog called Rex. The name of the dog is", "Rex"),
                                              ("It rained all day in May. It rained in", "May")))]  # fmt: skip
ORDERS = [{"key": 1, "prompt": "Write two words in lower case.", "kwargs": [{}],
           "instruction_id_list": ["change_case:english_lowercase"]},
          {"key": 2, "prompt": "Say yes without a comma.", "instruction_id_list": ["punctuation:no_comma"],
           "kwargs": [{}]}]  # fmt: skip
ROWS = {
    ("openai/gsm8k", "main"): {"train": SUMS[2:], "test": SUMS[:2]},
    ("google-research-datasets/nq_open", "nq_open"): {"train": FACTS[2:], "validation": FACTS[:2]},
    ("hazyresearch/based-squad", "default"): {"validation": STORIES},
    ("google/IFEval", "default"): {"train": ORDERS},
    ("EleutherAI/lambada_openai", "default"): {"test": [{"text": "One two three"}, {"text": "Red green blue"}]},
}


@pytest.fixture
def data_sets(tmp_path, monkeypatch):
    """Folders that `load_dataset` takes for the data sets of these names."""
    for (name, config), splits in ROWS.items():
        folder = tmp_path / name
        folder.mkdir(parents=True)
        for split, rows in splits.items():
            (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        files = [{"split": split, "path": f"{split}.jsonl"} for split in splits]
        card = yaml.safe_dump({"configs": [{"config_name": config, "data_files": files}]})
        (folder / "README.md").write_text(f"---\n{card}---\n")
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def pair(base_folder, tmp_path_factory):
    """A random Llama that reads bytes and has room for an answer of 1280 tokens, and one without its last attention."""
    base, pruned = (tmp_path_factory.mktemp("long") / name for name in ("base", "pruned"))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=258, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=4096, bos_token_id=256, eos_token_id=257, initializer_range=0.5,
    )  # fmt: skip
    shutil.copytree(base_folder, base)
    LlamaForCausalLM(config).save_pretrained(base)
    shutil.copytree(base, pruned)
    model = LlamaForCausalLM.from_pretrained(pruned)
    with torch.no_grad():
        model.model.layers[0].self_attn.o_proj.weight.zero_()
    model.save_pretrained(pruned)
    return ModelFolder(base), ModelFolder(pruned)


def measured(pair, reporter, *tasks):
    spec = EvaluationSpec(tasks=tasks, num_fewshot={t: n for t, n in SUITES["generation"].items() if t in tasks})
    assert all(Path(name).is_dir() for name in harness.check_tasks(spec))
    return harness.run(*pair, spec=spec, seed=0, device="cpu", dtype="auto", reporter=reporter)


def test_written_answers_are_scored_by_the_tasks_own_metrics_and_told_with_what_was_asked(pair, data_sets, reporter):
    tasks = tuple(task for task in SUITES["generation"] if task != "ifeval")
    seen = measured(pair, reporter, *tasks)
    rows = {row.task: row for row in seen.main_metrics()}
    assert {name: row.metric for name, row in rows.items()} == {
        "gsm8k": "exact_match", "squad_completion": "contains", "nq_open": "exact_match", "lambada_openai": "acc",
    }  # fmt: skip
    for name, row in rows.items():
        assert (row.documents, row.num_fewshot) == (2, SUITES["generation"][name])
        assert row.requests == 2 * QUESTIONS[name].requests
        assert row.new_tokens == (QUESTIONS[name].new_tokens or None)
        assert row.is_share
        assert row.paired is not None
    assert rows["gsm8k"].filter == "strict-match"
    assert [row.task for row in seen.shares(written=True)] == ["gsm8k", "squad_completion", "nq_open"]
    assert [row.task for row in seen.shares(written=False)] == ["lambada_openai"]
    means = [
        sum(row.points.value for row in seen.shares(written=kind)) / len(seen.shares(written=kind))
        for kind in (True, False)
    ]
    assert [seen.mean_written.value, seen.mean_scored.value] == pytest.approx(means)


def test_instructions_are_checked_by_a_program_where_its_packages_and_data_are(
    pair, data_sets, reporter, tmp_path, monkeypatch
):
    pytest.importorskip("langdetect")
    pytest.importorskip("immutabledict")
    from nltk.tokenize.punkt import PunktParameters, save_punkt_params

    monkeypatch.setattr("nltk.data.path", [str(tmp_path / "nltk")])
    (english := tmp_path / "nltk" / "tokenizers" / "punkt_tab" / "english").mkdir(parents=True)
    save_punkt_params(PunktParameters(), str(english))
    seen = measured(pair, reporter, "ifeval")
    rows = {row.metric: row for row in seen.tasks}
    assert next(iter(rows)) == "prompt_level_strict_acc"
    assert rows["prompt_level_strict_acc"].new_tokens == QUESTIONS["ifeval"].new_tokens
    assert all(row.is_share and row.documents == 2 for row in rows.values())
