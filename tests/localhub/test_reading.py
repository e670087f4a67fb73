import json
import sys
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd
from huggingface_hub.errors import EntryNotFoundError, RevisionNotFoundError

CARD = """---
license: apache-2.0
language: [en, de]
library_name: transformers
pipeline_tag: text-generation
base_model: acme/base
datasets: [acme/rows]
tags: [pruned]
released: 2026-01-31
---
# A model
"""
CONFIGURATION = """
from transformers import PretrainedConfig


class TinyConfig(PretrainedConfig):
    model_type = "tiny-of-its-own"

    def __init__(self, answer=0, **options):
        self.answer = answer
        super().__init__(**options)
"""


def add(api, repo, files, **options):
    operations = [CommitOperationAdd(path, content.encode()) for path, content in files.items()]
    return api.create_commit(repo, operations, commit_message="Add files", **options).oid


def test_the_info_of_a_model_follows_its_card(api, repo):
    sha = add(api, repo, {"README.md": CARD, "weights.bin": "\0" * 500})
    info = api.model_info(repo, files_metadata=True)
    assert (info.sha, info.author, info.private, info.gated) == (sha, "acme", False, False)
    assert (info.library_name, info.pipeline_tag) == ("transformers", "text-generation")
    assert info.card_data.license == "apache-2.0"
    expected = ["transformers", "pruned", "en", "de", "dataset:acme/rows", "base_model:acme/base", "license:apache-2.0"]
    assert info.tags == expected
    sizes = {file.rfilename: file.size for file in info.siblings}
    assert (sizes["README.md"], sizes["weights.bin"]) == (len(CARD), 500)
    assert info.last_modified >= info.created_at.replace(microsecond=0)


def test_what_is_missing_is_missing_in_its_own_way(api, repo, tmp_path):
    with pytest.raises(EntryNotFoundError):
        api.hf_hub_download(repo, "missing.txt", cache_dir=tmp_path)
    with pytest.raises(RevisionNotFoundError):
        api.hf_hub_download(repo, "missing.txt", revision="nowhere", cache_dir=tmp_path)
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree(repo, "no/folder"))
    assert not api.file_exists(repo, "missing.txt")


def test_names_with_spaces_and_letters_of_all_kinds_survive(api, repo, tmp_path):
    path = "data sets/größe #1 %20?&+.txt"
    add(api, repo, {path: "content"})
    assert path in api.list_repo_files(repo)
    assert Path(api.hf_hub_download(repo, path, cache_dir=tmp_path)).read_text() == "content"
    assert [info.path for info in api.get_paths_info(repo, path)] == [path]


def test_a_snapshot_is_the_whole_repository_at_one_commit(api, repo, tmp_path):
    first = add(api, repo, {"a.txt": "old", "folder/b.bin": "\0" * 900})
    add(api, repo, {"a.txt": "new"})
    folder = Path(api.snapshot_download(repo, revision=first[:10], cache_dir=tmp_path))
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {".gitattributes", "a.txt", "folder/b.bin"}
    assert (folder / "a.txt").read_text() == "old"
    assert folder.name == first


def test_the_command_line_client_downloads(api, repo, child):
    add(api, repo, {"a.txt": "content", "b.bin": "\0" * 900})
    hf = Path(sys.executable).with_name("hf")
    folder = child([str(hf), "download", repo, "--quiet", "--local-dir", "got"])
    assert Path(folder.splitlines()[-1], "a.txt").read_text() == "content"


def test_load_dataset_reads_and_streams(api, repo, child):
    api.create_repo(repo, repo_type="dataset")
    rows = [{"text": f"row {number}", "label": number % 2} for number in range(20)]
    card = "---\nconfigs:\n- config_name: main\n  data_files:\n  - {split: train, path: 'rows/train-*'}\n---\n"
    content = "".join(json.dumps(row) + "\n" for row in rows)
    add(api, repo, {"README.md": card, "rows/train-0.jsonl": content}, repo_type="dataset")
    source = f"""
from itertools import islice
from datasets import load_dataset
streamed = load_dataset({repo!r}, "main", split="train", streaming=True)
print([row["text"] for row in islice(streamed, 2)])
loaded = load_dataset({repo!r}, "main", split="train")
print(len(loaded), loaded[19])
"""
    first, second = child(source).splitlines()
    assert first == "['row 0', 'row 1']"
    assert second == "20 {'text': 'row 19', 'label': 1}"


def test_from_pretrained_runs_code_from_the_repository(api, repo, child):
    config = {
        "model_type": "tiny-of-its-own",
        "auto_map": {"AutoConfig": "configuration_tiny.TinyConfig"},
        "answer": 42,
    }
    add(api, repo, {"config.json": json.dumps(config), "configuration_tiny.py": CONFIGURATION})
    source = f"""
from transformers import AutoConfig
config = AutoConfig.from_pretrained({repo!r}, trust_remote_code=True)
print(type(config).__name__, config.answer)
"""
    assert child(source) == "TinyConfig 42"
