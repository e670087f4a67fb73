from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import DatasetCardData, HfApi
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError
from huggingface_hub.hf_api import DatasetInfo

from hubprune.core.errors import EvaluationError
from hubprune.core.extras import client_library
from hubprune.core.recipe import DEFAULT_TASKS, EvaluationSpec
from hubprune.core.suites import SUITES
from hubprune.evaluation import harness, tasks
from hubprune.evaluation.results import _place
from hubprune.evaluation.sources import commit_of

httpx = client_library()


def spec(*names, include=None) -> EvaluationSpec:
    return EvaluationSpec(tasks=names, include_path=str(include) if include else None)


@pytest.fixture
def hub(monkeypatch):
    """Let the Hub answer with a data set, or with an error."""

    def answer(outcome):
        monkeypatch.setattr(HfApi, "dataset_info", answers(outcome))

    return answer


def answers(*outcomes):
    """A method of the Hub's client that returns or raises one outcome after the other, and then the last again."""
    left = list(outcomes)

    def method(self, repo_id, **kwargs):
        outcome = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return method


@pytest.fixture
def waits(monkeypatch):
    """Seconds that were waited, without waiting."""
    waited = []
    monkeypatch.setattr("tenacity.nap.time", SimpleNamespace(sleep=waited.append))
    return waited


def refused(kind: type[Exception], status: int) -> Exception:
    return kind("refused", response=httpx.Response(status, request=httpx.Request("GET", "http://hub/api")))


# ---- names -------------------------------------------------------------------------------------------------------


def test_only_the_folders_of_the_asked_tasks_are_indexed():
    manager = tasks.find_tasks(spec(*DEFAULT_TASKS))
    assert set(DEFAULT_TASKS) < set(manager.all_tasks)
    assert len(manager.all_tasks) < 50


def test_a_stock_task_is_found_where_it_is_among_all_of_them(monkeypatch):
    everywhere = tasks.stock_folders()
    assert len(everywhere) > 10_000
    some = [*sorted(everywhere)[::97], *(name for suite in SUITES.values() for name in suite)]
    assert {name: tasks.stock_folder(name) for name in some} == {name: everywhere[name] for name in some}
    assert tasks.stock_folder("hellaswagg") is None
    # Where a folder is called as the name begins, nothing else is read.
    monkeypatch.setattr(tasks, "stock_folders", dict)
    assert tasks.stock_folder("arc_easy") == everywhere["arc_easy"]


def test_a_group_is_indexed_with_members_in_other_folders():
    manager = tasks.find_tasks(spec("t0_eval"))
    assert {"anli_r1", "anli_r2", "anli_r3"} <= set(manager.all_tasks)


def test_a_group_of_groups_is_followed_through_its_tags():
    manager = tasks.find_tasks(spec("mmlu"))
    assert len({s.task for s in tasks.data_sources(manager, ["mmlu"])}) == 1
    assert "mmlu_anatomy" in manager.all_subtasks


def test_a_typo_names_the_task_that_was_meant():
    with pytest.raises(EvaluationError) as caught:
        harness.check_tasks(spec("arc_easi"))
    assert "no benchmark arc_easi" in caught.value.message
    assert "arc_easy" in caught.value.hint
    assert "--include-path" in caught.value.hint


def test_a_typo_in_a_suite_names_the_suite_that_was_meant():
    with pytest.raises(EvaluationError) as caught:
        harness.check_tasks(spec("card-widht"))
    assert caught.value.hint.startswith("Did you mean card-width")
    assert "Suites: card, card5, card-width, paper, quick, long, generation." in caught.value.hint


def test_a_typo_in_a_task_of_ones_own_names_the_folder(task_folder):
    with pytest.raises(EvaluationError) as caught:
        harness.check_tasks(spec("pets", "wrods", include=task_folder))
    assert str(task_folder) in caught.value.message
    assert "words" in caught.value.hint


def test_a_typo_does_not_index_everything_but_a_tag_does(monkeypatch):
    indexed = []

    def manager(broken, *, include_defaults=True, **options):
        indexed.append(include_defaults)
        return SimpleNamespace(task_index={})

    monkeypatch.setattr(tasks, "_manager", manager)
    for name, everything in (("hellaswagg", False), ("ai2_arc", True)):
        indexed.clear()
        with pytest.raises(EvaluationError):
            tasks.find_tasks(spec(name))
        assert (True in indexed) is everything


