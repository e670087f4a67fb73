from __future__ import annotations

import pytest

from hubprune.core.errors import EvaluationError
from hubprune.core.recipe import EvaluationSpec
from hubprune.evaluation import tasks

ROW = {"question": "?", "choices": ["a", "b"], "answer": 0}


@pytest.fixture
def folder(tmp_path, write_task):
    """Two tasks of one's own in a folder, `leaf` below it, among what is nobody's business."""
    (tmp_path / "tasks" / "deep").mkdir(parents=True)
    write_task(tmp_path / "tasks", "plain", [ROW])
    write_task(tmp_path / "tasks" / "deep", "leaf", [ROW])
    (tmp_path / "tasks" / "notes.txt").write_text("private")
    (tmp_path / "tasks" / "broken.yaml").write_text("task: [")
    return tmp_path / "tasks"


def files(folder, *names):
    return tasks.task_files(EvaluationSpec(tasks=names, include_path=str(folder) if folder else None))


def test_without_a_folder_there_are_no_files():
    assert files(None, "piqa") == {}


def test_only_the_files_of_the_requested_tasks_are_named(folder):
    assert files(folder, "plain", "piqa") == {"plain.yaml": folder / "plain.yaml"}
    assert files(folder, "piqa") == files(folder) == {}


def test_a_folder_may_be_given_from_the_working_directory(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert files(".", "plain", "piqa") == {"plain.yaml": folder / "plain.yaml"}


def test_members_of_groups_and_tags_belong_to_them(folder, write_task, write_yaml):
    write_task(folder, "tagged", [ROW], tag="some")
    write_yaml(folder, "group", {"group": "group", "task": ["leaf", "some", "piqa"]})
    assert list(files(folder, "group")) == ["group.yaml", "deep/leaf.yaml", "tagged.yaml"]


def test_included_files_belong_to_a_task(folder, write_task, write_yaml):
    write_yaml(folder, "other", {"metadata": {"version": 3.0}})
    write_yaml(folder, "shared", {"num_fewshot": 1})
    (folder / "deep" / "_template").write_text("include: ../shared.yaml")
    write_task(folder / "deep", "leaf", [ROW], include=["_template", "../other.yaml"])
    assert sorted(files(folder, "leaf")) == ["deep/_template", "deep/leaf.yaml", "other.yaml", "shared.yaml"]


@pytest.mark.parametrize("link", [False, True])
def test_files_outside_of_the_folder_are_refused(folder, write_task, write_yaml, link):
    write_yaml(folder.parent, "secret", {"num_fewshot": 1})
    if link:
        (folder / "inside.yaml").symlink_to(folder.parent / "secret.yaml")
    write_task(folder, "leaky", [ROW], include="inside.yaml" if link else "../secret.yaml")
    with pytest.raises(EvaluationError, match=r"secret\.yaml lies outside of"):
        files(folder, "leaky")


def test_a_task_that_is_a_link_to_elsewhere_is_refused(folder, write_task):
    write_task(folder.parent, "linked", [ROW])
    (folder / "linked.yaml").symlink_to(folder.parent / "linked.yaml")
    with pytest.raises(EvaluationError, match=r"linked\.yaml lies outside of"):
        files(folder, "linked")


def test_an_absolute_include_is_refused(folder, write_task, write_yaml):
    write_yaml(folder, "shared", {"num_fewshot": 1})
    write_task(folder, "fixed", [ROW], include=str(folder / "shared.yaml"))
    with pytest.raises(EvaluationError, match="a path of this machine alone"):
        files(folder, "fixed")


@pytest.mark.parametrize("tag", ["!function", "!<!function>"])
def test_python_functions_are_refused(folder, tag):
    with (folder / "plain.yaml").open("a") as file:
        file.write(f"process_docs: {tag} code.clean\n")
    with pytest.raises(EvaluationError, match="calls Python functions") as caught:
        files(folder, "plain")
    assert "!function" in caught.value.hint
    assert files(folder, "leaf")
