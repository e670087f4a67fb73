"""Tiny random models, small local tasks, and a wall around the network."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hubprune.core.console import Reporter

MODELING = """
import torch
from transformers import LlamaForCausalLM


class NoAttention(torch.nn.Module):
    def forward(self, hidden_states, **kwargs):
        return torch.zeros_like(hidden_states), None


class PrunedLlamaForCausalLM(LlamaForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        for i in config.dropped_attn_layers:
            self.model.layers[i].self_attn = NoAttention()
"""
PETS = [
    {"question": "What barks?", "choices": ["a dog", "a very quiet cat", "fish"], "answer": 0},
    {"question": "What purrs?", "choices": ["the dog", "my cat", "one old goldfish"], "answer": 1},
    {"question": "What swims?", "choices": ["dogs do", "a cat", "a fish"], "answer": 2},
    {"question": "Who sleeps all day?", "choices": ["dog", "cats, mostly", "fish"], "answer": 1},
    {"question": "Who fetches a stick?", "choices": ["a dog", "a cat", "a fish in the sea"], "answer": 0},
]
WORDS = [{"text": "one two three"}, {"text": "red green blue"}, {"text": "cold warm hot"}]
ACCURACY = {"metric": "acc", "aggregation": "mean", "higher_is_better": True}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Let every connection fail, and the test with it even where a library swallows the failure."""
    attempts = []

    def refuse(self, address):
        attempts.append(address)
        raise ConnectionRefusedError(f"tests have no network, and {address} was called")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    yield attempts
    assert attempts == []


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory) -> Path:
    """A random Llama of two layers that reads bytes; its tokenizer has no padding token."""
    folder = tmp_path_factory.mktemp("base") / "tiny"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=258,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=256,
        eos_token_id=257,
        initializer_range=0.3,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def byte_tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="session")
def copy_folder(base_folder, tmp_path_factory) -> Path:
    """The base again: a pruned folder with nothing pruned."""
    return Path(shutil.copytree(base_folder, tmp_path_factory.mktemp("copy") / "tiny-copy"))


@pytest.fixture(scope="session")
def pruned_folder(base_folder, tmp_path_factory) -> Path:
    """The base without its last attention, with the modeling file that makes it so."""
    folder = Path(shutil.copytree(base_folder, tmp_path_factory.mktemp("pruned") / "tiny-pruned"))
    config = json.loads((folder / "config.json").read_text())
    auto_map = {"AutoModelForCausalLM": "modeling_pruned_llama.PrunedLlamaForCausalLM"}
    config |= {"auto_map": auto_map, "dropped_attn_layers": [1], "architectures": ["PrunedLlamaForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_pruned_llama.py").write_text(MODELING)
    return folder


@pytest.fixture
def trapped_folder(pruned_folder, tmp_path) -> Path:
    """A folder whose code must not be run."""
    folder = Path(shutil.copytree(pruned_folder, tmp_path / "trapped"))
    (folder / "modeling_pruned_llama.py").write_text("raise SystemExit('code of the base was run')")
    return folder


@pytest.fixture(scope="session")
def task_folder(tmp_path_factory) -> Path:
    """Task files of every kind that matters, over local JSON lines."""
    folder = tmp_path_factory.mktemp("tasks")
    write_task(folder, "pets", PETS, tag="zoo", metric_list=[ACCURACY, ACCURACY | {"metric": "acc_norm"}])
    write_task(folder, "more_pets", PETS[:2], tag="zoo")
    write_task(folder, "shown_pets", PETS, num_fewshot=2)
    write_task(
        folder,
        "words",
        WORDS,
        output_type="loglikelihood",
        doc_to_text="{{text.rsplit(' ', 1)[0]}}",
        doc_to_target="{{' ' + text.rsplit(' ', 1)[1]}}",
        doc_to_choice=None,
        metric_list=[{"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}, ACCURACY],
    )
    write_task(
        folder,
        "answers",
        PETS[:3],
        output_type="generate_until",
        doc_to_target="{{choices[answer]}}",
        doc_to_choice=None,
        generation_kwargs={"until": ["\n"], "max_gen_toks": 4},
        metric_list=[{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    )
    aggregate = [{"metric": "acc", "weight_by_size": True}]
    for group, members in (("menagerie", ["pets", "more_pets"]), ("mixed", ["pets", "shown_pets"])):
        write_yaml(folder, group, {"group": group, "task": members, "aggregate_metric_list": aggregate})
    return folder


def write_task(folder: Path, name: str, documents: list, **fields) -> None:
    """Write a multiple-choice task with its documents; fields replace those of the task, None takes one out."""
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(d) + "\n" for d in documents))
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "{{question}}\nAnswer:",
        "doc_to_target": "answer",
        "doc_to_choice": "choices",
        "metric_list": [ACCURACY],
        "metadata": {"version": 2.0},
    }
    write_yaml(folder, name, {k: v for k, v in (task | fields).items() if v is not None})


def write_yaml(folder: Path, name: str, values: dict) -> None:
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(values))


@pytest.fixture(name="write_task", scope="session")
def write_task_fixture():
    return write_task


@pytest.fixture(name="write_yaml", scope="session")
def write_yaml_fixture():
    return write_yaml


class RecordingReporter(Reporter):
    """Remembers what it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []
        self.bars: list[dict] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def warn(self, text: str) -> None:
        self.notes.append(text)

    @contextmanager
    def progress(self, description: str, *, total: int, unit: str) -> Iterator:
        bar = {"description": description, "total": total, "unit": unit, "done": 0}
        self.bars.append(bar)

        def advance(amount: int = 1, /) -> None:
            bar["done"] += amount

        yield advance


@pytest.fixture(scope="session")
def quiet_reporter() -> Reporter:
    return Reporter(quiet=True)


@pytest.fixture
def reporter() -> RecordingReporter:
    return RecordingReporter()
