"""`hubprune sweep`: its numbers are those of written checkpoints, it can be stopped, and it loads the base once."""

import csv
import json
from pathlib import Path

import pytest
from little import leftovers

from hubprune.core.console import Reporter
from hubprune.core.files import StageStore
from hubprune.core.requests import SweepRequest
from hubprune.hub.session import HubSession
from hubprune.workflows.recipes import recipe_of
from hubprune.workflows.run import Run
from hubprune.workflows.sweep import sweep_run

SMALL = ("--calibration", "mix.yaml", "--include-path", "tasks", "--tasks", "little")


def points_of(folder):
    report = json.loads((folder / "sweep.json").read_text())
    return {(point["method"], point["count"]): point for point in report["points"]}, report


def test_a_sweep_has_the_numbers_of_the_written_checkpoints_and_writes_none(hubprune, files):
    (files / "other.txt").write_text("".join(f"A line of text, number {n}, that nobody scored on.\n" for n in range(9)))
    ended = hubprune(
        "sweep", "meta/tiny", *SMALL, "--method", "attn,mlp,block,joint", "--counts", "0:2", "--out", "swept",
        "--perplexity", "other.txt",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert not (files / "work" / "checkpoints").exists()
    points, report = points_of(files / "swept")
    assert len(points) == 12
    assert {path.name for path in (files / "swept").iterdir()} >= {"sweep.json", "sweep.csv", "order-joint.svg"}
    assert len(list(csv.DictReader((files / "swept" / "sweep.csv").open()))) == 12
    assert report["perplexity_on"] == "9 documents of other.txt"
    assert "reloaded folder" in ended.out
    chosen = {"block": 1, "joint": 2}
    command = ("publish", "meta/tiny", *SMALL, "--dry-run")
    all_written = hubprune.each(
        *((*command, f"--{m}-drop", n, "--report", f"{m}.json", "--out", f"{m}-out") for m, n in chosen.items())
    )
    for (method, count), written in zip(chosen.items(), all_written, strict=True):
        assert written.code == 0, written.err
        found = json.loads((files / f"{method}.json").read_text())
        point = points[method, count]
        assert sorted([d["kind"], d["layer"]] for d in found["plan"]["dropped"]) == point["dropped"]
        assert found["checkpoint"]["parameters"] == point["parameters"]
        (row,) = found["benchmarks"]["tasks"]
        assert row["pruned"]["value"] == point["tasks"][0]["value"]
        assert 100 * row["base"]["value"] == points["attn", 0]["mean"]
        assert perplexity(files / f"{method}-out", files / "other.txt") == pytest.approx(point["perplexity"], rel=1e-12)


def perplexity(folder, file):
    from hubprune.evaluation import models
    from hubprune.evaluation.models import measure_perplexity

    model = models.load_model(folder, device="cpu", dtype="auto", trust_remote_code=True)
    rows = model.tokenizer(file.read_text().splitlines())["input_ids"]
    return measure_perplexity(model, rows, batch_size=8).perplexity


@pytest.fixture
def open_run(base_folder, tmp_path):
    """Make a run of a sweep in this process, without a Hub."""
    for name in ("scored", "held"):
        (tmp_path / f"{name}.txt").write_text("".join(f"The {name} text, number {n}.\n" for n in range(12)))

    def make(**changes):
        given = {
            "base": str(base_folder), "method": "attn,mlp", "counts": "0:2", "tasks": "none", "num_samples": 8,
            "calibration": str(tmp_path / "scored.txt"), "perplexity": str(tmp_path / "held.txt"),
            "perplexity_samples": None, "speed": False, "speed_depth": 16, "speed_rounds": 20, "max_loss": 1.0,
            "max_rise": 5.0, "out": None, **changes,
        }  # fmt: skip
        request = SweepRequest(**given)
        recipe = recipe_of(request, drop={"attn_drop": "1"})
        session = HubSession.open(endpoint=None)
        return Run(recipe, session, Reporter(quiet=True), StageStore(tmp_path / "work")), request

    return make


@pytest.fixture
def counted(monkeypatch):
    """Count loaded models and measured points; stop at the point whose number is in `stop`."""
    from hubprune.evaluation import models

    calls = {"loaded": 0, "measured": 0, "stop": None}
    load, measure = models.load_model, models.measure_perplexity

    def counted_load(*args, **kwargs):
        calls["loaded"] += 1
        return load(*args, **kwargs)

    def counted_measure(*args, **kwargs):
        calls["measured"] += 1
        if calls["measured"] == calls["stop"]:
            raise KeyboardInterrupt
        return measure(*args, **kwargs)

    monkeypatch.setattr(models, "load_model", counted_load)
    monkeypatch.setattr(models, "measure_perplexity", counted_measure)
    return calls


def test_a_sweep_that_is_stopped_goes_on_where_it_was_and_loads_the_base_once(open_run, counted, tmp_path):
    counted["stop"] = 3
    with pytest.raises(KeyboardInterrupt):
        sweep_run(*open_run())
    assert leftovers(tmp_path) == []
    counted.update(loaded=0, measured=0, stop=None)
    stopped = sweep_run(*open_run())
    # 0, attn 1, attn 2, mlp 1, mlp 2: the base is measured once for both methods, and two points were kept.
    assert (counted["loaded"], counted["measured"]) == (1, 3)
    counted.update(loaded=0, measured=0)
    assert sweep_run(*open_run()) == stopped
    assert (counted["loaded"], counted["measured"]) == (0, 0)
    more = sweep_run(*open_run(counts="0:3", method="attn"))
    assert (counted["loaded"], counted["measured"]) == (1, 1)
    assert more.points[:3] == stopped.points[:3]


def test_what_was_scored_on_is_left_out_of_the_perplexity(open_run, tmp_path):
    report = sweep_run(*open_run(perplexity=str(tmp_path / "scored.txt"), counts="0:1", method="attn"))
    assert report.perplexity_on == "4 documents of scored.txt"  # 12 there are, 8 were scored on


def test_speed_is_measured_in_rounds_against_the_base(open_run):
    report = sweep_run(*open_run(speed=True, method="block", counts="0,2"))
    assert report.points[0].speed is None
    speed = report.points[1].speed
    assert (speed.depth, speed.rounds) == (16, 20)
    assert 0 < speed.ratio.low <= speed.ratio.median <= speed.ratio.high
    assert report.points[1].sdr is None  # no benchmarks


REFUSED = [
    (("--counts", "0:4"), "Pass --counts 0:3 or less for --method attn."),
    (("--method", "head"), "Methods: attn, mlp, block, joint."),
    (("--counts", "0"), "drops nothing"),
    (("--counts", "0:2", "--tasks", "none"), "nothing to measure"),
    (("--counts", "0:2", "--perplexity", "absent.txt"), "absent.txt does not exist"),
    (("--counts", "0:2", "--out", "tasks"), "tasks exists already"),
]


def test_requests_that_cannot_be_are_refused_before_anything_is_downloaded(hubprune, files):
    found = hubprune.each(*(("sweep", "meta/tiny", *SMALL, *options) for options, _ in REFUSED))
    for (_, words), ended in zip(REFUSED, found, strict=True):
        assert ended.code == 2, ended.err
        assert words in " ".join(ended.err.split())
    assert not list((files / "hf").rglob("*.safetensors"))


def test_a_publish_looks_for_its_number_and_writes_it_into_the_recipe(publish, files, api):
    ended = publish(
        "--attn-drop", "auto", "--max-loss", "100", "--limit", "4", "--repo-id", "local/found", "--protect", "1"
    )
    assert ended.code == 0, ended.err
    assert "--attn-drop 3 chosen: with 3, " in ended.err  # of four layers, one is protected
    recipe = Path(api.hf_hub_download("local/found", "recipe.yaml", local_dir=files / "back"))
    assert "attn_drop: 3\n" in recipe.read_text()
