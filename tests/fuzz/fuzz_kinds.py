"""Each kind of file that is read, a valid one of it, and what reads it, up to where computing would start."""

from __future__ import annotations

import atexit
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "shared"))

import bases
import made
from mutations import as_json, as_yaml
from on_hub import make_folder

from hubprune.cards.manifest import content_digest, read_manifest, write_manifest
from hubprune.cards.records import parse_record
from hubprune.core.artifacts import LayerScores
from hubprune.core.console import Reporter
from hubprune.core.files import StageStore, list_files
from hubprune.core.recipe import CalibrationMix, EvaluationSpec, Recipe, parse, read_recipe
from hubprune.hub.session import HubSession
from hubprune.pruning.documents import find_mix
from hubprune.workflows.card import AS_SHIPPED, render_again
from hubprune.workflows.push import read_report
from hubprune.workflows.run import Run


@dataclass(frozen=True)
class Kind:
    """A kind of file."""

    file: str
    """Its name."""
    valid: Any
    """What a valid one holds."""
    write: Callable[[Any], bytes]
    """Makes a file of that."""
    read: Callable[[Path], object]
    """Reads the file at a path as the commands do."""
    quick: int = 100
    """Examples in the test suite."""


QUIET = Reporter(quiet=True)


# ---- recipes and mixes -------------------------------------------------------------------------------------------

RECIPE = {
    "schema_version": 1,
    "base": {"repo_id": "acme/base", "revision": "main"},
    "drop": {"attn_drop": 3, "mlp_drop": "10%", "protect": [0, 1]},
    "width": {"neuron_drop": "60%", "metric": "max_abs", "multiple": 64},
    "calibration": {
        "name": "own",
        "subsets": [
            {"dataset": "acme/a", "config": "c", "split": "train", "column": ["q", "a"], "weight": 0.7},
            {"dataset": "texts.jsonl", "column": "text", "weight": 0.3},
        ],
        "num_samples": 32, "max_tokens": 128, "packed": False, "shuffle_buffer": 100,
    },
    "layout": "auto", "metric": "cosine", "schedule": "one-shot", "aggregation": "document", "score_batch_size": 8,
    "evaluation": {
        "tasks": ["piqa", "quick"], "num_fewshot": {"piqa": 5}, "limit": 100, "batch_size": 4, "backend": "shared",
        "prompts": ["Once upon a time"], "max_new_tokens": 16, "max_loss": {"piqa": 3.5, "mean": 1},
    },
    "target": {"repo_id": "me/result", "revision": "main", "private": True, "license": "mit", "collection": "mine"},
    "seed": 7, "device": "cpu", "dtype": "float32",
}  # fmt: skip


def use_recipe(path: Path) -> None:
    recipe = read_recipe(path)
    assert sum(recipe.calibration.counts()) == recipe.calibration.num_samples
    assert recipe.default_name
    assert recipe.evaluation.prompt_texts()
    assert parse(Recipe, yaml.safe_load(recipe.to_yaml())) == recipe


def use_mix(path: Path) -> None:
    mix: CalibrationMix = find_mix(str(path))
    assert sum(mix.counts()) == mix.num_samples


# ---- files of a base ---------------------------------------------------------------------------------------------

CONFIG = {
    **bases.LLAMA, "attention_bias": False, "dtype": "float32", "head_dim": 8, "layer_types": ["full_attention"] * 5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "transformers_version": "5.0.0",
    "attention_dropout": 0.0, "pretraining_tp": 1, "use_cache": True, "eos_token_id": [2, 3],
}  # fmt: skip
GENERATION = {"bos_token_id": 1, "eos_token_id": [2], "do_sample": False, "max_length": 20, "temperature": 1.0}


@cache
def valid_base() -> Path:
    """A folder with a base that every file of is right."""
    above = Path(tempfile.mkdtemp(prefix="hubprune-fuzz-"))
    atexit.register(shutil.rmtree, above, ignore_errors=True)
    folder = above / "base"
    bases.write_base(folder, bases.LLAMA)
    (folder / "generation_config.json").write_bytes(as_json(GENERATION))
    return folder


def of_base(name: str) -> Any:
    return json.loads((valid_base() / name).read_text(encoding="utf-8"))


