"""A small random base and its data as they lie on a Hub, and the command line as a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

if TYPE_CHECKING:
    from huggingface_hub import HfApi

    from hubprune.localhub import RunningHub

BASE = "meta/tiny"
ROWS = [{"question": f"What is {n} times two?", "choices": ["less", "more", "none"], "answer": n % 3} for n in range(6)]
TASK = """
task: little
dataset_path: meta/rows
output_type: multiple_choice
test_split: test
doc_to_text: "{{question}}"
doc_to_target: answer
doc_to_choice: choices
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""
MIX = """
name: little-mix
num_samples: 12
max_tokens: 24
subsets:
  - {dataset: meta/texts, config: plain, weight: 2}
  - {dataset: meta/texts, config: other, weight: 1}
"""
SMALL = (
    "--calibration", "mix.yaml", "--include-path", "tasks", "--tasks", "little", "--prompts", "prompts.txt",
)  # fmt: skip
"""Options of a publish with the small mix and the small task."""
EACH = """
import json, sys
from typer.testing import CliRunner
from hubprune.cli import app
from hubprune.core import devices, fresh
devices.spare()
ended = []
with fresh.warm():
    for arguments in json.loads(sys.argv[1]):
        result = CliRunner().invoke(app, arguments)
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        ended.append((result.exit_code, result.stdout, result.stderr))
print(json.dumps(ended))
"""
CONFIGS = """---
configs:
- {config_name: plain, data_files: plain.jsonl}
- {config_name: other, data_files: other.jsonl}
---
# Texts
"""


def byte_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {c: i for i, c in enumerate(["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def write_base(folder: Path) -> Path:
    """A random Llama of four layers whose importance scores are far apart."""
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.2, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    for number, layer in enumerate(model.model.layers):
        layer.self_attn.o_proj.weight.data *= [1.0, 0.1, 2.0, 0.5][number]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "README.md").write_text("---\nlicense: apache-2.0\nlanguage: en\n---\n# tiny\n")
    (folder / "LICENSE").write_text("Apache License\n")
    return folder


def lines(rows: list[dict[str, object]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def fill(api: HfApi, repo_id: str, files: dict[str, bytes], repo_type: str = "model") -> None:
    """Make a repo of files."""
    from huggingface_hub import CommitOperationAdd

    api.create_repo(repo_id, repo_type=repo_type)
    operations = [CommitOperationAdd(path, content) for path, content in files.items()]
    api.create_commit(repo_id, operations, commit_message="Fill", repo_type=repo_type)


def put_on_hub(api: HfApi, base_folder: Path) -> None:
    """Put the base, the texts to calibrate on and the rows of the task on a Hub."""
    fill(api, BASE, {path.name: path.read_bytes() for path in base_folder.iterdir()})
    plain = [{"text": f"The {n} birds sing over the hill and the water number {n}."} for n in range(20)]
    other = [{"text": f"Give me {n} more of it, said he, and then {n} again."} for n in range(20)]
    texts = {"plain.jsonl": lines(plain), "other.jsonl": lines(other), "README.md": CONFIGS.encode()}
    fill(api, "meta/texts", texts, "dataset")
    fill(api, "meta/rows", {"test.jsonl": lines(ROWS)}, "dataset")


def _listen_to_ctrl_c() -> None:
    """Undo what a shell does to its background jobs, as tests may be: they and their children ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass
class Ended:
    """A command that has ended."""

    code: int
    out: str
    err: str


@dataclass
class CommandLine:
    """Runs `hubprune` against the Hub, with caches of its own."""

    hub: RunningHub
    home: Path
    token: str
    variables: dict[str, str] = field(default_factory=dict)

    def __call__(
        self, *arguments: object, stop_at: str | None = None, stop_after: float = 0, **variables: str
    ) -> Ended:
        """Run it to its end, or send Ctrl-C when stderr says `stop_at`, or so many seconds later."""
        command = [sys.executable, "-m", "hubprune", *map(str, arguments)]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=self.home,
            env=self.environment(variables), start_new_session=True, preexec_fn=_listen_to_ctrl_c,
        )  # fmt: skip
        return self._interrupted(process, stop_at, stop_after) if stop_at else self._ended(process)

    def each(self, *commands: Sequence[object], **variables: str) -> list[Ended]:
        """Run several commands in one process after each other, which imports the libraries once."""
        given = json.dumps([[str(argument) for argument in command] for command in commands])
        done = subprocess.run(
            [sys.executable, "-c", EACH, given], capture_output=True, text=True, cwd=self.home,
            env=self.environment(variables), timeout=240,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return [Ended(*ended) for ended in json.loads(done.stdout.splitlines()[-1])]

    def environment(self, variables: dict[str, str]) -> dict[str, str]:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUBPRUNE_"))}
        own = {
            "HF_ENDPOINT": self.hub.endpoint, "HF_TOKEN": self.token, "HF_HOME": str(self.home / "hf"),
            "HUBPRUNE_HOME": str(self.home / "work"), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false",
        }  # fmt: skip
        return {**inherited, **own, **self.variables, **variables}

    def _ended(self, process: subprocess.Popen[str]) -> Ended:
        out, err = process.communicate(timeout=240)
        return Ended(process.returncode, out, err)

    def _interrupted(self, process: subprocess.Popen[str], stop_at: str, stop_after: float) -> Ended:
        said = ""
        assert process.stderr is not None
        while stop_at not in said:
            line = process.stderr.readline()
            assert line, f"it ended, by {process.wait()}, before it said {stop_at}:\n{said}"
            said += line
        time.sleep(stop_after)
        running = process.poll() is None
        if running:  # a terminal sends Ctrl-C to the whole group, children included
            os.killpg(process.pid, signal.SIGINT)
        ended = self._ended(process)
        assert running, f"it had ended, by {ended.code}, before Ctrl-C was sent:\n{said}{ended.err}"
        return Ended(ended.code, ended.out, said + ended.err)


def write_files(folder: Path) -> Path:
    """Write a mix and a task of one's own, as a user would have them in a folder."""
    (folder / "mix.yaml").write_text(MIX)
    (folder / "prompts.txt").write_text("The birds\nGive me\n")
    (folder / "tasks").mkdir()
    (folder / "tasks" / "little.yaml").write_text(TASK)
    return folder


def leftovers(folder: Path) -> list[str]:
    """Everything half-done below a folder: staged folders and temporary files."""
    return [str(p) for p in folder.rglob("*") if ".partial-" in p.name or p.suffix in (".tmp", ".incomplete")]