def test_a_task_of_ones_own_comes_before_a_stock_one(task_folder, tmp_path, write_task):
    write_task(tmp_path, "piqa", [{"question": "?", "choices": ["a", "b"], "answer": 0}])
    assert list(harness.check_tasks(spec("piqa", include=tmp_path))) == [f"json: {tmp_path / 'piqa.jsonl'}"]


MAIN = {
    "arc_easy": "acc_norm", "hellaswag": "acc_norm", "lambada_openai": "acc", "lambada_standard": "acc",
    "piqa": "acc_norm", "winogrande": "acc", "boolq": "acc", "rte": "acc", "openbookqa": "acc_norm",
    "gsm8k": "exact_match", "arc_challenge": "acc_norm", "mmlu_anatomy": "acc", "nq_open": "exact_match",
    "ifeval": "prompt_level_strict_acc", **dict.fromkeys(SUITES["long"], "acc"),
}  # fmt: skip


def test_the_tasks_of_all_suites_are_there_and_judged_by_the_metric_that_papers_tell(monkeypatch):
    made = tasks._manager

    def manager(broken, *, include_defaults=True, **options):
        assert not include_defaults, "every task of lm-eval was indexed"
        return made(broken, include_defaults=False, **options)

    monkeypatch.setattr(tasks, "_manager", manager)
    names = EvaluationSpec(tasks=tuple(SUITES), num_fewshot={"winogrande": 0, "hellaswag": 0})
    index = tasks.find_tasks(names).task_index
    first = {name: min((m["metric"] for m in index[name].cfg["metric_list"]), key=_place) for name in MAIN}
    assert first == MAIN
    assert {*names.tasks} == {*MAIN, "mmlu", "squad_completion"} - {"mmlu_anatomy"}
    assert index["gsm8k"].cfg["filter_list"][0]["name"] == "strict-match"
    (aggregate,) = index["mmlu"].cfg["aggregate_metric_list"]
    assert (aggregate["metric"], aggregate["weight_by_size"]) == ("acc", True)


def test_the_examples_of_a_name_are_those_of_all_its_tasks(task_folder, tmp_path, write_yaml):
    asked = EvaluationSpec(
        tasks=("menagerie", "shown_pets", "words"), num_fewshot={"menagerie": 1}, include_path=str(task_folder)
    )
    loaded = tasks.load_tasks(asked)
    shown = {name: task.get_config("num_fewshot") for name, task in loaded.tasks.items()}
    assert shown == {"pets": 1, "more_pets": 1, "shown_pets": 2, "words": 0}


def test_a_task_cannot_be_shown_two_numbers_of_examples(task_folder):
    asked = {"include_path": str(task_folder), "tasks": ("menagerie", "pets")}
    with pytest.raises(EvaluationError, match="pets is asked for twice, with 1 and with its own number of examples"):
        tasks.find_tasks(EvaluationSpec(**asked, num_fewshot={"menagerie": 1}))
    assert tasks.find_tasks(EvaluationSpec(**asked, num_fewshot=1))


def test_a_task_that_is_defined_without_examples_is_shown_none():
    with pytest.raises(EvaluationError, match="lm-eval defines the benchmark arc_challenge_chat without examples"):
        tasks.find_tasks(EvaluationSpec(tasks=("arc_challenge_chat",), num_fewshot=5))
    assert tasks.find_tasks(EvaluationSpec(tasks=("arc_challenge_chat",), num_fewshot=0))


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(EvaluationError, match="There is no folder"):
        harness.check_tasks(spec("pets", include=tmp_path / "nowhere"))


def test_a_task_that_runs_generated_code_is_refused():
    with pytest.raises(EvaluationError, match="humaneval runs code that the model wrote"):
        harness.check_tasks(spec("humaneval"))


# ---- data sets ---------------------------------------------------------------------------------------------------


def test_data_sets_are_listed_once(hub):
    hub(DatasetInfo(id="any"))
    assert list(harness.check_tasks(spec("arc_easy", "arc_challenge", "piqa"))) == ["allenai/ai2_arc", "baber/piqa"]


