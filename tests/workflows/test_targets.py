"""Targets instead of numbers: the plan reaches them, one pass serves all of them, and what cannot be is refused."""

from __future__ import annotations

import json
from pathlib import Path

import bases
import pytest
from little import write_base

import hubprune
from hubprune.core.errors import HubpruneError, RecipeError
from hubprune.core.weights import open_weights
from hubprune.evaluation import speed
from hubprune.pruning.leave_one_out import LeaveOneOut
from hubprune.workflows import reachable

TEXTS = {"calibration": "texts.txt", "num_samples": 8}
CHEAP = {**TEXTS, "quiet": True}


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """Work and results of a test stay with it."""
    monkeypatch.setenv("HUBPRUNE_HOME", str(tmp_path / "work"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts.txt").write_text("".join(f"Text number {n} is about birds.\n" for n in range(8)))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return str(write_base(tmp_path_factory.mktemp("base")))


@pytest.fixture
def runs(monkeypatch):
    """How many layers each pass ran, as it ends."""
    seen, run = [], LeaveOneOut.run

    def counted(self, *arguments, **options):
        found = run(self, *arguments, **options)
        seen.append(self.layer_runs)
        return found

    monkeypatch.setattr(LeaveOneOut, "run", counted)
    return seen


def test_a_target_of_the_cache_is_reached_by_attentions_alone_and_its_loss_is_measured(base, tmp_path, capsys):
    hubprune.prune(base, target={"kv": "-30%"}, out="pruned", **TEXTS)
    config = json.loads((tmp_path / "pruned" / "config.json").read_text())
    assert (len(config["dropped_attn_layers"]), config["dropped_mlp_layers"]) == (2, [])  # of four
    told = capsys.readouterr().err
    assert "kv: -50.0%, asked for -30%" in told
    assert "predicted by adding up" in told
    assert "measured, from" in told


def test_one_pass_over_the_base_serves_the_frontier_and_every_target(base, runs):
    drawn = hubprune.score(base, frontier="params", plot="pictures", **CHEAP)
    first = list(runs)
    assert len(first) == 1
    hubprune.prune(base, target="params=-20%", out="one", **CHEAP)
    hubprune.score(base, frontier="bytes", **CHEAP)
    more = runs[1:]
    assert [n for n in more if n > 4] == []  # what the plan as a whole loses is one run of each layer at most
    assert len(more) == 1
    saved = [point.saved for point in drawn.points]
    assert saved == sorted(saved)
    assert drawn.points[0].loss == 0


def test_several_targets_are_reached_at_once(base, tmp_path):
    hubprune.prune(base, target="params=-15%,kv=-25%", out="both", **CHEAP)
    folders = tmp_path / "both", Path(base)
    kept, whole = (sum(tensor.parameters for _, tensor in open_weights(folder)) for folder in folders)
    assert kept <= 0.85 * whole
    config = json.loads((tmp_path / "both" / "config.json").read_text())
    assert config["num_hidden_layers"] - len(config.get("dropped_attn_layers", ())) < 4


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"target": "params=-97%"}, "cannot be reached"),
        ({"target": "memory=900GB"}, "asks for nothing"),
        ({"target": "params=-90%,kv=-10%", "target_over": "attn"}, "cannot be reached"),
        ({"target": "kv=-30%", "attn_drop": 1}, "--target"),
        ({"target": "params=+10%"}, "params"),
        ({"target": "kv=-10%,kv=-20%"}, "kv"),
        ({"target": "parms=-10%"}, "params"),
        ({"target": "params=-10%", "target_over": "mlp", "layout": "nemotron-nas"}, "--layout nemotron-nas"),
    ],
)
def test_a_target_that_cannot_be_is_refused_before_anything_is_computed(asked, said, base, tmp_path, runs):
    with pytest.raises(HubpruneError) as raised:
        hubprune.prune(base, out="never", **asked, **CHEAP)
    assert said in str(raised.value)
    assert runs == []
    assert not (tmp_path / "never").exists()


def test_the_time_per_token_is_a_target_whose_table_is_measured_once(base, tmp_path, capsys, monkeypatch):
    really = speed.measure

    def measured(*models, **how):
        """Time both models, and say what a quiet machine would."""
        quiet = {"base_seconds": 1.0, "round_seconds": ((1.0, 1.0, 0.7),) * 20}
        return [row.model_copy(update=quiet) for row in really(*models, **how)]

    monkeypatch.setattr(speed, "measure", measured)
    hubprune.prune(base, target="latency=-10%", out="faster", **TEXTS)
    assert "latency: -" in (first := capsys.readouterr().err)
    assert "rounds in" in first
    hubprune.prune(base, joint_drop=1, metric="loss", per="latency", out="per", **TEXTS)
    assert "latency: taken from an earlier run" in capsys.readouterr().err


def test_a_base_that_does_not_fit_to_be_timed_is_refused_with_targets_that_need_no_time(base, tmp_path, monkeypatch):
    monkeypatch.setattr(reachable, "available_bytes", lambda: 1000)
    with pytest.raises(RecipeError, match=r"no table of latencies .* do not fit into memory .* Pass kv="):
        hubprune.prune(base, target="latency=-10%", out="never", **CHEAP)
    assert not (tmp_path / "never").exists()


def test_a_base_of_one_layer_has_nothing_to_time_or_to_spare(tmp_path):
    base = str(bases.write_base(tmp_path / "one", {**bases.LLAMA, "num_hidden_layers": 1}).folder)
    for target in ("latency=-10%", "kv=-10%"):
        with pytest.raises(HubpruneError):
            hubprune.prune(base, target=target, out="never", **CHEAP)


def test_what_looks_for_different_things_is_refused(base):
    for asked in ({"attn_drop": 2, "target": "kv=-30%"}, {"frontier": "kv", "target": "kv=-30%"}):
        with pytest.raises(RecipeError, match="look for different things"):
            hubprune.score(base, **asked, **CHEAP)


def test_what_only_gets_narrower_has_scores_to_show_too(base, tmp_path):
    found = hubprune.score(base, target="params=-8%", target_over="width", plot="pictures", **CHEAP)
    assert found.mean.kinds == ("mlp",)
    assert (tmp_path / "pictures" / "importance.png").is_file()
