"""The committed models: small, loadable, and better than guessing on what they were trained for."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from hubprune.demo import DATASETS, MODELS, PROMPTS, TASK_NAMES
from hubprune.demo.measure import (
    attention_scores,
    encoded,
    perplexity,
    plans,
    repetition,
    task_config,
    without_attention,
)
from hubprune.demo.train import TOKENIZER_SEED, Settings, build_tokenizer, learning_rate, model_config, vocabulary
from hubprune.demo.world import BENCHMARKS, SUBSETS, make, probe, texts

NAMES = list(MODELS)
FILES = {
    *("README.md", "config.json", "generation_config.json", "model.safetensors"),
    *("special_tokens_map.json", "tokenizer.json", "tokenizer_config.json"),
}


@pytest.fixture(scope="module", params=NAMES)
def loaded(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = MODELS[request.param]
    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def held_out_rows(tokenizer: Any, *, per_subset: int = 5) -> list[Any]:
    return encoded(tokenizer, [text for subset in SUBSETS for text in texts(subset, per_subset, seed="test")])


def log_likelihoods(model: Any, tokenizer: Any, *, context: str, choices: Sequence[str]) -> list[float]:
    import torch

    start, out = len(tokenizer(context)["input_ids"]), []
    for choice in choices:
        ids = torch.tensor([tokenizer(f"{context} {choice}")["input_ids"]])
        with torch.inference_mode():
            log_probs = model(input_ids=ids).logits[0, start - 1 : -1].log_softmax(-1)
        out.append(log_probs.gather(1, ids[0, start:, None]).sum().item())
    return out


@pytest.mark.parametrize("name", NAMES)
def test_a_model_folder_is_small_complete_and_readable(name: str) -> None:
    files = {path.name: path.stat() for path in MODELS[name].iterdir()}
    assert set(files) == FILES
    assert sum(stat.st_size for stat in files.values()) < 3_000_000
    assert {stat.st_mode & 0o444 for stat in files.values()} == {0o444}


@pytest.mark.parametrize("name", NAMES)
def test_the_json_of_a_model_is_what_old_and_new_transformers_read(name: str) -> None:
    config = json.loads((MODELS[name] / "config.json").read_text(encoding="utf-8"))
    settings = Settings(arch=name.removeprefix("tiny-"))
    assert config == model_config(settings, vocab_size=config["vocab_size"])
    assert {"rope_theta", "torch_dtype", "model_type", "architectures"} <= set(config)
    tokenizer = json.loads((MODELS[name] / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not {"is_local", "local_files_only", "backend"} & set(tokenizer)


def test_mistral_looks_less_far_back_than_the_context_reaches() -> None:
    config = json.loads((MODELS["tiny-mistral"] / "config.json").read_text(encoding="utf-8"))
    assert config["sliding_window"] < config["max_position_embeddings"]


@pytest.mark.parametrize("name", NAMES)
def test_a_model_card_says_what_the_model_is(name: str) -> None:
    front = yaml.safe_load((MODELS[name] / "README.md").read_text(encoding="utf-8").split("---\n")[1])
    assert front["license"] == "apache-2.0"
    assert front["language"] == ["en"]


def test_the_committed_tokenizers_are_what_the_script_builds() -> None:
    built = json.loads(build_tokenizer(vocabulary(TOKENIZER_SEED)).to_str())
    for folder in MODELS.values():
        assert json.loads((folder / "tokenizer.json").read_text(encoding="utf-8")) == built


@pytest.mark.parametrize(
    "text", ["Mira lost a key.", "Übermut, naïveté 東京 🙂", "tab\tand\n\nlines", " two  spaces ", ""]
)
def test_any_text_survives_the_tokenizer(loaded: tuple[Any, Any], text: str) -> None:
    _, tokenizer = loaded
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_every_word_of_prompts_and_rows_is_one_token(loaded: tuple[Any, Any]) -> None:
    _, tokenizer = loaded
    splitter = tokenizer.backend_tokenizer.pre_tokenizer
    passages = PROMPTS.read_text(encoding="utf-8").splitlines()
    for name in BENCHMARKS:
        for row in make(name, 100, seed="test"):
            passages += [
                f"Question: {probe(row)}" if name in ("arc_easy", "piqa") else str(row.get("sentence", probe(row)))
            ]
    for passage in passages:
        words = passage.replace(" _ ", " ")
        assert len(tokenizer.tokenize(words)) == len(splitter.pre_tokenize_str(words)), words


def test_the_base_has_learnt_the_world_and_needs_its_attention(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    rows = held_out_rows(tokenizer)
    assert perplexity(model, rows) < 2.0
    with without_attention(model, range(model.config.num_hidden_layers)):
        assert perplexity(model, rows) > 10.0


def test_dropping_low_scores_costs_less_than_dropping_high_ones(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    rows = held_out_rows(tokenizer)
    scores = attention_scores(model, rows)
    order = sorted(range(len(scores)), key=scores.__getitem__)
    with without_attention(model, order[:3]):
        low = perplexity(model, rows)
    with without_attention(model, order[-3:]):
        high = perplexity(model, rows)
    assert perplexity(model, rows) < low < 0.75 * high


def test_the_base_answers_questions_well_above_chance(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    lines = (DATASETS["benchmarks"] / "arc_easy.jsonl").read_text(encoding="utf-8").splitlines()[:40]
    right = 0
    for row in map(json.loads, lines):
        context = f"Question: {row['question']}\nAnswer:"
        scores = log_likelihoods(model, tokenizer, context=context, choices=row["choices"]["text"])
        right += "ABCD"[scores.index(max(scores))] == row["answerKey"]
    assert right >= 24, f"{right} of 40, where chance is 10"


def test_a_sublayer_comes_back_after_the_context(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    rows = held_out_rows(tokenizer, per_subset=1)
    before = perplexity(model, rows)
    with without_attention(model, [0]):
        assert perplexity(model, rows) != before
    assert perplexity(model, rows) == before


def test_the_plans_of_the_table_are_ordered_by_score() -> None:
    from argparse import Namespace

    chosen = plans([0.5, 0.1, 0.4, 0.2], Namespace(drop=1, random=2, more=[2]))
    assert chosen["lowest 1"] == (1,)
    assert chosen["highest 1"] == (0,)
    assert chosen["lowest 2"] == (1, 3)
    assert chosen["no attention"] == (0, 1, 2, 3)
    assert chosen == plans([0.5, 0.1, 0.4, 0.2], Namespace(drop=1, random=2, more=[2]))


def test_repetition_is_the_share_of_four_grams_seen_before() -> None:
    assert repetition([1, 2, 3]) == 0.0
    assert repetition([1, 2, 3, 4, 5, 6]) == 0.0
    assert repetition([1, 1, 1, 1, 1, 1, 1]) == 0.75


@pytest.mark.parametrize("name", TASK_NAMES)
def test_a_task_reads_its_rows_from_the_folder_when_there_is_no_hub(name: str) -> None:
    config = task_config(name)
    assert config["dataset_path"] == "json"
    assert Path(config["dataset_kwargs"]["data_files"]["test"]).is_file()


def test_the_learning_rate_rises_and_falls_to_almost_nothing() -> None:
    settings = Settings()
    assert learning_rate(settings.warmup_steps, settings) == pytest.approx(settings.learning_rate)
    assert 0 < learning_rate(settings.steps, settings) < 0.01 * settings.learning_rate
