"""A run that was stopped goes on where it was, and never with a result that belongs to something else."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from hubprune.core import files
from hubprune.core.artifacts import BenchmarkComparison, Check, Margin
from hubprune.core.errors import RecipeError
from hubprune.core.files import StageStore, key_of, work_folder
from hubprune.core.recipe import DropSpec, Recipe, parse

RECIPE = {
    "base": {"repo_id": "acme/base"}, "drop": {"attn_drop": 3},
    "calibration": {"name": "mine", "subsets": [{"dataset": "acme/texts", "weight": 1}]},
}  # fmt: skip


def test_a_store_that_is_opened_sweeps_up_after_processes_that_were_killed(tmp_path, monkeypatch):
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "getpid", lambda: process.pid)
        left = [files.scratch_prefix(name) for name in ("load", "hubprune-fresh", "report.json")]
    places = [tmp_path / "work", tmp_path / "work" / "checkpoints", tmp_path / "tmp"]
    for place in places:
        for name in left:
            (place / name).mkdir(parents=True)
        (place / f"{files.scratch_prefix('load')}x").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    StageStore(tmp_path / "work")
    for place in places:
        assert [path.name for path in place.glob(".*")] == [f"{files.scratch_prefix('load')}x"]


@pytest.fixture
def run(tmp_path):
    """Run a stage in a store of its own, as another process would; tell how often it was computed."""
    computed = []

    def once(key="k", *, stage="scores", name="first", kind=Check, **options):
        reused = []
        store = StageStore(tmp_path, on_reuse=reused.append)

        def compute():
            computed.append(name)
            return Check(name=name, passed=True, detail="")

        value = store.run(stage, key, kind, compute, **options)
        return value, reused

    once.computed = computed
    return once


def test_a_result_is_kept_for_the_next_run(run):
    first, reused = run(name="first")
    assert reused == []
    again, reused = run(name="second")
    assert again == first
    assert reused == ["scores"]
    assert run.computed == ["first"]


def test_the_seconds_of_the_run_that_computed_it_are_kept(tmp_path, monkeypatch):
    times = iter([10.0, 13.5])
    monkeypatch.setattr(files.time, "monotonic", lambda: next(times))
    for _ in range(2):
        store = StageStore(tmp_path)
        store.run("scores", "k", Check, lambda: Check(name="a", passed=True, detail=""))
        assert store.seconds == {"scores": 3.5}


@pytest.mark.parametrize("other", [{"key": "other"}, {"stage": "benchmarks"}])
def test_another_key_or_stage_is_computed_anew(run, other):
    run(name="first")
    assert run(name="second", **other)[0].name == "second"
    assert run(name="third")[0].name == "first"


BROKEN = {
    "cut off": lambda text: text[:20],
    "empty": lambda text: "",
    "list": lambda text: "[]",
    "no value": lambda text: json.dumps({"seconds": 1}),
    "no seconds": lambda text: json.dumps({"value": json.loads(text)["value"]}),
    "seconds are text": lambda text: text.replace('"seconds": 0.0', '"seconds": "soon"'),
    "deep": lambda text: "[" * 100_000,
    "deep and closed": lambda text: "[" * 100_000 + "]" * 100_000,
    "another name": lambda text: text.replace("first", "worst"),
    "other seconds": lambda text: text.replace("0.0", "0.5"),
    "another digest": lambda text: re.sub("[0-9a-f]{64}", "0" * 64, text),
    "digest of another type": lambda text: re.sub('"[0-9a-f]{64}"', "[1]", text),
    "half a surrogate pair": lambda text: text.replace("first", "\\ud800"),
    "unknown field": lambda text: text.replace('"detail"', '"details"'),
    "other type": lambda text: text.replace("true", "[1]"),
    "null": lambda text: "null",
}


@pytest.mark.parametrize("damage", BROKEN.values(), ids=BROKEN)
def test_a_result_that_cannot_be_read_is_computed_anew_and_replaced(run, tmp_path, damage):
    run(name="first")
    (path,) = (tmp_path / "stages").iterdir()
    before, warned = path.read_text(), []
    path.write_text(damage(before))
    assert path.read_text() != before
    assert not StageStore(tmp_path).has("scores", "k")
    store = StageStore(tmp_path, warn=warned.append)
    assert store.run("scores", "k", Check, lambda: Check(name="second", passed=True, detail="")).name == "second"
    assert warned == [f"scores: what an earlier run kept in {path} is not as it was written, and is computed again"]
    assert run(name="third")[0].name == "second"


def test_a_folder_in_the_place_of_a_result_is_told_before_it_is_computed(run, tmp_path):
    (tmp_path / "stages" / "scores-k.json").mkdir(parents=True)
    with pytest.raises(RecipeError, match=r"scores-k.json is a folder, and a file belongs there"):
        run()
    assert run.computed == []


def test_a_file_in_the_place_of_the_folder_of_results_is_told_at_once(tmp_path):
    (tmp_path / "stages").write_text("")
    with pytest.raises(RecipeError, match=r"Cannot write to .*stages: File exists"):
        StageStore(tmp_path)


def test_a_result_that_is_no_text_is_computed_anew(run, tmp_path):
    run(name="first")
    (path,) = (tmp_path / "stages").iterdir()
    path.write_bytes(b"\xff\xfe\x00")
    assert run(name="second")[0].name == "second"


def test_a_result_of_another_shape_is_computed_anew(run):
    run(name="first")
    assert run(name="second", kind=Margin)[0].name == "second"


def test_a_result_whose_files_are_gone_is_computed_anew(run):
    run(name="first")
    assert run(name="second", valid=lambda value: value.name == "first")[0].name == "first"
    value, reused = run(name="third", valid=lambda value: False)
    assert value.name == "third"
    assert reused == []


def test_a_stage_that_fails_keeps_nothing(tmp_path):
    def fail():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        StageStore(tmp_path).run("scores", "k", Check, fail)
    assert list(tmp_path.rglob("*.json")) == []


def test_a_key_depends_on_every_input_and_on_the_version_and_on_nothing_else(monkeypatch):
    drop = DropSpec(attn_drop=3)
    inputs = ["acme/base", "a" * 40, drop, (1, None), {"b": 1, "a": Path("x")}]
    key = key_of(*inputs)
    assert key == key_of("acme/base", "a" * 40, DropSpec(attn_drop=3), [1, None], {"a": Path("x"), "b": 1})
    others = [
        ["acme/base2", *inputs[1:]],
        [*inputs[:2], DropSpec(attn_drop=3, protect=(0,)), *inputs[3:]],
        [*inputs[:3], (1, 0), inputs[4]],
        [*inputs[:4], {"b": 1, "a": Path("y")}],
        inputs[:4],
        inputs[::-1],
    ]
    assert len({key, *(key_of(*other) for other in others)}) == 7
    assert len(key) == 16
    monkeypatch.setattr(files, "__version__", "99")
    assert key_of(*inputs) != key


def test_the_work_folder_can_be_chosen(monkeypatch, tmp_path):
    monkeypatch.setenv("HUBPRUNE_HOME", str(tmp_path))
    assert work_folder() == tmp_path
    monkeypatch.delenv("HUBPRUNE_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert work_folder().name == "hubprune"


def test_what_a_run_elsewhere_offers_is_taken_where_nothing_is_kept_and_only_under_its_key(tmp_path):
    def named(name):
        return Check(name=name, passed=True, detail="")

    taken = []
    store = StageStore(tmp_path, on_reuse=lambda stage: taken.append(f"kept {stage}"))
    store.offer("a", "key", named("7"), seconds=2.5, on_take=taken.append)
    assert store.offers("a", "key")
    assert store.run("a", "other", Check, lambda: named("1")).name == "1"
    assert store.run("a", "key", Check, lambda: named("1")).name == "7"
    assert (store.keys, store.seconds["a"], taken) == ({"a": "key"}, 2.5, ["a"])
    assert store.run("a", "key", Check, lambda: named("1"), valid=lambda v: v.name == "1").name == "1"
    assert not store.offers("a", "key")
    assert store.run("a", "key", Check, lambda: named("2")).name == "1"
    assert taken == ["a", "kept a"]


def test_benchmarks_with_other_examples_are_other_benchmarks(tmp_path, monkeypatch):
    from hubprune.evaluation import harness
    from hubprune.workflows.publish import stages

    measured = []

    def measure(*folders, spec, **options):
        measured.append(dict(spec.num_fewshot))
        return BenchmarkComparison(
            tasks=(), limit=None, batch_size=1, dtype="float32", device="cpu", seed=0, lm_eval="0", seconds=0,
        )  # fmt: skip

    monkeypatch.setattr(harness, "compare", measure)
    for shots in (0, 5, 5):
        recipe = parse(Recipe, {**RECIPE, "evaluation": {"tasks": ["mmlu"], "num_fewshot": shots}})
        run = SimpleNamespace(
            recipe=recipe, circumstances="here", dtype="float32", store=StageStore(tmp_path), reporter=None,
            task_texts={}, task_sources={}, runnable=SimpleNamespace(folder=tmp_path, own_code=False),
            identity=lambda *_: "base", answers_file=tmp_path / "answers.sqlite",
        )  # fmt: skip
        stages.benchmark(run, SimpleNamespace(content="plan", widths=None, layout="pruned"), tmp_path)
    assert measured == [{"mmlu": 0}, {"mmlu": 5}]
