"""A base that was pruned before: numbering is its own, what it lacks stays away, and its code never runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from bases import LLAMA, plan, write_base
from safetensors.torch import load_file

from hubprune.core.architectures import architecture_of
from hubprune.core.artifacts import BaseCheckpoint, CalibrationRecord, CalibrationSource, DroppedSublayer, DropPlan
from hubprune.core.config import read_structure
from hubprune.core.errors import PlanError
from hubprune.core.specs import DropSpec
from hubprune.pruning import importance, loading, verify
from hubprune.pruning.calibration import CalibrationSet, Document
from hubprune.pruning.checkpoint import take_inventory, write_checkpoint
from hubprune.pruning.layouts import make_runnable
from hubprune.pruning.selection import Shape, check_request, make_plan

SERVED = {**LLAMA, "intermediate_size": 256, "hidden_size": 64}
ABSENT = (("attn", 1), ("attn", 3), ("mlp", 2))
ONCE = Shape(num_hidden_layers=5, name="once", absent=ABSENT)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("original") / "base", SERVED)


def pruned(original, folder, layout="pruned", *, attn=(1, 3), mlp=(2,)):
    """The original, pruned once, as a base."""
    folder.mkdir()
    write_checkpoint(original, plan(5, attn=attn, mlp=mlp, layout=layout), folder, advance=lambda _: None)
    config = json.loads((folder / "config.json").read_text())
    return BaseCheckpoint(name="once", commit=None, folder=str(folder), config=config, files=())


def second_plan(base, *, attn=(), mlp=(), layout="pruned"):
    dropped = [DroppedSublayer(kind="attn", layer=i) for i in attn] + [
        DroppedSublayer(kind="mlp", layer=i) for i in mlp
    ]
    return DropPlan(
        selected_by="hand",
        num_hidden_layers=base.num_hidden_layers,
        dropped=tuple(dropped),
        absent=read_structure(base.config).absences,
        layout=layout,
    )


def write(base, drop, folder):
    folder.mkdir()
    write_checkpoint(base, drop, folder, advance=lambda _: None)
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("layout", ["pruned", "nemotron-nas"])
def test_pruning_twice_is_pruning_once_with_both(original, tmp_path, layout):
    base = pruned(original, tmp_path / "once", layout)
    config = write(base, second_plan(base, attn=[4], layout=layout), tmp_path / "twice")
    at_once = plan(5, attn=[1, 3, 4], mlp=[2], layout=layout)
    assert {**config, "hubprune": None} == {**write(original, at_once, tmp_path / "both"), "hubprune": None}
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("twice", "both"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert config["hubprune"]["dropped_attn_layers_of_base"] == [4]
    assert verify.plan_of(config).sublayers == (("attn", 4),)
    assert verify.plan_of(config).absent_layers == {"attn": (1, 3), "mlp": (2,)}


def test_a_layer_that_loses_its_last_sublayer_goes_and_the_rest_moves_up(original, tmp_path):
    base = pruned(original, tmp_path / "once")
    config = write(base, second_plan(base, mlp=[1], attn=[4]), tmp_path / "twice")
    # Of layers 0 1 2 3 4, layer 1 is empty now: 2 3 4 become 1 2 3.
    assert config["num_hidden_layers"] == 4
    assert (config["dropped_attn_layers"], config["dropped_mlp_layers"]) == ([2, 3], [1])
    assert config["mlp_intermediate_sizes"] == [256, 0, 256, 256]


def test_filling_up_the_holes_ends_in_a_stock_model(original, tmp_path):
    base = pruned(original, tmp_path / "once", "nemotron-nas")
    config = write(base, second_plan(base, mlp=[1, 3], attn=[2], layout="stock"), tmp_path / "twice")
    stock = {**SERVED, "num_hidden_layers": 2, "hubprune": config["hubprune"], "tokenizer_class": None}
    assert {**config, "tokenizer_class": None} == stock
    assert not list((tmp_path / "twice").glob("*.py"))


@pytest.mark.parametrize("layout", ["pruned", "nemotron-nas"])
def test_verification_compares_with_the_pruned_base(monkeypatch, original, tmp_path, layout):
    monkeypatch.setattr(verify, "_in_fresh_process", lambda action, request, answer, **_: loading.compare(request))
    base = pruned(original, tmp_path / "once", layout)
    drop = second_plan(base, attn=[0], mlp=[4])
    write(base, drop, tmp_path / "twice")
    runnable = make_runnable(base, tmp_path / "runnable")
    architecture = architecture_of(base.config)
    seen = verify.verify(runnable, tmp_path / "twice", plan=drop, config=base.config, architecture=architecture)
    assert [check.name for check in seen.checks if not check.passed] == []
    inventory = take_inventory(
        runnable.weights(), tmp_path / "twice", plan=drop, config=base.config, architecture=architecture,
        advance=lambda _: None,
    )  # fmt: skip
    per_layer = 2 * 2 * 16 * 4  # keys and values of two heads of size 16, in float32
    assert (inventory.base_kv_bytes_per_token, inventory.kv_bytes_per_token) == (3 * per_layer, 2 * per_layer)


def test_only_code_of_ours_is_in_a_folder_that_is_run(original, tmp_path):
    base = pruned(original, tmp_path / "once")
    (tmp_path / "once" / "modeling_pruned_llama.py").write_text("raise SystemExit('foreign code')")
    (tmp_path / "once" / "evil.py").write_text("raise SystemExit('foreign code')")
    runnable = make_runnable(base, tmp_path / "runnable")
    assert runnable.own_code
    assert [path.name for path in runnable.folder.rglob("*.py")] == ["modeling_pruned_llama.py"]
    assert "foreign" not in (runnable.folder / "modeling_pruned_llama.py").read_text()
    assert (runnable.folder / "model.safetensors").resolve() == tmp_path / "once" / "model.safetensors"


def test_a_runnable_folder_is_made_again_when_its_weights_are_gone(original, tmp_path):
    base = pruned(original, tmp_path / "once")
    make_runnable(base, tmp_path / "runnable")
    (tmp_path / "once").rename(tmp_path / "moved")
    again = make_runnable(base.model_copy(update={"folder": str(tmp_path / "moved")}), tmp_path / "runnable")
    assert (again.folder / "model.safetensors").exists()


def test_a_stock_base_is_taken_as_it_is(original, tmp_path):
    runnable = make_runnable(original, tmp_path / "runnable")
    assert (runnable.folder, runnable.own_code) == (Path(original.folder), False)
    assert not (tmp_path / "runnable").exists()


def test_what_a_base_lacks_scores_zero_and_is_never_chosen(reporter, original, tmp_path):
    base = pruned(original, tmp_path / "once")
    runnable = make_runnable(base, tmp_path / "runnable")
    documents = tuple(Document(source=0, ids=tuple(range(start, start + 12))) for start in (3, 40, 90))
    source = CalibrationSource(
        dataset="own", config=None, split="train", commit=None, weight=1.0, documents=3, tokens=36
    )
    record = CalibrationRecord(
        mix="own", sources=(source,), max_tokens=64, seed=0, shuffle_buffer=1, token_sha256="0" * 64
    )
    how = importance.Scoring(own_code=True, architecture=architecture_of(base.config), batch_size=2)
    scores = importance.score(runnable.folder, CalibrationSet(documents, record), how, reporter=reporter)
    assert [layer for layer in range(5) if scores.mean.attn[layer] == 0] == [1, 3]
    assert [layer for layer in range(5) if scores.mean.mlp[layer] == 0] == [2]
    made = make_plan(DropSpec(attn_drop=2), scores, ONCE)
    present = sorted((0, 2, 4), key=lambda layer: scores.mean.attn[layer])
    assert made.layers("attn") == tuple(sorted(present[:2]))
    assert [dropped.rank for dropped in made.dropped] == [1, 2]


REQUESTS = {
    "too many": (DropSpec(attn_drop=3), "has 5 layers, 3 of them with attention", "Pass --attn-drop 2 or less."),
    "protected": (DropSpec(attn_drop=2, protect=(0, 1, 2)), "3 of them protected", "Pass --attn-drop 1 or less."),
    "again": (DropSpec(attn_layers=(0, 3)), "names layer 3, whose attention once has lost", "without attention: 1, 3."),
}


@pytest.mark.parametrize(("drop", "message", "hint"), REQUESTS.values(), ids=REQUESTS)
def test_a_request_counts_what_is_left(drop, message, hint):
    with pytest.raises(PlanError, match=message) as caught:
        check_request(drop, ONCE)
    assert hint in caught.value.hint
