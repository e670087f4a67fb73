"""A checkpoint with narrower MLPs holds the base's bytes of the neurons that stay, and does what these do."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bases import (
    FAMILIES,
    LLAMA,
    family_tensors,
    parts,
    plan,
    random_tensors,
    raw_file,
    shapes,
    write_base,
    write_tensors,
    written,
)
from safetensors.torch import load_file

from hubprune.core.architectures import ARCHITECTURES, architecture_of
from hubprune.core.artifacts import BaseCheckpoint, WidthPlan
from hubprune.core.config import read_structure
from hubprune.core.errors import CheckpointError
from hubprune.core.weights import INDEX_NAME, open_weights
from hubprune.pruning import comparing, verify
from hubprune.pruning.checkpoint import write_weights
from hubprune.pruning.layouts import choose_layout, make_runnable
from hubprune.pruning.width import Neurons

WIDE = 48


def narrowed(config, kept, *, metric="max_abs", **drops):
    """A plan that keeps so many neurons of every MLP."""
    structure = read_structure(config)
    layers = structure.num_hidden_layers
    before = structure.mlp_widths
    kept = (kept,) * layers if isinstance(kept, int) else tuple(kept)
    drop = plan(layers, **drops).model_copy(
        update={"widths": WidthPlan(before=before, kept=kept, metric=metric), "absent": structure.absences}
    )
    return drop.model_copy(update={"layout": choose_layout("auto", drop, config)})


def runnable(base):
    return make_runnable(base, Path(base.folder).with_name("runnable"))


def checked(base, folder, drop):
    family = architecture_of(base.config)
    return verify.verify(runnable(base), folder, plan=drop, config=base.config, architecture=family)


def failed(seen):
    return {check.name for check in seen.checks if not check.passed}


def kept_numbers(base, drop, layer):
    weights, family = open_weights(Path(base.folder)), architecture_of(base.config)
    return Neurons(weights, drop.widths, family).kept(layer)


# ---- bytes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [1, 3, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_rows_and_columns_are_picked_byte_for_byte_and_everything_else_is_copied(tmp_path, shards, dtype):
    tensors = random_tensors(LLAMA, dtype=dtype)
    base = write_base(tmp_path / "base", LLAMA, tensors, shards=shards)
    drop = narrowed(LLAMA, (20, 48, 7, 1, 47), attn=[1], mlp=[4])
    folder = written(base, drop, tmp_path / "out")
    found = {name: t for path in folder.glob("*.safetensors") for name, t in load_file(path).items()}
    for name, tensor in tensors.items():
        layer = int(name.split(".")[2]) if name.startswith("model.layers.") else None
        gone = {1: (".self_attn.", ".input_layernorm."), 4: (".mlp.", ".post_attention_layernorm.")}.get(layer, ())
        if any(part in name for part in gone):
            assert name not in found
        elif ".mlp." in name:
            kept = kept_numbers(base, drop, layer)
            expected = tensor[:, kept] if "down" in name else tensor[kept]
            assert torch.equal(found[name].view(torch.uint8), expected.contiguous().view(torch.uint8))
        else:
            assert torch.equal(found[name], tensor)


def test_shards_keep_their_names_order_and_metadata_and_the_index_adds_up(tmp_path):
    base = write_base(tmp_path / "base", LLAMA, shards=4)
    index = json.loads((Path(base.folder) / INDEX_NAME).read_text())
    index["metadata"]["total_parameters"] = 1
    (Path(base.folder) / INDEX_NAME).write_text(json.dumps(index))
    folder = written(base, narrowed(LLAMA, 20), tmp_path / "out")
    for path in Path(base.folder).glob("*.safetensors"):
        before, after = parts(path)[0], parts(folder / path.name)[0]
        assert list(before) == list(after)
        assert before["__metadata__"] == after["__metadata__"]
    weights, totals = open_weights(folder), json.loads((folder / INDEX_NAME).read_text())["metadata"]
    assert (totals["total_size"], totals["total_parameters"]) == (weights.size(), weights.parameters())
    data = sum(len(parts(path)[1]) for path in folder.glob("*.safetensors"))
    assert totals["total_size"] == data


def test_progress_adds_up_to_the_bytes_that_are_written(tmp_path, llama):
    (tmp_path / "out").mkdir()
    seen, weights = [], open_weights(Path(llama.folder))
    write_weights(weights, narrowed(LLAMA, 20), ARCHITECTURES["llama"], tmp_path / "out", advance=seen.append)
    assert sum(seen) == open_weights(tmp_path / "out").size()


def test_gate_up_and_down_may_lie_in_different_files(in_process, tmp_path):
    tensors = random_tensors(LLAMA)
    ends = ("gate_proj.weight", "up_proj.weight", "down_proj.weight")
    order = sorted(tensors, key=lambda name: next((i for i, end in enumerate(ends) if name.endswith(end)), 3))
    base = write_base(tmp_path / "base", LLAMA, {name: tensors[name] for name in order}, shards=4)
    drop = narrowed(LLAMA, 20)
    assert failed(checked(base, written(base, drop, tmp_path / "out"), drop)) == set()


def zeros(folder, config):
    """Write a base of zeros, which takes no room on the disk."""
    header, offset = {}, 0
    for name, shape in shapes(config).items():
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, offset + 4 * math.prod(shape)]}
        offset = header[name]["data_offsets"][1]
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(raw_file(header))
    os.truncate(folder / "model.safetensors", (folder / "model.safetensors").stat().st_size + offset)


MEASURE = """
import resource, sys
from pathlib import Path
from hubprune.core.architectures import ARCHITECTURES
from hubprune.core.artifacts import DropPlan
from hubprune.pruning import width as neurons
from hubprune.pruning.checkpoint import write_weights
from hubprune.core.weights import open_weights
plan = DropPlan.model_validate_json(sys.argv[3])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
write_weights(open_weights(Path(sys.argv[1])), plan, ARCHITECTURES["llama"], Path(sys.argv[2]), advance=lambda _: None)
print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
"""


def test_writing_holds_little_more_than_one_mlp(tmp_path):
    config = {**LLAMA, "hidden_size": 512, "intermediate_size": 8192, "num_hidden_layers": 8}
    zeros(tmp_path / "base", config)
    (tmp_path / "out").mkdir()
    command = [sys.executable, "-c", MEASURE, tmp_path / "base", tmp_path / "out"]
    done = subprocess.run([*command, narrowed(config, 3277).model_dump_json()], capture_output=True, text=True)
    assert not done.returncode, done.stderr
    assert int(done.stdout) < open_weights(tmp_path / "base").size() / 4
    assert open_weights(tmp_path / "out").parameters() < open_weights(tmp_path / "base").parameters() / 2


def test_a_base_without_a_projection_is_refused(tmp_path):
    tensors = random_tensors(LLAMA)
    del tensors["model.layers.2.mlp.up_proj.weight"]
    base = write_base(tmp_path / "base", LLAMA, tensors)
    with pytest.raises(CheckpointError, match=r"no model\.layers\.2\.mlp\.up_proj\.weight to make narrower"):
        written(base, narrowed(LLAMA, 20), tmp_path / "out")


# ---- what it computes --------------------------------------------------------------------------------------------


def logits(folder, ids, change=lambda model: None):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        change(model)
        return model(ids).logits, type(model).__name__, model.config.intermediate_size


@pytest.mark.parametrize("metric", ["max_abs", "ppm", "vow", "pon", "l2"])
def test_a_stock_class_loads_it_and_computes_what_the_neurons_that_stay_do(llama, tmp_path, metric):
    drop = narrowed(LLAMA, 20, metric=metric)
    folder = written(llama, drop, tmp_path / "out")
    assert not list(folder.glob("*.py"))
    ids = torch.arange(2, 42).view(1, -1)

    def zero_the_others(model):
        for layer, block in enumerate(model.model.layers):
            gone = torch.ones(WIDE, dtype=torch.bool)
            gone[kept_numbers(llama, drop, layer)] = False
            block.mlp.down_proj.weight[:, gone] = 0

    found, name, width = logits(folder, ids)
    reference = logits(llama.folder, ids, zero_the_others)[0]
    assert (name, width) == ("LlamaForCausalLM", 20)
    assert (found - reference).abs().max() < 1e-5
    assert (found - logits(llama.folder, ids)[0]).abs().max() > 0.1


def test_a_fresh_process_finds_narrower_mlps_right(llama, tmp_path):
    drop = narrowed(LLAMA, 20, attn=[0, 3])
    seen = checked(llama, written(llama, drop, tmp_path / "out"), drop)
    assert failed(seen) == set()
    assert "logits equal the base without the dropped sublayers and neurons" in {check.name for check in seen.checks}
    attention, mlp = 2 * 32 * 32 + 2 * 16 * 32 + 32, 3 * 20 * 32 + 32
    assert seen.parameters == 2 * 256 * 32 + 32 + 5 * mlp + 3 * attention


PLANS = {
    "uniform": (20, {}),
    "with attentions": (20, {"attn": [0, 2]}),
    "with MLPs": (20, {"mlp": [1, 4]}),
    "with a layer": (20, {"attn": [1], "mlp": [1]}),
    "per layer": ((48, 40, 17, 3, 1), {}),
    "per layer, with both": ((48, 40, 17, 3, 1), {"attn": [0, 4], "mlp": [2, 4]}),
}


@pytest.mark.parametrize("name", PLANS)
def test_every_combination_passes_every_check(in_process, llama, tmp_path, name):
    kept, drops = PLANS[name]
    drop = narrowed(LLAMA, kept, **drops)
    folder = written(llama, drop, tmp_path / "out")
    seen = checked(llama, folder, drop)
    assert failed(seen) == set()
    assert seen.max_logit_difference < 1e-5
    again = verify.plan_of(json.loads((folder / "config.json").read_text()))
    assert (again.widths, again.sublayers, again.layout) == (drop.widths, drop.sublayers, drop.layout)
    assert failed(checked(llama, folder, again)) == set()


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("drops", [{}, {"attn": [0]}], ids=["narrower", "without an attention too"])
def test_every_family_passes_every_check(in_process, tmp_path, name, drops):
    config = FAMILIES[name]
    base = write_base(tmp_path / "base", config, family_tensors(config))
    drop = narrowed(config, 20, **drops)
    assert drop.layout == ("pruned" if drops else "stock")
    assert failed(checked(base, written(base, drop, tmp_path / "out"), drop)) == set()


def test_the_served_layout_passes_every_check(in_process, tmp_path):
    config = {**LLAMA, "hidden_size": 64, "intermediate_size": 512}
    base = write_base(tmp_path / "base", config)
    drop = narrowed(config, (512, 256, 256, 512, 256), attn=[2])
    assert drop.layout == "nemotron-nas"
    assert failed(checked(base, written(base, drop, tmp_path / "out"), drop)) == set()


def test_biases_go_with_their_neurons(in_process, tmp_path):
    config = {**LLAMA, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "torch_dtype": "bfloat16"}
    tensors = random_tensors(config, dtype=torch.bfloat16)
    for name in [n for n in tensors if n.endswith("_proj.weight")]:
        tensors[name.replace("weight", "bias")] = torch.randn(tensors[name].shape[0]).bfloat16()
    base = write_base(tmp_path / "base", config, tensors, shards=3)
    drop = narrowed(config, (20, 48, 7, 1, 47), attn=[1])
    seen = checked(base, written(base, drop, tmp_path / "out"), drop)
    assert failed(seen) == set()


def test_where_only_bfloat16_fits_into_memory_the_comparison_is_as_strict(in_process, monkeypatch, tmp_path):
    monkeypatch.setattr("hubprune.core.memory.available_bytes", lambda: 0)
    for name in ("llama", "phi3"):
        config = {**FAMILIES.get(name, LLAMA), "torch_dtype": "bfloat16"}
        tensors = {n: t.bfloat16() for n, t in family_tensors(config).items()}
        base = write_base(tmp_path / name / "base", config, tensors)
        drop = narrowed(config, 20, attn=[1])
        seen = checked(base, written(base, drop, tmp_path / name / "out"), drop)
        assert (seen.dtype, seen.max_logit_difference, failed(seen)) == ("bfloat16", 0.0, set())


def test_a_base_that_was_narrowed_before_is_narrowed_again(in_process, llama, tmp_path):
    first = written(llama, narrowed(LLAMA, (40, 30, 48, 20, 48), mlp=[2]), tmp_path / "once")
    config = json.loads((first / "config.json").read_text())
    base = BaseCheckpoint(name="once", commit=None, folder=str(first), config=config, files=())
    drop = narrowed(config, (15, 15, 0, 15, 15), attn=[0])
    assert drop.widths.before == (40, 30, 0, 20, 48)
    folder = written(base, drop, tmp_path / "twice")
    assert failed(checked(base, folder, drop)) == set()
    assert json.loads((folder / "config.json").read_text())["mlp_intermediate_sizes"] == [15, 15, 0, 15, 15]


def test_verification_sees_other_neurons_than_the_planned_ones(in_process, llama, tmp_path):
    folder = written(llama, narrowed(LLAMA, 20, metric="vow"), tmp_path / "out")
    seen = checked(llama, folder, narrowed(LLAMA, 20, metric="max_abs"))
    assert failed(seen) >= {
        "kept tensors are the base's, byte for byte", "logits equal the base without the dropped neurons"
    }  # fmt: skip


@pytest.mark.parametrize("scale", [1.0, 3e4])
def test_logits_are_as_close_as_their_size_allows(in_process, tmp_path, scale):
    tensors = random_tensors(LLAMA)
    tensors["model.norm.weight"] *= scale
    base, drop = write_base(tmp_path / "base", LLAMA, tensors), narrowed(LLAMA, 20)
    folder = written(base, drop, tmp_path / "out")
    assert failed(checked(base, folder, drop)) == set()
    spoiled = load_file(folder / "model.safetensors")
    spoiled["model.layers.0.self_attn.o_proj.weight"] *= 1.01
    write_tensors(folder, spoiled)
    assert "logits equal the base without the dropped neurons" in failed(checked(base, folder, drop))


def test_verification_sees_columns_in_another_order(in_process, llama, tmp_path):
    drop = narrowed(LLAMA, 20)
    folder = written(llama, drop, tmp_path / "out")
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.3.mlp.down_proj.weight"
    tensors[name] = tensors[name].flip(1).contiguous()
    write_tensors(folder, tensors)
    seen = failed(checked(llama, folder, drop))
    assert seen >= {"kept tensors are the base's, byte for byte", "logits equal the base without the dropped neurons"}


@pytest.mark.parametrize("exact", [True, False])
def test_the_reference_adds_zeros_or_in_a_coarse_dtype_only_the_same_neurons(llama, exact):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(llama.folder)
    rows = verify._narrowed(open_weights(Path(llama.folder)), narrowed(LLAMA, 20), ARCHITECTURES["llama"])
    comparing.narrow(model, rows, exact=exact)
    kept = kept_numbers(llama, narrowed(LLAMA, 20), 3)
    mlp, before = model.model.layers[3].mlp, load_file(Path(llama.folder) / "model.safetensors")
    up, down = (before[f"model.layers.3.mlp.{name}_proj.weight"] for name in ("up", "down"))
    linear, states, neurons = torch.nn.functional.linear, torch.randn(7, 32), torch.randn(7, WIDE)
    with torch.no_grad():
        if exact:
            zeros = torch.zeros(7, WIDE).index_copy(1, kept, neurons[:, kept])
            assert torch.equal(mlp.up_proj(states), linear(states, up))
            assert torch.equal(mlp.down_proj(neurons), linear(zeros, down))
        else:
            assert torch.equal(mlp.up_proj(states), linear(states, up[kept]))
            assert torch.equal(mlp.down_proj(neurons[:, kept]), linear(neurons[:, kept], down[:, kept]))
    assert torch.equal(mlp.down_proj.weight, down)
