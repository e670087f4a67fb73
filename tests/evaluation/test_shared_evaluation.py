"""The shared evaluation gives lm-eval's own numbers, notices where it does not, and goes on where it was stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from hubprune.core.errors import CheckpointError, EvaluationError
from hubprune.core.recipe import EvaluationSpec
from hubprune.evaluation import computing, harness, models
from hubprune.evaluation.computing import Scorer
from hubprune.evaluation.layer_tree import LayerTree
from hubprune.evaluation.requests import Memo, Request

TASKS = ("pets", "shown_pets", "words", "answers", "whole_texts", "without_context")


@pytest.fixture(scope="session")
def all_tasks(task_folder, write_task):
    """Every kind of request: choices, single answers, texts to come, whole documents, and no context."""
    documents = [{"text": "the cat sat on the mat " * 9, "ending": " once"}, {"text": "a dog", "ending": " twice more"}]
    rolling = {"output_type": "loglikelihood_rolling", "doc_to_choice": None, "doc_to_text": ""}
    word = {"metric": "word_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False}
    write_task(task_folder, "whole_texts", documents, **rolling, doc_to_target="{{text}}", metric_list=[word])
    single = {"output_type": "loglikelihood", "doc_to_choice": None, "doc_to_text": ""}
    accuracy = {"metric": "acc", "aggregation": "mean", "higher_is_better": True}
    write_task(task_folder, "without_context", documents, **single, doc_to_target="{{ending}}", metric_list=[accuracy])
    return task_folder


@pytest.fixture
def evaluate(base_folder, pruned_folder, all_tasks, reporter, tmp_path):
    """Run benchmarks; return the comparison and what every document got."""

    def run(
        *,
        tasks=TASKS,
        memo=None,
        samples="samples",
        identities=("base", "pruned"),
        pruned=pruned_folder,
        device="cpu",
        **spec,
    ):
        found = harness.run(
            harness.ModelFolder(base_folder, identity=identities[0]),
            harness.ModelFolder(pruned, own_code=True, identity=identities[1]),
            spec=EvaluationSpec(tasks=tasks, include_path=str(all_tasks), **spec),
            seed=0, device=device, dtype="auto", reporter=reporter, memo=memo,
            samples_folder=tmp_path / samples,
        )  # fmt: skip
        return found, rows_below(tmp_path / samples)

    return run


def rows_below(folder):
    return {
        (path.parent.name, path.stem, row["doc_id"]): row
        for path in folder.rglob("*.jsonl")
        for row in map(json.loads, path.read_text().splitlines())
    }


def numbers(row):
    """Log-likelihoods and greedy flags, or texts."""
    return [[float(r[0]), str(r[1])] if isinstance(r, list) else r for r in row["filtered_resps"]]


def assert_equal_rows(ours, theirs):
    assert ours.keys() == theirs.keys()
    for key in ours:
        for one, other in zip(numbers(ours[key]), numbers(theirs[key]), strict=True):
            if isinstance(one, list):
                assert one[0] == pytest.approx(other[0], abs=1e-4)
                assert one[1] == other[1]
            else:
                assert one == other if isinstance(one, str) else one == pytest.approx(other, rel=1e-5)


def test_every_answer_is_that_of_lm_evals_own_backend(evaluate):
    shared, ours = evaluate(samples="shared")
    plain, theirs = evaluate(samples="hf", backend="hf")
    assert_equal_rows(ours, theirs)
    assert (shared.backend, plain.backend, shared.fallback) == ("shared", "hf", None)
    assert plain.self_check is None
    for one, other in zip(shared.tasks, plain.tasks, strict=True):
        for model in ("base", "pruned"):
            assert getattr(one, model).value == pytest.approx(getattr(other, model).value, rel=1e-5)


def test_a_few_answers_are_compared_with_lm_evals_own(evaluate):
    check = evaluate()[0].self_check
    assert check.requests == 2
    assert check.largest_difference < 1e-4 < check.tolerance == 1e-3


def test_folders_run_the_layers_that_they_have_in_common_once(base_folder, pruned_folder):
    folders = {"base": harness.ModelFolder(base_folder), "pruned": harness.ModelFolder(pruned_folder, own_code=True)}
    models = harness.load_folders(folders, "cpu", "auto", None)
    request = Request.of([1, 2, 3], [4], max_length=9)
    scorer = models.scorer(("base", "pruned"))
    for rows in scorer.plan([request]):
        scorer.answer(rows, [request])
    assert scorer.tree.calls == 1 + 2  # the second layer is the one that was pruned


def test_half_precision_is_allowed_its_own_rounding(evaluate, base_folder, pruned_folder, all_tasks, reporter):
    folders = harness.ModelFolder(base_folder), harness.ModelFolder(pruned_folder, own_code=True)
    spec = EvaluationSpec(tasks=("pets",), include_path=str(all_tasks))
    found = harness.run(*folders, spec=spec, seed=0, device="cpu", dtype="bfloat16", reporter=reporter)
    assert found.self_check.tolerance == 0.5
    assert (found.backend, found.dtype) == ("shared", "bfloat16")


# ---- faults that must be noticed ---------------------------------------------------------------------------------


def test_a_layer_that_is_taken_for_another_is_noticed(evaluate, monkeypatch, reporter):
    """The base's second layer stands for the pruned one, whose attention is gone."""
    plain, theirs = evaluate(samples="hf", backend="hf", tasks=("pets",))
    monkeypatch.setattr(LayerTree, "_signs", [["same", "same"]] * 2)
    found, ours = evaluate(tasks=("pets",))
    assert found.backend == "hf"
    assert "log-likelihoods of the pruned model differed by" in found.fallback
    assert any("The shared evaluation is not used" in note for note in reporter.notes)
    assert_equal_rows(ours, theirs)
    assert found.tasks == plain.tasks


