"""What others pruned is read as their tools write it, without their code, and written anew as its base without that."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from bases import FAMILIES, LLAMA, MISTRAL, family_tensors, random_tensors, write_base, write_tensors
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from hubprune.core.config import read_config
from hubprune.core.console import Reporter
from hubprune.core.errors import BaseNotFoundError, CheckpointError, RecipeError, UnsupportedFormatError
from hubprune.core.requests import AdoptRequest, PublishRequest
from hubprune.pruning import loading, verify
from hubprune.workflows import adopt as adopting
from hubprune.workflows import recipes
from hubprune.workflows.healed import healed_by

QUIET = Reporter(quiet=True)
WIDE = {"num_hidden_layers": 4, "intermediate_size": 24}
"""Less to compute."""
THEIR_CODE = {"AutoConfig": "configuration_dropped_llama.LlamaConfig",
              "AutoModelForCausalLM": "modeling_dropped_llama.LlamaForCausalLM"}  # fmt: skip


@pytest.fixture(autouse=True)
def in_process(monkeypatch, tmp_path):
    """Compare in this process, and keep nothing elsewhere."""
    monkeypatch.setenv("HUBPRUNE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(verify, "NEW_TOKENS", 2)
    monkeypatch.setattr(
        verify, "_in_fresh_process", lambda action, request, answer, **_: loading._ACTIONS[action][1](request)
    )


@pytest.fixture
def base(tmp_path):
    return Path(write_base(tmp_path / "base", {**LLAMA, **WIDE}).folder)


def copy_of(base, folder, change=lambda tensors: None, **keys):
    """A folder with a base's files, other tensors and other keys in config.json, as save_pretrained leaves them."""
    shutil.copytree(base, folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    write_tensors(folder, tensors)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **keys}))
    return folder


def llm_drop(base, folder, **lists):
    """A folder as LLM-Drop saves it: every tensor is left in, and code in it would skip what the lists name."""
    made = copy_of(base, folder, auto_map=THEIR_CODE, **lists)
    for name in ("configuration_dropped_llama.py", "modeling_dropped_llama.py"):
        (made / name).write_text(f"open({str(folder) + '-ran'!r}, 'w').close()\n")
    return made


def block(*, attention=True, width=24, **more):
    """An entry of `block_configs` as ModelOpt's `BlockConfig.to_dict` writes it."""
    common = {"replace_with_linear": False, "sparsify": None, "weights_precision": "bf16"}
    heads = {"num_key_value_heads": 2 if attention else None, "llama4": None, "mamba": None}
    ffn = {"moe": None, "intermediate_size": width}
    return {
        "attention": {**common, "no_op": not attention, **heads, **more},
        "ffn": {**common, "no_op": width is None, **ffn}, "parallel_blocks": None,
    }  # fmt: skip


def without_layers(*gone):
    """Leave layers out and give the others new numbers, as a merge of slices does."""

    def change(tensors):
        kept = [i for i in range(4) if i not in gone]
        moved = {}
        for name in list(tensors):
            if found := re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name):
                tensor = tensors.pop(name)
                if int(found[1]) in kept:
                    moved[f"model.layers.{kept.index(int(found[1]))}.{found[2]}"] = tensor
        tensors.update(moved)

    return change


def narrower(neurons):
    """Keep some neurons of some MLPs: layer -> their numbers."""

    def change(tensors):
        for layer, numbers in neurons.items():
            kept = torch.tensor(numbers)
            for part, axis in (("gate_proj", 0), ("up_proj", 0), ("down_proj", 1)):
                name = f"model.layers.{layer}.mlp.{part}.weight"
                tensors[name] = tensors[name].index_select(axis, kept).contiguous()

    return change


def adopt(folder, base, out=None):
    return adopting.adopt(AdoptRequest(str(folder), base=str(base), out=out), reporter=QUIET)


