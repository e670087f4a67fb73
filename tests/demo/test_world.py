"""The world: a pure function of its seeds, with nothing shared between training text and benchmark rows."""

import json
from pathlib import Path

import pytest
import yaml

from hubprune.demo import DATASETS, MIX, PROMPTS, TASK_NAMES, TASKS, WRITTEN_TASK, repo_id
from hubprune.demo.train import SHARES, Settings, Stage, documents
from hubprune.demo.vocabulary import NAMES, OBJECTS
from hubprune.demo.world import (
    BENCHMARK_SEED,
    BENCHMARKS,
    ROWS_PER_BENCHMARK,
    SUBSETS,
    TEXTS_PER_SUBSET,
    World,
    files,
    is_held_out,
    make,
    probe,
    texts,
)

FOLDER = DATASETS["calibration"].parent


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("subset", SUBSETS)
def test_the_same_seed_gives_the_same_texts(subset: str) -> None:
    assert texts(subset, 20, seed="one") == texts(subset, 20, seed="one")
    assert texts(subset, 20, seed="one") != texts(subset, 20, seed="two")


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_the_same_seed_gives_the_same_rows_and_no_passage_twice(benchmark: str) -> None:
    rows = make(benchmark, 50, seed="one")
    assert rows == make(benchmark, 50, seed="one") != make(benchmark, 50, seed="two")
    assert len({probe(row) for row in rows}) == 50


def test_the_share_kept_for_evaluation_does_not_depend_on_the_process() -> None:
    assert is_held_out("story", "x", "Mira", "Tom") is is_held_out("story", "x", "Mira", "Tom")
    kept = sum(is_held_out("recipe", "goal", x, y) for x in OBJECTS for y in OBJECTS)
    assert 0.1 < kept / len(OBJECTS) ** 2 < 0.2


def test_the_committed_data_files_are_what_the_world_writes() -> None:
    written = files()
    committed = {str(p.relative_to(FOLDER)): p.read_text(encoding="utf-8") for p in FOLDER.rglob("*.jsonl")}
    assert sorted(committed) == sorted(written)
    assert [path for path, content in written.items() if committed[path] != content] == []


def test_no_passage_of_a_benchmark_row_occurs_in_training_or_calibration_text() -> None:
    stream = documents(Stage(until=1.0, row_tokens=1, drill_share=0.0), f"train-{Settings().seed}-1")
    read = "\n".join([next(stream) for _ in range(12_000)])
    read += "\n".join(str(row["text"]) for path in FOLDER.glob("calibration/*.jsonl") for row in lines(path))
    passages = [probe(row) for name in BENCHMARKS for row in lines(FOLDER / f"benchmarks/{name}.jsonl")]
    assert len(set(passages)) == len(BENCHMARKS) * ROWS_PER_BENCHMARK
    assert [passage for passage in passages if passage in read] == []


def test_every_combination_of_a_row_is_one_that_texts_never_use() -> None:
    world = World("any")
    asked = {world.question()[1] for _ in range(20_000)}
    assert asked.isdisjoint(probe(row) for row in make("arc_easy", 200, seed=BENCHMARK_SEED))


def test_every_right_answer_is_among_the_choices_once() -> None:
    for row in make("hellaswag", 100, seed="any"):
        endings = row["endings"]
        assert isinstance(endings, list)
        assert len(set(endings)) == 4, row
    for row in make("piqa", 100, seed="any"):
        assert row["sol1"] != row["sol2"]
    for row in make("winogrande", 100, seed="any"):
        assert {row["option1"], row["option2"]} < {*NAMES, *OBJECTS}


@pytest.mark.parametrize("name", TASK_NAMES)
def test_every_task_file_names_a_config_of_the_benchmark_data_set(name: str) -> None:
    task = yaml.safe_load((TASKS / f"{name}.yaml").read_text(encoding="utf-8"))
    assert task["task"] == name
    assert task["dataset_path"] == repo_id("benchmarks")
    assert f"demo_{task['dataset_name']}" == name
    assert (DATASETS["benchmarks"] / f"{task['dataset_name']}.jsonl").is_file()
    assert {"acc"} <= {metric["metric"] for metric in task["metric_list"]}


def test_the_written_task_asks_the_questions_of_another_without_its_choices() -> None:
    written, given = (yaml.safe_load((TASKS / f"{n}.yaml").read_text()) for n in (WRITTEN_TASK, "demo_arc_easy"))
    same = ("dataset_path", "dataset_name", "test_split", "doc_to_text")
    assert [written[key] for key in same] == [given[key] for key in same]
    assert "doc_to_choice" not in written
    assert written["generation_kwargs"]["max_gen_toks"] == 12


@pytest.mark.parametrize(
    ("name", "configs", "split"), [("calibration", SUBSETS, "train"), ("benchmarks", BENCHMARKS, "test")]
)
def test_every_data_set_card_maps_its_configs_to_files(name: str, configs: tuple[str, ...], split: str) -> None:
    folder = DATASETS[name]
    front = yaml.safe_load((folder / "README.md").read_text(encoding="utf-8").split("---\n")[1])
    assert [c["config_name"] for c in front["configs"]] == list(configs)
    for config in front["configs"]:
        assert config["data_files"] == [{"split": split, "path": f"{config['config_name']}.jsonl"}]
        assert (folder / config["data_files"][0]["path"]).is_file()


def test_the_catalogue_is_complete() -> None:
    mix = yaml.safe_load(MIX.read_text(encoding="utf-8"))
    assert {part["dataset"] for part in mix["subsets"]} == {repo_id("calibration")}
    assert {part["config"] for part in mix["subsets"]} == set(SUBSETS) == set(SHARES)
    assert sum(part["weight"] for part in mix["subsets"]) == pytest.approx(1)
    assert max(part["weight"] for part in mix["subsets"]) * mix["num_samples"] <= TEXTS_PER_SUBSET
    assert sorted(p.stem for p in TASKS.glob("*.yaml")) == sorted((*TASK_NAMES, WRITTEN_TASK))
    assert len(PROMPTS.read_text(encoding="utf-8").splitlines()) == 8