def test_a_mask_that_shows_other_endings_is_noticed(evaluate, monkeypatch):
    from hubprune.evaluation.layer_tree import Batch

    monkeypatch.setattr(Batch, "mask", lambda self, window: None)
    assert evaluate(tasks=("pets",))[0].backend == "hf"


def test_a_model_that_cannot_be_run_layer_by_layer_is_left_to_lm_eval(evaluate, monkeypatch):
    monkeypatch.setattr("hubprune.evaluation.panel.why_not", lambda variant: "it is quantized")
    found, _ = evaluate(tasks=("pets",))
    assert (found.backend, found.self_check) == ("hf", None)
    assert found.fallback == "the base model cannot be run layer by layer: it is quantized"


# ---- memory ------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_layers(monkeypatch):
    """Models of a kind that cannot be run layer by layer from their files."""

    def refuse(*arguments):
        raise CheckpointError("The base cannot be run layer by layer: it is quantized.")

    monkeypatch.setattr(harness, "open_folders", refuse)


def test_models_that_do_not_fit_together_are_measured_one_after_the_other(evaluate, monkeypatch, reporter, no_layers):
    together, ours = evaluate(samples="together")
    monkeypatch.setattr(models, "free_bytes", lambda device: 200_000)
    apart, theirs = evaluate(samples="apart")
    assert any("cannot be run layer by layer: it is quantized" in note for note in reporter.notes)
    assert any("one after the other is loaded" in note for note in reporter.notes)
    assert_equal_rows(ours, theirs)
    assert (apart.backend, apart.self_check.requests) == ("shared", together.self_check.requests)


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_a_model_larger_than_memory_is_spread_and_measured_by_lm_eval(evaluate, monkeypatch, no_layers, device):
    whole, theirs = evaluate(samples="whole", backend="hf")
    monkeypatch.setattr(models.memory, "available_bytes", lambda: 150_000)
    spread, ours = evaluate(samples="spread", device=device)
    assert spread.device == "cpu and disk"
    assert (spread.backend, whole.device) == ("hf", "cpu")
    assert spread.fallback == "the base model cannot be run layer by layer: it is spread over several devices"
    assert_equal_rows(ours, theirs)


def test_a_text_longer_than_the_model_is_refused(evaluate, all_tasks, write_task):
    long = {"output_type": "generate_until", "doc_to_choice": None, "generation_kwargs": {"max_gen_toks": 128}}
    exact = {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}
    write_task(all_tasks, "essays", [{"question": "Why?", "answer": "x"}], **long, metric_list=[exact])
    with pytest.raises(EvaluationError, match="lets the model write 128 tokens, and it has 128 positions"):
        evaluate(tasks=("essays",))


def test_prompts_that_leave_no_room_for_the_answer_are_told_once(evaluate, all_tasks, write_task, reporter, caplog):
    asked = {"output_type": "generate_until", "doc_to_choice": None, "generation_kwargs": {"max_gen_toks": 8}}
    exact = {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}
    rows = [{"question": "Why? " * n, "answer": "x"} for n in (2, 30)]
    write_task(all_tasks, "winded", rows, **asked, metric_list=[exact])
    evaluate(tasks=("winded",))
    told = [note for note in reporter.notes if "their beginning is cut off" in note]
    assert [note.split(" leave")[0] for note in told] == ["1 of 2 prompts for answers in words"] * 2  # base and pruned
    assert "truncat" not in caplog.text.lower()
    assert "longer than" not in caplog.text


# ---- the memory of answers ---------------------------------------------------------------------------------------