def agrees(base, adopted, *, attn=(), mlp=(), silent=()):
    """Compare with the base whose sublayers, and single neurons, add nothing: logits, text, size of the cache."""
    whole = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        for layer in attn:
            whole.model.layers[layer].self_attn.o_proj.weight.zero_()
        for layer in mlp:
            whole.model.layers[layer].mlp.down_proj.weight.zero_()
        for layer, neuron in silent:
            whole.model.layers[layer].mlp.down_proj.weight[:, neuron] = 0
    model, info = AutoModelForCausalLM.from_pretrained(adopted, trust_remote_code=True, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    ids = AutoTokenizer.from_pretrained(base)("Two birds and a river", return_tensors="pt").input_ids
    with torch.inference_mode():
        expected, seen = whole(ids), model(ids)
        torch.testing.assert_close(seen.logits, expected.logits, atol=1e-5, rtol=1e-5)
        texts = [m.generate(ids, max_new_tokens=6, min_new_tokens=6, do_sample=False) for m in (whole, model)]
    assert texts[0].equal(texts[1])
    layers = [[layer for layer in cache.layers if layer.keys is not None] for cache in (
        expected.past_key_values, seen.past_key_values
    )]  # fmt: skip
    assert len(layers[1]) == len(layers[0]) - len(attn)
    return True


@pytest.mark.parametrize(
    "lists",
    [
        {"drop_attn_list": [2, 0], "drop_mlp_list": [3]},
        {"drop_attn_list": [True, False, True, False], "drop_mlp_list": [False, False, False, True]},
    ],
    ids=["numbers", "booleans"],
)
def test_what_llm_drop_left_in_the_files_is_gone_and_its_code_was_never_run(base, tmp_path, lists):
    theirs = llm_drop(base, tmp_path / "theirs", **lists)
    found = adopt(theirs, base, tmp_path / "out")
    assert (found.form, found.plan.layers("attn"), found.plan.layers("mlp")) == ("llm-drop", (0, 2), (3,))
    assert found.made.verification.passed
    names = set(load_file(tmp_path / "out" / "model.safetensors"))
    gone = ("layers.0.self_attn", "layers.2.input_layernorm", "layers.3.mlp", "layers.3.post_attention_layernorm")
    assert not [name for name in names if any(part in name for part in gone)]
    assert {"model.layers.0.mlp.up_proj.weight", "model.layers.3.input_layernorm.weight"} <= names
    config = read_config(tmp_path / "out")
    assert "drop_attn_list" not in config
    assert "modeling_dropped" not in json.dumps(config)
    assert sorted(p.name for p in (tmp_path / "out").glob("*.py")) == ["modeling_pruned_llama.py"]
    assert not list(tmp_path.glob("theirs-ran"))
    assert agrees(base, tmp_path / "out", attn=(0, 2), mlp=(3,))


def test_a_mistral_whose_blocks_llm_drop_dropped_becomes_a_stock_one(tmp_path):
    base = Path(write_base(tmp_path / "base", {**MISTRAL, **WIDE}).folder)
    theirs = llm_drop(base, tmp_path / "theirs", drop_attn_list=[1], drop_mlp_list=[1])
    found = adopt(theirs, base, tmp_path / "out")
    assert found.plan.layout == "stock"
    config = read_config(tmp_path / "out")
    assert (config["model_type"], config["num_hidden_layers"]) == ("mistral", 3)
    assert agrees(base, tmp_path / "out", attn=(1,), mlp=(1,))


def test_modelopt_s_blocks_lose_attention_and_neurons_and_its_folder_of_shards_is_read(base, tmp_path):
    kept = [*range(3, 15)]
    theirs = copy_of(base, tmp_path / "theirs", narrower({2: kept}), block_configs=[
        block(), block(attention=False), block(width=12), block(width=None)
    ])  # fmt: skip
    tensors, below = load_file(theirs / "model.safetensors"), theirs / "subblocks_safetensors"
    (theirs / "model.safetensors").unlink()
    below.mkdir()
    gone = ("layers.1.self_attn", "layers.1.input_layernorm", "layers.3.mlp", "layers.3.post_attention_layernorm")
    left = {name: tensor for name, tensor in tensors.items() if not any(part in name for part in gone)}
    save_file(left, below / "all.safetensors")
    where = dict.fromkeys(left, "subblocks_safetensors/all.safetensors")
    index = {"metadata": {"format": "pt"}, "weight_map": where}
    (theirs / "model.safetensors.index.json").write_text(json.dumps(index))
    found = adopt(theirs, base, tmp_path / "out")
    assert (found.form, found.plan.layers("attn"), found.plan.layers("mlp")) == ("anymodel", (1,), (3,))
    assert found.plan.widths.kept[:3] == (24, 24, 12)
    assert found.plan.widths.neurons  # no metric would have kept these
    others = [(2, neuron) for neuron in range(24) if neuron not in kept]
    assert agrees(base, tmp_path / "out", attn=(1,), mlp=(3,), silent=others)
    shutil.copyfile(below / "all.safetensors", tmp_path / "all.safetensors")
    outside = {**index, "weight_map": dict.fromkeys(left, "../all.safetensors")}
    (theirs / "model.safetensors.index.json").write_text(json.dumps(outside))
    with pytest.raises(CheckpointError, match="not in its folder"):
        adopt(theirs, base)


def test_layers_that_are_left_are_found_by_their_values_and_the_kinds_follow_them(tmp_path):
    base = Path(write_base(tmp_path / "base", {**FAMILIES["qwen2, sliding"], "num_hidden_layers": 4},
                           family_tensors({**FAMILIES["qwen2, sliding"], "num_hidden_layers": 4})).folder)  # fmt: skip
    # mergekit cuts num_hidden_layers and leaves layer_types as it was.
    kinds = ["full_attention"] * 2 + ["sliding_attention"] * 2
    theirs = copy_of(base, tmp_path / "theirs", without_layers(1), num_hidden_layers=3, layer_types=kinds)
    found = adopt(theirs, base, tmp_path / "out")
    assert (found.form, found.plan.removed_layers, found.changed) == ("fewer", (1,), ())
    config = read_config(tmp_path / "out")
    assert config["layer_types"] == ["full_attention", "sliding_attention", "sliding_attention"]
    assert agrees(base, tmp_path / "out", attn=(1,), mlp=(1,))


def test_narrower_mlps_of_one_metric_need_no_list_and_neurons_of_any_choice_are_named(base, tmp_path):
    from hubprune.core.architectures import ARCHITECTURES
    from hubprune.core.artifacts import WidthPlan
    from hubprune.core.weights import open_weights
    from hubprune.pruning.width import Neurons

    plan = WidthPlan(before=(24,) * 4, kept=(16,) * 4, metric="ppm")  # what optipfair calls MAW
    chosen = Neurons(open_weights(base), plan, ARCHITECTURES["llama"])
    kept = {layer: chosen.kept(layer).tolist() for layer in range(4)}
    theirs = copy_of(base, tmp_path / "theirs", narrower(kept), intermediate_size=16)
    found = adopt(theirs, base, tmp_path / "out")
    assert (found.plan.widths.metric, found.plan.widths.neurons, found.plan.layout) == ("ppm", None, "stock")
    assert read_config(tmp_path / "out")["intermediate_size"] == 16
    seen, expected = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", theirs))
    assert all(seen[name].equal(tensor) for name, tensor in expected.items())
    backwards = copy_of(base, tmp_path / "backwards", narrower({0: [*range(12)][::-1]}), intermediate_size=24)
    with pytest.raises(CheckpointError, match="in another order"):
        adopt(backwards, base)


def test_a_trained_one_keeps_its_own_weights_and_says_so(base, tmp_path):
    made = torch.Generator().manual_seed(1)

    def train(tensors):
        without_layers(2)(tensors)
        for name, tensor in tensors.items():
            if "layers.1." in name:
                tensors[name] = tensor + 0.02 * torch.randn(tensor.shape, generator=made)

    theirs = copy_of(base, tmp_path / "theirs", train, num_hidden_layers=3)
    found = adopt(theirs, base, tmp_path / "out")
    assert found.plan.removed_layers == (2,)
    assert {name.split(".")[2] for name in found.changed} == {"1"}
    assert found.made.verification.passed
    assert healed_by(read_config(tmp_path / "out")) == "elsewhere"
    seen, expected = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", theirs))
    assert seen.keys() == expected.keys()
    assert all(seen[name].equal(tensor) for name, tensor in expected.items())


def test_rounding_is_no_training(base, tmp_path):
    def round_all(tensors):
        without_layers(0)(tensors)
        tensors.update({name: tensor.bfloat16() for name, tensor in tensors.items()})

    found = adopt(copy_of(base, tmp_path / "theirs", round_all, num_hidden_layers=3), base)
    assert (found.changed, found.rounded, found.plan.removed_layers) == ((), ("BF16",), (0,))


def twice(tensors):
    without_layers(1, 2)(tensors)
    tensors.update({n.replace("layers.0", "layers.2"): t.clone() for n, t in tensors.items() if "layers.0" in n})


def as_many(tensors):
    """Leave layer 1 out and repeat layer 0, so that their number is that of the base."""
    for name in [name for name in tensors if "layers.1." in name]:
        tensors[name] = tensors[name.replace("layers.1.", "layers.0.")].clone()


def reshaped(rest, shape):
    """Give a tensor of layer 1 a shape that no code of ours would write, where layer 2 is gone."""

    def change(tensors):
        without_layers(2)(tensors)
        tensors[f"model.layers.1.{rest}.weight"] = torch.zeros(shape)

    return change


def pickled(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")


@pytest.mark.parametrize(
    ("change", "keys", "error", "told"),
    [
        (None, {}, CheckpointError, "Nothing is missing"),
        (None, {"drop_attn_list": [4]}, CheckpointError, "names a layer that is not there: they are 0 to 3"),
        (None, {"drop_attn_list": [True, False]}, CheckpointError, "has 2 booleans, and the model 4 layers"),
        (None, {"drop_mlp_list": [True, 2]}, CheckpointError, "neither a list of layers nor one of booleans"),
        (None, {"drop_attn_list": [1], "num_hidden_layers": 3}, CheckpointError, "has 3 layers, and the base 4"),
        (None, {"block_configs": [block()] * 3}, CheckpointError, "one entry for each of its 4 layers"),
        (None, {"block_configs": [block(num_key_value_heads=1)] * 4}, UnsupportedFormatError, "num_key_value_heads=1"),
        (None, {"quantization_config": {"quant_method": "awq"}}, UnsupportedFormatError, r"quantized \(awq\)"),
        (None, {"hubprune": {}}, CheckpointError, "written by hubprune"),
        (None, {"rope_theta": 5e5}, CheckpointError, "rope_theta=500000.0"),
        (without_layers(1), {"num_hidden_layers": 3, "rms_norm_eps": 1e-6}, CheckpointError, "rms_norm_eps"),
        (twice, {"num_hidden_layers": 3}, CheckpointError, "repeated or in another order"),
        (as_many, {}, CheckpointError, "repeated or in another order"),
        (without_layers(1), {"num_hidden_layers": 2}, CheckpointError, "tensors that its base lacks"),
        (None, {"num_hidden_layers": 6}, CheckpointError, "some are there twice"),
        (reshaped("mlp.gate_proj", ()), {"num_hidden_layers": 3}, CheckpointError, r"shape .*\[\]"),
        (reshaped("mlp.gate_proj", (12, 32)), {"num_hidden_layers": 3}, CheckpointError, "fits no MLP of its base"),
        (reshaped("mlp.up_proj", (24, 8)), {"num_hidden_layers": 3}, CheckpointError, "fits no MLP of its base"),
        (reshaped("self_attn.o_proj", ()), {"num_hidden_layers": 3}, CheckpointError, "is a single number"),
    ],
)  # fmt: skip
def test_what_cannot_be_adopted_is_refused_in_words(base, tmp_path, change, keys, error, told):
    theirs = copy_of(base, tmp_path / "theirs", change or (lambda tensors: None), **keys)
    with pytest.raises(error, match=told):
        adopt(theirs, base, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_pickles_are_never_opened_and_another_model_is_no_base(base, tmp_path):
    theirs = copy_of(base, tmp_path / "theirs", drop_attn_list=[1])
    pickled(theirs)
    with pytest.raises(UnsupportedFormatError, match=r"pytorch_model\.bin"):
        adopt(theirs, base)
    other = write_base(tmp_path / "other", {**LLAMA, **WIDE}, random_tensors({**LLAMA, **WIDE}, seed=5)).folder
    fewer = copy_of(base, tmp_path / "fewer", without_layers(1), num_hidden_layers=3)
    with pytest.raises(CheckpointError, match="none of its base's, nor trained from one") as raised:
        adopt(fewer, other)
    assert "--base" in raised.value.hint


def test_a_tokenizer_with_other_ids_is_refused(base, tmp_path):
    theirs = copy_of(base, tmp_path / "theirs", drop_attn_list=[1])
    values = json.loads((theirs / "tokenizer.json").read_text())
    vocab = values["model"]["vocab"]
    vocab["a"], vocab["e"] = vocab["e"], vocab["a"]
    (theirs / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="gives other ids"):
        adopt(theirs, base)


@pytest.mark.parametrize(
    ("card", "path", "told"),
    [
        ("", None, "names no base"),
        ("---\nbase_model: [a/b, c/d]\n---\n", None, "names several bases: a/b, c/d"),
        ("---\nbase_model: [\n---\n", "/home/somebody/llama", "names no base"),
    ],
)
def test_a_base_that_nobody_names_has_to_be_given(base, tmp_path, card, path, told):
    theirs = copy_of(base, tmp_path / "theirs", drop_attn_list=[1], _name_or_path=path)
    (theirs / "README.md").write_text(card)
    with pytest.raises(BaseNotFoundError, match=told) as raised:
        adopting.adopt(AdoptRequest(str(theirs)), reporter=QUIET)
    assert "--base" in raised.value.hint


@pytest.mark.parametrize(
    ("card", "path"), [("---\nlicense: mit\nbase_model: meta/tiny\n---\n# It\n", "x/y"), ("# It", "meta/tiny")]
)
def test_a_card_or_else_a_config_names_the_base(base, tmp_path, card, path):
    theirs = copy_of(base, tmp_path / "theirs", drop_attn_list=[1], _name_or_path=path)
    (theirs / "README.md").write_text(card)
    source = adopting.find_source(str(theirs), None, session=None, reporter=QUIET)
    assert adopting.named_base(source) == "meta/tiny"


def test_a_recipe_names_who_chose_and_the_neurons_and_reads_back(base, tmp_path):
    theirs = copy_of(base, tmp_path / "theirs", narrower({1: [*range(2, 14)]}), drop_attn_list=[2])
    with adopting.opened_adopted(PublishRequest(str(base), adopt=str(theirs)), reporter=QUIET) as (run, asked):
        recipe = run.recipe
    assert (recipe.adopted.repo_id, recipe.adopted.form, asked.adopt) == ("theirs", "llm-drop", None)
    assert recipe.width.neurons[1] == f"{(1 << 14) - 4:x}"
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    assert recipes.recipe_of(PublishRequest(recipe=tmp_path / "recipe.yaml")) == recipe
    for name, value in (("attn_drop", 2), ("target", "kv=-30%"), ("from_sweep", "sweep")):
        two = PublishRequest(adopt="x/y", **{name: value})
        with (
            pytest.raises(RecipeError, match=f"--{name.replace('_', '-')} says something else"),
            adopting.opened_adopted(two, reporter=QUIET),
        ):
            pass