def test_tasks_over_local_files_are_listed_apart(task_folder):
    asked = spec("pets", "words", include=task_folder)
    before = harness.check_tasks(asked)
    assert list(before) == [f"json: {task_folder / name}.jsonl" for name in ("pets", "words")]
    os.utime(task_folder / "pets.jsonl", ns=(0, 0))
    after = harness.check_tasks(asked)
    assert [before[name] == after[name] for name in before] == [False, True]


@pytest.mark.parametrize(
    "source",
    [
        {"dataset_path": "rows"},
        {"dataset_path": "rows", "dataset_kwargs": {"data_files": "deep/test.jsonl"}},
        {"dataset_path": "json", "dataset_kwargs": {"data_dir": "rows"}},
        {"dataset_path": "json", "dataset_kwargs": {"data_files": "rows/**/*.jsonl"}},
        {"dataset_path": "json", "dataset_kwargs": {"data_files": "../*/rows/**/*.jsonl"}},
    ],
)
def test_the_state_of_a_folder_is_that_of_its_files(source, tmp_path, write_task, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = tmp_path / "rows" / "deep" / "test.jsonl"
    rows.parent.mkdir(parents=True)
    rows.write_text("{}\n")
    write_task(tmp_path, "own", [], **({"dataset_kwargs": None} | source))
    before = harness.check_tasks(spec("own", include=tmp_path))
    rows.write_text("{}\n{}\n")
    after = harness.check_tasks(spec("own", include=tmp_path))
    assert before.keys() == after.keys()
    assert before != after


def test_a_missing_local_file_is_named(tmp_path, write_task):
    write_task(tmp_path, "lost", [])
    (tmp_path / "lost.jsonl").unlink()
    with pytest.raises(EvaluationError, match=r"lost\.jsonl of the benchmark lost does not exist"):
        harness.check_tasks(spec("lost", include=tmp_path))


def test_a_data_set_that_is_not_there_is_named(hub):
    hub(refused(RepositoryNotFoundError, 404))
    with pytest.raises(EvaluationError, match="data set baber/piqa of the benchmark piqa does not exist"):
        harness.check_tasks(spec("piqa"))


def test_a_gated_data_set_is_named(hub, monkeypatch):
    monkeypatch.setattr(HfApi, "auth_check", answers(refused(GatedRepoError, 403)))
    hub(DatasetInfo(id="baber/piqa", gated="manual"))
    with pytest.raises(EvaluationError, match="data set baber/piqa of the benchmark piqa is gated"):
        harness.check_tasks(spec("piqa"))


@pytest.mark.parametrize("outcome", [OfflineModeIsEnabled("offline"), httpx.ConnectError("no route")])
def test_an_unreachable_data_set_is_named_unless_it_is_cached(outcome, hub, monkeypatch, tmp_path):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    hub(outcome)
    with pytest.raises(EvaluationError, match="data set baber/piqa of the benchmark piqa cannot be reached"):
        harness.check_tasks(spec("piqa"))
    cached = tmp_path / "baber___piqa" / "default" / "0.0.0" / ("c" * 40)
    cached.mkdir(parents=True)
    (cached / "dataset_info.json").write_text("{}")
    assert list(harness.check_tasks(spec("piqa"))) == ["baber/piqa"]


def test_all_configs_of_a_data_set_are_one_question_to_the_hub(monkeypatch):
    asked = []

    def dataset_info(self, repo_id, **kwargs):
        asked.append(repo_id)
        return DatasetInfo(id=repo_id, sha="c" * 40)

    monkeypatch.setattr(HfApi, "dataset_info", dataset_info)
    assert harness.check_tasks(spec("mmlu")) == {"cais/mmlu": "c" * 40}
    assert asked == ["cais/mmlu"]


def test_offline_every_config_has_to_be_in_the_cache(hub, monkeypatch, tmp_path):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    hub(OfflineModeIsEnabled("offline"))

    def cache(config):
        folder = tmp_path / "allenai___ai2_arc" / config / "0.0.0" / ("c" * 40)
        folder.mkdir(parents=True)
        (folder / "dataset_info.json").write_text("{}")

    with pytest.raises(EvaluationError, match="ai2_arc of the benchmark arc_easy cannot be reached and is not in"):
        harness.check_tasks(spec("arc_easy", "arc_challenge"))
    cache("ARC-Easy")
    assert harness.check_tasks(spec("arc_easy")) == {"allenai/ai2_arc": None}
    with pytest.raises(EvaluationError, match="and of its configs ARC-Challenge is not in the cache"):
        harness.check_tasks(spec("arc_easy", "arc_challenge"))
    cache("ARC-Challenge-0123abcd")  # as where the YAML has settings of its own
    assert harness.check_tasks(spec("arc_easy", "arc_challenge")) == {"allenai/ai2_arc": None}


def test_a_config_that_the_data_set_does_not_have_is_named(hub):
    card = DatasetCardData(configs=[{"config_name": "ARC-Challenge", "data_files": "*.parquet"}])
    hub(DatasetInfo(id="allenai/ai2_arc", sha="c" * 40, card_data=card))
    assert harness.check_tasks(spec("arc_challenge"))
    with pytest.raises(EvaluationError, match=r"arc_easy has no config ARC-Easy\. It has: ARC-Challenge\."):
        harness.check_tasks(spec("arc_easy"))


def test_a_data_set_that_only_a_script_can_read_is_refused(hub):
    hub(DatasetInfo(id="baber/piqa", sha="c" * 40, siblings=[{"rfilename": "piqa.py"}]))
    with pytest.raises(EvaluationError, match=r"piqa is read by a script, piqa\.py, which datasets no longer runs"):
        harness.check_tasks(spec("piqa"))


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_hub_is_asked_again(status, monkeypatch, waits):
    busy, info = refused(HfHubHTTPError, status), DatasetInfo(id="baber/piqa", gated="auto", sha="c" * 40)
    monkeypatch.setattr(HfApi, "dataset_info", answers(busy, busy, info))
    monkeypatch.setattr(HfApi, "auth_check", answers(busy, None))
    assert harness.check_tasks(spec("piqa")) == {"baber/piqa": "c" * 40}
    assert waits == [1, 2, 1]


@pytest.mark.parametrize(("status", "tries"), [(503, 3), (400, 1)])
def test_asking_again_comes_to_an_end(status, tries, hub, waits, monkeypatch, tmp_path):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    hub(refused(HfHubHTTPError, status))
    with pytest.raises(EvaluationError, match="cannot be reached"):
        harness.check_tasks(spec("piqa"))
    assert len(waits) == tries - 1


def test_loading_offline_names_the_data_set(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(EvaluationError, match=r"benchmark piqa \(data set: baber/piqa\)"):
        tasks.load_tasks(spec("piqa"))


def test_loading_a_task_with_a_wrong_split_is_an_error_of_the_user(tmp_path, write_task):
    write_task(tmp_path, "split", [{"question": "?", "choices": ["a", "b"], "answer": 0}], test_split="tset")
    with pytest.raises(EvaluationError, match="Cannot load the benchmark split"):
        tasks.load_tasks(spec("split", include=tmp_path))


def test_the_commit_is_that_of_the_rows_which_were_read():
    class Rows:
        def __init__(self, path):
            self.cache_files = [{"filename": str(path)}]

    sha = "0123456789abcdef" * 2 + "01234567"
    on_hub = Rows(Path("/cache/owner___rows/default/0.0.0", sha, "rows-test.arrow"))
    local = Rows(Path("/cache/json/default-1/0.0.0", "f" * 64, "json-test.arrow"))
    assert commit_of({"test": on_hub}) == sha
    assert commit_of({"test": local}) is None


def test_a_group_may_be_written_in_place(task_folder, tmp_path, write_task, write_yaml):
    write_task(tmp_path, "leaf", [{"question": "?", "choices": ["a", "b"], "answer": 0}])
    write_yaml(tmp_path, "outer", {"group": "outer", "task": [{"group": "inner", "task": ["leaf"]}, {"task": "leaf"}]})
    assert list(harness.check_tasks(spec("outer", include=tmp_path))) == [f"json: {tmp_path / 'leaf.jsonl'}"]