def base_with(path: Path) -> None:
    """Examine a base that one file is from; the others are valid ones."""
    folder = path.parent
    for file in valid_base().iterdir():
        if not (folder / file.name).exists():
            shutil.copyfile(file, folder / file.name)
    run = Run(
        parse(Recipe, {**RECIPE, "base": {"repo_id": str(folder)}, "drop": {"attn_layers": [1]}, "width": None}),
        HubSession(endpoint="http://127.0.0.1:9", given_token="hf_x"),
        QUIET,
        StageStore(folder / "work"),
    )
    assert run.examined
    assert run.runnable.tokenizer()("Once upon")["input_ids"]


# ---- the work folder and what was published ----------------------------------------------------------------------


def kept_scores() -> Any:
    """What a stage keeps, as it is written."""
    with tempfile.TemporaryDirectory() as folder:
        StageStore(Path(folder)).run("scores", "key", LayerScores, made.scores)
        return json.loads((Path(folder) / "stages" / "scores-key.json").read_text())


def use_stage(path: Path) -> None:
    assert path.name == "scores-key.json"
    kept = path.read_bytes()
    store = StageStore(path.parent.parent)
    scores = store.run("scores", "key", LayerScores, made.scores)
    assert scores == made.scores() or json.loads(kept) == json.loads(path.read_bytes())


def manifest() -> Any:
    with tempfile.TemporaryDirectory() as name:
        make_folder(folder := Path(name, "result"))
        (folder / "hubprune.json").unlink()
        files = tuple(file for file in list_files(folder) if file.path not in ("README.md", "recipe.yaml"))
        write_manifest(folder, report=made.report(checkpoint=made.checkpoint(files=files)), template_hash="0" * 64)
        return json.loads((folder / "hubprune.json").read_text())


def signed_json(values: Any) -> bytes:
    """Write a manifest with the digest of what it says, as somebody would who edits one with care."""
    try:
        digest = content_digest(values) if isinstance(values, dict) else None
    except Exception:  # what it holds cannot be written by a publish, so that it has no digest
        digest = None
    return as_json({**values, "content_sha256": digest} if digest and "content_sha256" in values else values)


def use_manifest(path: Path) -> None:
    data = path.read_bytes()
    assert read_manifest(data).data == data
    assert render_again(parse_record(data, where=path.name), AS_SHIPPED)


# ---- tasks -------------------------------------------------------------------------------------------------------

TASK = {
    "task": "fuzzed_task", "tag": ["some"], "dataset_path": "json", "dataset_name": None,
    "dataset_kwargs": {"data_files": {"test": __file__}}, "output_type": "multiple_choice",
    "test_split": "test", "fewshot_split": "test", "num_fewshot": 1, "doc_to_text": "{{question}}",
    "doc_to_target": "answer", "doc_to_choice": ["a", "b"], "should_decontaminate": False,
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4}, "metadata": {"version": 1.0},
}  # fmt: skip
GROUP = {
    "group": "fuzzed_task",
    "task": ["piqa", {"group": "sub", "task": ["winogrande"]}, {"task": "lambada_openai", "num_fewshot": 2}],
    "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}], "metadata": {"version": 1.0},
}  # fmt: skip


def use_task(path: Path) -> None:
    from hubprune.evaluation.tasks import data_sources, find_tasks, task_files

    spec = EvaluationSpec(tasks=("fuzzed_task",), include_path=str(path.parent))
    data_sources(find_tasks(spec), spec.tasks)
    task_files(spec)


TOKENIZER_CONFIG, TOKENIZER = of_base("tokenizer_config.json"), of_base("tokenizer.json")

KINDS = {
    "recipe": Kind("recipe.yaml", RECIPE, as_yaml, use_recipe, quick=150),
    "mix": Kind("mix.yaml", {k: v for k, v in RECIPE["calibration"].items() if k != "name"}, as_yaml, use_mix),
    "task": Kind("mine.yaml", TASK, as_yaml, use_task, quick=60),
    "group of tasks": Kind("mine.yaml", GROUP, as_yaml, use_task, quick=30),
    "config.json": Kind("config.json", CONFIG, as_json, base_with, quick=40),
    "tokenizer_config.json": Kind("tokenizer_config.json", TOKENIZER_CONFIG, as_json, base_with, quick=20),
    "tokenizer.json": Kind("tokenizer.json", TOKENIZER, as_json, base_with, quick=20),
    "generation_config.json": Kind("generation_config.json", GENERATION, as_json, base_with, quick=20),
    "kept stage": Kind("stages/scores-key.json", kept_scores(), as_json, use_stage, quick=60),
    "report": Kind("report.json", json.loads(made.report().model_dump_json()), as_json, read_report, quick=60),
    "hubprune.json": Kind("hubprune.json", manifest(), signed_json, use_manifest, quick=40),
}
