"""What the code of a task needs is looked for beforehand, and nothing of it is run."""

from __future__ import annotations

import pytest

from hubprune.core.errors import EvaluationError, MissingDependencyError
from hubprune.core.recipe import EvaluationSpec
from hubprune.evaluation import harness, packages

ROWS = [{"question": "What barks?", "choices": ["a dog", "a cat"], "answer": 0}]


@pytest.fixture
def own_task(tmp_path, write_task):
    """Write a task whose code is given, and return what is said of it before anything is computed."""

    def check(code, **files):
        write_task(tmp_path, "own", ROWS, process_docs="DOCS")
        text = (tmp_path / "own.yaml").read_text()
        (tmp_path / "own.yaml").write_text(text.replace("DOCS", "!function own_code.docs"))
        (tmp_path / "own_code.py").write_text(code)
        for name, content in files.items():
            (tmp_path / f"{name}.py").write_text(content)
        harness.check_tasks(EvaluationSpec(tasks=("own",), include_path=str(tmp_path)))

    return check


def without(monkeypatch, *names):
    """Let some packages be missing."""
    found = packages.find_spec
    monkeypatch.setattr(packages, "find_spec", lambda name: None if name in names else found(name))


def test_a_stock_task_that_lacks_packages_is_told_with_the_extra_that_has_them(monkeypatch):
    without(monkeypatch, "langdetect", "immutabledict")
    with pytest.raises(MissingDependencyError) as caught:
        harness.check_tasks(EvaluationSpec(tasks=("ifeval",)))
    assert caught.value.message == "The benchmark ifeval needs what is not installed: immutabledict, langdetect."
    assert caught.value.hint == 'pip install "lm-eval[ifeval]", or leave ifeval out.'


def test_data_that_a_task_would_download_by_itself_is_asked_for_beforehand(monkeypatch, tmp_path):
    there = packages.find_spec
    monkeypatch.setattr(packages, "find_spec", lambda name: there(name) or there("json"))
    monkeypatch.setattr("nltk.data.path", [str(tmp_path)])
    with pytest.raises(MissingDependencyError, match="would download it by itself") as caught:
        harness.check_tasks(EvaluationSpec(tasks=("ifeval",)))
    assert "python -m nltk.downloader punkt_tab" in caught.value.hint


def test_what_is_imported_by_way_of_another_file_is_found_too_and_nothing_is_run(own_task):
    with pytest.raises(MissingDependencyError, match=r"own needs what is not installed: no_such_package\."):
        own_task("from .more_code import x\n1 / 0\n", more_code="import no_such_package.parts\n1 / 0\n")


def test_a_module_that_an_installed_package_no_longer_has_is_told(own_task):
    with pytest.raises(MissingDependencyError, match=r"transformers\.no_such_part\.metrics, which transformers 5"):
        own_task("import transformers.no_such_part.metrics as metrics\n")
    own_task("import transformers.utils.generic\nfrom importlib import metadata\nimport os.path\n")


def test_a_task_that_is_a_class_is_known_by_the_data_set_of_its_class(monkeypatch):
    asked = []
    monkeypatch.setattr("hubprune.evaluation.harness.state_of", lambda source: asked.append(source) or "here")
    assert harness.check_tasks(EvaluationSpec(tasks=("squad_completion",))) == {"hazyresearch/based-squad": "here"}
    assert [(source.task, source.configs) for source in asked] == [("squad_completion", ("default",))]


def test_a_model_without_room_for_what_a_task_lets_it_write_is_refused_beforehand(tmp_path, write_task):
    asked = {"output_type": "generate_until", "doc_to_choice": None}
    write_task(tmp_path, "essay", ROWS, **asked, generation_kwargs={"max_gen_toks": 64})
    write_task(tmp_path, "usual", ROWS, **asked)
    for task, positions in (("essay", 64), ("usual", 256)):
        spec = EvaluationSpec(tasks=(task,), include_path=str(tmp_path))
        said = f"{task} lets the model write {positions} tokens, and it has {positions} positions in all"
        with pytest.raises(EvaluationError, match=said):
            harness.check_tasks(spec, positions=positions)
        harness.check_tasks(spec, positions=positions + 1)


def test_what_a_file_can_do_without_is_not_asked_for(own_task):
    own_task(
        "try:\n    import no_such_package\nexcept ImportError:\n    no_such_package = None\n"
        "def docs(rows):\n    import another_missing\n    return rows\n"
    )


def test_a_file_that_gives_up_without_a_package_is_told_with_its_own_package(own_task):
    with pytest.raises(MissingDependencyError) as caught:
        own_task("try:\n    import no_such_package\nexcept ImportError:\n    raise ImportError('!')\n")
    assert caught.value.hint == "pip install no_such_package, or leave own out."
