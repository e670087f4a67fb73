"""A broken task file is named as broken, before anything is computed; nothing in one ends in a traceback."""

from __future__ import annotations

import os

import pytest

from hubprune.core.errors import EvaluationError
from hubprune.core.recipe import EvaluationSpec
from hubprune.evaluation import harness, tasks
from hubprune.evaluation.sources import refuse_misfit

ROW = {"question": "?", "choices": ["a", "b"], "answer": 0}


@pytest.fixture
def folder(tmp_path, write_task):
    write_task(tmp_path, "good", [ROW])
    return tmp_path


def spec(folder, *names):
    return EvaluationSpec(tasks=names, include_path=str(folder))


def refusal(folder, *names):
    with pytest.raises(EvaluationError) as caught:
        harness.check_tasks(spec(folder, *names))
    assert "\n" not in caught.value.message
    return str(caught.value)


# Names that no file of lm-eval has in it: for any other, all of its tags are looked through.
BROKEN = {
    "no YAML": ("task: owls\nx: [", "mine.yaml, line 3: did not find expected node content"),
    "a date": ("task: owls\nversion: 2024-13-45", "line 2: '2024-13-45' cannot be taken as timestamp"),
    "a key twice": ("task: owls\nrepeats: 1\nrepeats: 2", "line 3: the key 'repeats' stands there twice"),
    "a missing include": ("task: owls\ninclude: lost", "mine.yaml includes lost: Cannot read .*lost: No such file"),
    "an include of itself": ("task: owls\ninclude: mine.yaml", "includes mine.yaml: .*mine.yaml includes itself"),
    "an include of a number": ("task: owls\ninclude: [5]", "includes something that is no name of a file"),
    "a list": ("- task: owls", "mine.yaml holds no mapping, so it defines no benchmark"),
    "no UTF-8": (b"task: owls\nx: \xff", "mine.yaml: it is not UTF-8, byte 14 is 0xff"),
}


@pytest.mark.parametrize(("text", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_told_from_a_missing_task(folder, text, message):
    (folder / "mine.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(EvaluationError, match=message):
        harness.check_tasks(spec(folder, "owls"))
    assert harness.check_tasks(spec(folder, "good"))


def test_a_broken_file_that_another_name_is_asked_of_is_told_in_the_hint(folder):
    (folder / "mine.yaml").write_text("task: [")
    assert "There is no benchmark yaks in lm-eval's own tasks" in (said := refusal(folder, "yaks"))
    assert "Not read: Cannot read" in said


@pytest.mark.parametrize("place", ["mine.yaml", "template"])
def test_a_file_that_lm_eval_would_never_come_back_from_is_refused_whatever_is_asked_for(folder, place):
    (folder / "mine.yaml").write_text("task: mine\ninclude: template")
    (folder / place).write_text("x: " + "[" * 100_000 + "]" * 100_000)
    assert "nested deeper than 100 levels" in refusal(folder, "good")


def test_a_pipe_is_refused(folder):
    os.mkfifo(folder / "pipe.yaml")
    assert "pipe.yaml: it is a pipe or a device" in refusal(folder, "good")


MISFITS = {
    "dataset_path": {"dataset_path": 5},
    "dataset_kwargs": {"dataset_kwargs": "x"},
    "dataset_kwargs.data_dir": {"dataset_kwargs": {"data_dir": 5}},
    "num_fewshot": {"num_fewshot": True},
    "metric_list": {"metric_list": "acc"},
    "test_split": {"test_split": ["a"]},
    "NUL": {"dataset_kwargs": {"data_files": {"test": ["a\0b"]}}},
}


@pytest.mark.parametrize(("key", "values"), MISFITS.items(), ids=MISFITS)
def test_a_value_of_another_type_is_refused_with_its_key(folder, write_task, key, values):
    write_task(folder, "mine", [ROW], **values)
    assert f"The benchmark mine {'names data with a NUL' if key == 'NUL' else f'has a {key} that is no '}" in refusal(
        folder, "mine"
    )


@pytest.mark.parametrize("row", [None, "acc", {}, {"metric": 5}])
def test_a_metric_without_a_name_is_refused(folder, write_task, row):
    write_task(folder, "mine", [ROW], metric_list=[row])
    assert "The benchmark mine has a metric in metric_list without a name" in refusal(folder, "mine")


@pytest.mark.parametrize("form", ["pandas", "webdataset"])
def test_data_that_is_unpickled_is_refused_before_anything_is_computed(folder, write_task, form):
    (folder / "rows.pkl").write_bytes(b"")
    write_task(folder, "mine", [ROW], dataset_path=form, dataset_kwargs={"data_files": str(folder / "rows.pkl")})
    assert f"The benchmark mine reads {form} files, which are unpickled" in refusal(folder, "mine")


@pytest.mark.parametrize("members", [[5], [["good"]], [None]])
def test_members_of_a_group_are_names(folder, write_yaml, members):
    write_yaml(folder, "group", {"group": "many", "task": members})
    assert "has a member that is no name" in refusal(folder, "many")


@pytest.mark.parametrize("values", [{"task": 5}, {"task": "x", "tag": ["a", 1]}, {"group": 1.5, "task": []}])
def test_a_name_that_yaml_reads_as_a_number_is_refused(folder, write_yaml, values):
    write_yaml(folder, "number", values)
    assert "that is no text" in refusal(folder, "good")


def test_every_task_of_lm_eval_that_a_suite_names_fits():
    for name in ("arc_easy", "hellaswag", "lambada_openai", "piqa", "winogrande", "gsm8k"):
        manager = tasks.find_tasks(EvaluationSpec(tasks=(name,)))
        refuse_misfit(name, manager.task_index[name].cfg)


@pytest.mark.parametrize(
    "changes",
    [
        {"doc_to_text": "{{ question.lost() }}"},
        {"doc_to_text": "{{ question"},
        {"doc_to_choice": "{{ 1 / 0 }}"},
        {"doc_to_target": "{{ lost.lost }}"},
        {"metric_list": [{"metric": "lost"}]},
        {"output_type": "lost"},
        {"filter_list": [{"name": "x", "filter": [{"function": "lost"}]}]},
        {"lost": 5},
        {"description": "{{"},
    ],
    ids=str,
)
def test_what_a_task_makes_of_its_rows_is_one_error(
    folder, write_task, base_folder, quiet_reporter, monkeypatch, changes
):
    def nowhere(name):
        raise FileNotFoundError(name)

    # lm-eval looks for metrics that it lacks on the Hub.
    monkeypatch.setattr("evaluate.load", nowhere)
    write_task(folder, "mine", [ROW], **changes)
    asked = {"spec": spec(folder, "mine"), "seed": 0, "device": "cpu", "dtype": "auto", "reporter": quiet_reporter}
    with pytest.raises(EvaluationError, match=r"[Tt]he benchmark mine"):
        harness.run(harness.ModelFolder(base_folder), harness.ModelFolder(base_folder), **asked)
