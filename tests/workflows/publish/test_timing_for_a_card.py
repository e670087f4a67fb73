"""A publish times its result once per machine and request, and names it as it is published."""

from __future__ import annotations

from types import SimpleNamespace

import made
import pytest

from hubprune.core.console import Reporter
from hubprune.core.errors import EvaluationError
from hubprune.core.files import StageStore
from hubprune.workflows.publish import stages as publishing


def stub(store, **changes):
    """What of a run a timing reads."""
    values = {
        "store": store, "recipe": made.recipe(), "environment": made.environment(), "reporter": Reporter(quiet=True),
        "dtype": "float32", "circumstances": ("base", "machine"), "downloaded": made.base(), "runnable": None,
        **changes,
    }  # fmt: skip
    return SimpleNamespace(**values)


@pytest.fixture
def timed(tmp_path, monkeypatch):
    """Time a result of a stub, and list what was asked of the clock."""
    asked = []

    def time_pair(base, pruned, *, request, benchmarks, **_):
        asked.append((base.name, pruned.name, request.depths, benchmarks))
        return made.speed(pruned=pruned.name, benchmarks=benchmarks)

    monkeypatch.setattr(publishing, "time_pair", time_pair)
    monkeypatch.setattr(publishing, "read_config", lambda _: {})
    run = stub(StageStore(tmp_path / "work"))

    def time(run=run, **changes):
        values = {"plan": made.plan(), "repo_id": "me/a", "benchmarks": made.benchmarks(), **changes}
        return publishing.time_result(run, values.pop("plan"), tmp_path, **values)

    return SimpleNamespace(run=run, time=time, asked=asked)


def test_the_result_is_timed_behind_a_prompt_and_compared_with_what_the_benchmarks_lost(timed):
    report = timed.time()
    ((name, pruned, depths, change),) = timed.asked
    assert (name, pruned, depths) == ("meta-llama/Llama-3.2-3B", "me/a", (512,))
    assert change.points == pytest.approx(made.benchmarks().mean_points.value)
    assert report.pruned == "me/a"
    assert timed.time(benchmarks=None).benchmarks is None


def test_what_was_timed_here_is_taken_again_under_whatever_name(timed):
    first, again = timed.time(), timed.time(repo_id="me/b")
    assert len(timed.asked) == 1
    assert again == first.model_copy(update={"pruned": "me/b"})


@pytest.mark.parametrize(
    "change",
    [
        {"circumstances": ("base", "another machine")},
        {"environment": made.environment().model_copy(update={"threads": 1})},
        {"recipe": made.recipe(seed=1)},
    ],
)
def test_another_machine_or_request_is_timed_anew(timed, change):
    timed.time()
    timed.time(stub(timed.run.store, **change))
    assert len(timed.asked) == 2


def test_another_plan_or_benchmark_is_timed_anew(timed):
    timed.time()
    timed.time(plan=made.plan_by_hand())
    timed.time(benchmarks=None)
    assert len(timed.asked) == 3


@pytest.mark.parametrize(("wanted", "device", "times"), [
    ("if it fits", "cuda:0", 1), ("if it fits", "cpu", 0), ("now", "cpu", 1), ("never", "cuda:0", 0),
])  # fmt: skip
def test_nobody_has_to_ask_for_a_timing_on_a_gpu(timed, tmp_path, wanted, device, times):
    run = stub(StageStore(tmp_path / "work"), device=device)
    found = publishing.find_speed(run, made.plan(), tmp_path, wanted, repo_id="me/a", benchmarks=None)
    assert len(timed.asked) == times
    assert (found is not None) == bool(times)


def test_where_memory_is_too_small_only_who_asked_is_stopped(timed, tmp_path, monkeypatch):
    def too_small(*_, **__):
        raise EvaluationError("The memory of cuda:0 is too small.")

    monkeypatch.setattr(publishing, "time_pair", too_small)
    run = stub(StageStore(tmp_path / "work"), device="cuda:0")
    asked = {"repo_id": "me/a", "benchmarks": None}
    assert publishing.find_speed(run, made.plan(), tmp_path, "if it fits", **asked) is None
    assert "says nothing of speed" in run.reporter.warned[0]
    with pytest.raises(EvaluationError):
        publishing.find_speed(run, made.plan(), tmp_path, "now", **asked)
