"""Two processes give the answers of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from hubprune.evaluation import computing

TASKS = ("pets", "words", "answers")
SCRIPT = """
import json, os, sys
from pathlib import Path
from hubprune.core.console import Reporter
from hubprune.evaluation import computing, harness
from hubprune.core.devices import rank
from hubprune.core.recipe import EvaluationSpec

base, pruned, tasks, out = map(Path, sys.argv[1:5])
backend = sys.argv[5]
computed = {"batches": 0, "texts": 0, "plain": 0}

def counted(owner, name, what):
    original = getattr(owner, name)
    def count(self, *arguments):
        computed[what] += 1
        return original(self, *arguments)
    setattr(owner, name, count)

counted(computing.Scorer, "answer", "batches")
counted(computing.Models, "write", "texts")
counted(computing.Models, "plain", "plain")
if rank():
    computing.follow()
else:
    spec = EvaluationSpec(
        tasks=("pets", "words", "answers"), include_path=str(tasks), backend=backend, batch_size=2,
    )
    found = harness.run(
        harness.ModelFolder(base), harness.ModelFolder(pruned, own_code=True), spec=spec, seed=0, device="cpu",
        dtype="auto", reporter=Reporter(quiet=True), samples_folder=out / "samples",
    )
    (out / "found.json").write_text(found.model_dump_json())
    # Models that nobody closed must not keep the others from ending.
    computing.assemble(harness.load_folders, {"base": harness.ModelFolder(base)}, "cpu", "auto", None)
    computing.dismiss()
(out / f"computed-{rank()}.json").write_text(json.dumps(computed))
"""


@pytest.fixture
def run(base_folder, pruned_folder, task_folder, tmp_path):
    def start(name, *launcher, backend="shared"):
        out = tmp_path / name
        out.mkdir()
        (tmp_path / "script.py").write_text(SCRIPT)
        folders = [str(part) for part in (base_folder, pruned_folder, task_folder, out)]
        command = [sys.executable, *launcher, str(tmp_path / "script.py"), *folders, backend]
        environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        return out

    return start


def samples(out):
    rows = {
        (path.parent.name, path.stem, row["doc_id"]): row["filtered_resps"]
        for path in (out / "samples").rglob("*.jsonl")
        for row in map(json.loads, path.read_text().splitlines())
    }
    return {key: [(float(r[0]), str(r[1])) if isinstance(r, list) else r for r in found] for key, found in rows.items()}


@pytest.mark.parametrize("backend", ["shared", "hf"])
def test_two_processes_share_the_work_and_find_the_numbers_of_one(run, backend):
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    alone, two = run("alone", backend=backend), run("two", *launcher, backend=backend)
    expected, found = samples(alone), samples(two)
    assert expected.keys() == found.keys()
    for key, answers in expected.items():
        for one, other in zip(answers, found[key], strict=True):
            assert one == other if isinstance(one, str) else other[0] == pytest.approx(one[0], abs=1e-5)
    comparisons = [json.loads((out / "found.json").read_text()) for out in (alone, two)]
    assert [c["backend"] for c in comparisons] == [backend] * 2
    for one, other in zip(*(c["tasks"] for c in comparisons), strict=True):
        assert other["base"]["value"] == pytest.approx(one["base"]["value"], rel=1e-5)
        assert other["pruned"]["value"] == pytest.approx(one["pruned"]["value"], rel=1e-5)
    first, second = (json.loads((two / f"computed-{rank}.json").read_text()) for rank in (0, 1))
    assert second["texts"] == first["texts"] == 2
    if backend == "shared":
        assert abs(first["batches"] - second["batches"]) <= 2
        assert first["batches"] + second["batches"] == json.loads((alone / "computed-0.json").read_text())["batches"]


class Planned:
    """Models that would divide requests in their own way, and note what they are asked to answer."""

    def __init__(self, plan):
        self.own, self.answered = plan, []
        self.variants = self.language_models = {}

    def scorer(self, names):
        return self

    def plan(self, requests):
        return self.own

    def answer(self, rows, requests):
        self.answered.append(rows)
        return {"base": {}}


def test_all_processes_divide_requests_as_the_first_one_does_whatever_memory_they_see(monkeypatch):
    told, first, second = [], Planned([[1], [2], [3]]), Planned([[1, 2, 3]])
    monkeypatch.setattr(computing, "world_size", lambda: 2)
    monkeypatch.setattr(computing, "_tell", told.append)
    monkeypatch.setattr(computing, "_gather", lambda mine: [mine])
    monkeypatch.setattr(computing, "rank", lambda: 0)
    list(computing.Team(first).score(("base",), ()))
    monkeypatch.setattr(computing, "rank", lambda: 1)
    [(what, *order)] = told
    rounds = list(computing._rounds(second, *order))
    assert (what, len(rounds)) == ("score", 2)
    assert (first.answered, second.answered) == ([[1], [3]], [[2]])