class Counter:
    """Counts the requests that are computed for each variant."""

    def __init__(self, monkeypatch):
        self.computed: dict[str, int] = {}
        original = Scorer.answer

        def answer(scorer, rows, requests):
            found = original(scorer, rows, requests)
            for name, some in found.items():
                self.computed[name] = self.computed.get(name, 0) + len(some)
            return found

        monkeypatch.setattr(Scorer, "answer", answer)

    def take(self):
        taken, self.computed = self.computed, {}
        return taken


def test_what_was_answered_is_not_computed_again(evaluate, tmp_path, monkeypatch):
    counter, memo = Counter(monkeypatch), tmp_path / "answers.sqlite"
    first, ours = evaluate(memo=memo, samples="first")
    assert counter.take()
    again, theirs = evaluate(memo=memo, samples="again")
    assert counter.take() == {}
    assert_equal_rows(ours, theirs)
    assert again.model_copy(update={"seconds": 0.0}) == first.model_copy(update={"seconds": 0.0})


def test_another_pruned_model_finds_the_bases_answers(evaluate, tmp_path, monkeypatch, copy_folder):
    counter, memo = Counter(monkeypatch), tmp_path / "answers.sqlite"
    evaluate(memo=memo, tasks=("pets",))
    counter.take()
    found, _ = evaluate(memo=memo, tasks=("pets",), pruned=copy_folder, identities=("base", "other"))
    assert counter.take() == {"pruned": 15 + found.self_check.requests}
    assert all(row.base == row.pruned for row in found.tasks)


def test_a_larger_limit_asks_only_for_more(evaluate, tmp_path, monkeypatch):
    counter, memo = Counter(monkeypatch), tmp_path / "answers.sqlite"
    evaluate(memo=memo, tasks=("pets",), limit=2)
    counter.take()
    evaluate(memo=memo, tasks=("pets", "more_pets"))
    checked = 2
    assert counter.take() == {"base": 9 + checked, "pruned": 9 + checked}


def test_texts_are_remembered_and_those_drawn_at_random_are_not(evaluate, tmp_path, monkeypatch, all_tasks, write_task):
    written = []
    original = computing.Models.write
    monkeypatch.setattr(
        computing.Models, "write", lambda self, name, prompts: written.append(name) or original(self, name, prompts)
    )
    drawn = {"until": ["\n"], "max_gen_toks": 4, "do_sample": True, "temperature": 1.0}
    exact = {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}
    rows = [{"question": "Why?", "answer": "x"}] * 3
    asked = {"output_type": "generate_until", "doc_to_choice": None, "metric_list": [exact]}
    write_task(all_tasks, "drawn", rows, **asked, generation_kwargs=drawn)
    for _ in range(2):
        evaluate(memo=tmp_path / "answers.sqlite", tasks=("answers",))
        evaluate(memo=tmp_path / "answers.sqlite", tasks=("drawn",))
    assert written.count("base") == 1 + 2


KILLED = """
import os, signal, sys
from hubprune.core.console import Reporter
from hubprune.evaluation import computing, harness
from hubprune.core.recipe import EvaluationSpec
from pathlib import Path

computing.CPU_SLOTS = 60
original, batches = computing.Scorer.answer, []

def answer(self, rows, requests):
    batches.append(rows)
    if len(batches) > 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(self, rows, requests)

computing.Scorer.answer = answer
base, pruned, tasks, memo = sys.argv[1:]
harness.run(
    harness.ModelFolder(Path(base), identity="base"),
    harness.ModelFolder(Path(pruned), own_code=True, identity="pruned"),
    spec=EvaluationSpec(tasks=("pets",), include_path=tasks), seed=0, device="cpu", dtype="auto",
    reporter=Reporter(quiet=True), memo=Path(memo),
)
"""


def test_a_run_that_was_killed_goes_on_with_what_is_missing(
    evaluate, base_folder, pruned_folder, all_tasks, tmp_path, monkeypatch
):
    memo = tmp_path / "answers.sqlite"
    command = [sys.executable, "-c", KILLED, *map(str, (base_folder, pruned_folder, all_tasks, memo))]
    done = subprocess.run(command, capture_output=True, env={**os.environ, "HF_HOME": str(tmp_path / "hf")})
    assert done.returncode == -signal.SIGKILL, done.stderr
    kept = known(memo)
    assert 0 < kept["base"] == kept["pruned"] < 15
    counter = Counter(monkeypatch)
    _, ours = evaluate(memo=memo, tasks=("pets",), samples="resumed")
    checked = 2
    assert counter.take() == {name: 15 - count + checked for name, count in kept.items()}
    _, theirs = evaluate(tasks=("pets",), samples="whole")
    assert_equal_rows(ours, theirs)


def known(path):
    rows = Memo(path)._db.execute("select model, count(*) from answers group by model").fetchall()
    return {model.split()[0]: count for model, count in rows}
