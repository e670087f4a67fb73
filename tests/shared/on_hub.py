"""What lies on the Hub of these tests, folders to publish, and a progress bar that counts."""

from __future__ import annotations

import json
import struct
from contextlib import contextmanager

import made

from hubprune.core.console import Reporter

BASE_ID = "meta-llama/Llama-Tiny"
CONFIG = {"model_type": "llama", "num_hidden_layers": 8, "architectures": ["LlamaForCausalLM"]}
BASE_CARD = "---\nlanguage: en\nlicense: apache-2.0\ngated_prompt: no\n---\n# Base\n"


def raw(header):
    """A safetensors file of a header alone."""
    return struct.pack("<Q", len(header)) + header


def safetensors(size, name="w"):
    header = json.dumps({name: {"dtype": "F32", "shape": [size], "data_offsets": [0, 4 * size]}}).encode()
    return raw(header) + b"\x01\x02\x03\x04" * size


BASE_FILES = {
    "README.md": BASE_CARD.encode(),
    "config.json": json.dumps(CONFIG).encode(),
    "generation_config.json": b"{}",
    "tokenizer.json": b"{}",
    "tokenizer_config.json": b"{}",
    "LICENSE.txt": b"terms",
    "USE_POLICY.md": b"policy",
    "model.safetensors": safetensors(70_000),
    "consolidated.safetensors": safetensors(70_000),
    "pytorch_model.bin": b"\x80",
    "original/consolidated.00.pth": b"\x80" * 100,
    "original/params.json": b"{}",
}


def commit_files(api, repo_id, files, **options):
    from huggingface_hub import CommitOperationAdd

    adds = [CommitOperationAdd(path_in_repo=path, path_or_fileobj=data) for path, data in files.items()]
    return api.create_commit(repo_id, adds, commit_message="files", **options).oid


def put_base(api):
    """Put the base on the Hub unless it is there, with files that no publish needs."""
    if not api.repo_exists(BASE_ID):
        api.create_repo(BASE_ID)
        commit_files(api, BASE_ID, BASE_FILES)
    return api.model_info(BASE_ID).sha


def make_folder(folder, *, card="# Card\n", **report):
    from hubprune.cards.manifest import write_recipe

    folder.mkdir()
    (folder / "config.json").write_text('{"dropped": [1]}')
    (folder / "model.safetensors").write_bytes(safetensors(50_000))
    (folder / "modeling_pruned_llama.py").write_text("code = 1\n")
    (folder / "tasks").mkdir()
    (folder / "tasks" / "own.yaml").write_text("task: own\n")
    written = made.report(**report)
    write_recipe(folder, recipe=made.recipe(), report=written)
    finish(folder, card=card, report=written)
    return folder


def finish(folder, *, card, report):
    from hubprune.cards.manifest import write_manifest
    from hubprune.core.files import list_files

    written = tuple(f for f in list_files(folder) if f.path not in ("README.md", "recipe.yaml", "hubprune.json"))
    report = report.model_copy(update={"checkpoint": made.checkpoint(files=written)})
    (folder / "README.md").write_text(f"---\nlicense: apache-2.0\n---\n{card}")
    return write_manifest(folder, report=report, template_hash="0" * 64)


class Ticks(Reporter):
    """Counts what a progress bar is told."""

    def __init__(self):
        super().__init__(quiet=True)
        self.total = self.done = self.calls = 0

    @contextmanager
    def progress(self, description, *, total, unit):
        self.total += total

        def advance(amount=1, /):
            self.done += amount
            self.calls += 1

        yield advance
