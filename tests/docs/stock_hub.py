"""A Hub with tiny stand-ins under the names that the pages use: the embedded Llama, its texts and benchmark rows."""

from __future__ import annotations

import json
from pathlib import Path

from hubprune import demo

BASE = "meta-llama/Llama-3.2-3B"
ROWS = 3
"""That are asked of a benchmark; there are some more to be shown as examples."""
SPLITS = {
    "allenai/ai2_arc": ("ARC-Easy", "arc_easy", ("train", "validation", "test")),
    "Rowan/hellaswag": ("default", "hellaswag", ("train", "validation")),
    "EleutherAI/lambada_openai": ("default", "lambada", ("test",)),
    "baber/piqa": ("default", "piqa", ("train", "validation")),
    "allenai/winogrande": ("winogrande_xl", "winogrande", ("train", "validation")),
    "google-research-datasets/nq_open": ("nq_open", None, ("train", "validation")),
}
"""Data set of a stock task -> its config, the file of the demo that has rows of the same columns, its splits."""
QUESTIONS = b"".join(b'{"question": "where does owl %d live", "answer": ["forest"]}\n' % n for n in range(8))


def fill(api):
    from huggingface_hub import CommitOperationAdd

    def put(repo_id, files, kind):
        api.create_repo(repo_id, repo_type=kind)
        adds = [CommitOperationAdd(path, data) for path, data in files.items()]
        api.create_commit(repo_id, adds, repo_type=kind, commit_message="Fill")

    put(BASE, folder_files(demo.MODELS["tiny-llama"]), "model")
    put("HuggingFaceTB/cosmopedia", folder_files(demo.DATASETS["calibration"]), "dataset")
    for repo_id, (config, file, splits) in SPLITS.items():
        rows = QUESTIONS if file is None else (demo.DATASETS["benchmarks"] / f"{file}.jsonl").read_bytes()
        rows = [line.replace(b'"ctx":', b'"ctx_b": "", "ctx_a":') for line in rows.splitlines(keepends=True)[:8]]
        configs = [{"config_name": config, "data_files": [{"split": s, "path": f"{s}.jsonl"} for s in splits]}]
        card = f"---\nconfigs: {json.dumps(configs)}\n---\n# Stand-in\n".encode()
        files = {f"{split}.jsonl": b"".join(rows if split == "train" else rows[:ROWS]) for split in splits}
        put(repo_id, {"README.md": card, **files}, "dataset")


def folder_files(folder: Path):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
