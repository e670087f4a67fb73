"""A folder that was trained elsewhere gives its weights where all else is the pruned model's, or it is refused."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import made
import pytest
import torch
from bases import FAMILIES, LLAMA, write_base
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from hubprune.core.config import read_config
from hubprune.core.console import Reporter
from hubprune.core.errors import CheckpointError, RecipeError
from hubprune.core.files import StageStore
from hubprune.core.requests import HealRequest, PruneRequest, VerifyRequest
from hubprune.pruning import loading, verify
from hubprune.workflows import heal as heals
from hubprune.workflows import prune as pruning
from hubprune.workflows import verify as checking
from hubprune.workflows.publish import healing

QUIET = Reporter(quiet=True)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A bfloat16 base, a pruned folder of it, and the same trained and saved in float32 by transformers."""
    folder = tmp_path_factory.mktemp("elsewhere")
    write_base(folder / "base", {**LLAMA, "torch_dtype": "bfloat16"})
    tensors = load_file(folder / "base" / "model.safetensors")
    save_file({n: t.bfloat16() for n, t in tensors.items()}, folder / "base" / "model.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        in_this_process(patch)
        pruning.prune(PruneRequest(str(folder / "base"), out=folder / "pruned", attn_layers=(1, 3)), reporter=QUIET)
    model = AutoModelForCausalLM.from_pretrained(folder / "pruned", trust_remote_code=True, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    model.config.use_cache = False
    model.save_pretrained(folder / "trained")
    AutoTokenizer.from_pretrained(folder / "pruned").save_pretrained(folder / "trained")
    return folder


def in_this_process(patch):
    patch.setattr(verify, "NEW_TOKENS", 2)
    patch.setattr(
        verify, "_in_fresh_process", lambda action, request, answer, **_: loading._ACTIONS[action][1](request)
    )


@pytest.fixture
def trained(place, tmp_path):
    """A copy of that folder, to be spoilt."""
    return shutil.copytree(place / "trained", tmp_path / "trained")


def test_weights_are_rounded_to_what_is_stored_and_all_else_is_the_pruned_model_s(place, tmp_path, monkeypatch):
    in_this_process(monkeypatch)
    heal_of = heals.find_patient(HealRequest(str(place / "pruned"), out="x", base=str(place / "base")), reporter=QUIET)
    run = SimpleNamespace(downloaded=heal_of.base, store=StageStore(tmp_path / "work"), reporter=QUIET)
    healing.check_given(place / "pruned", place / "trained")
    taken = healing._take(run, SimpleNamespace(plan=heal_of.plan), place / "trained", tmp_path / "out")
    assert taken.verification.passed
    before, theirs, ours = (
        load_file(folder / "model.safetensors") for folder in (place / "pruned", place / "trained", tmp_path / "out")
    )
    assert list(ours) == list(before)
    assert {t.dtype for t in theirs.values()} == {torch.float32}
    assert all(tensor.equal(theirs[name].bfloat16()) for name, tensor in ours.items())
    for path in (place / "pruned").iterdir():
        if path.name not in ("model.safetensors", "config.json"):
            assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
    one, other = (json.loads((folder / "config.json").read_text()) for folder in (place / "pruned", tmp_path / "out"))
    assert other.pop("hubprune") == {**one.pop("hubprune"), "healed": "elsewhere"}
    assert one == other
    told = healing._told_of(place / "trained", place / "pruned", tmp_path / "out")
    assert (told.dtypes, told.changed, told.tensors) == (("F32",), len(ours), len(ours))
    seen = checking.check(VerifyRequest(str(tmp_path / "out"), base=str(place / "base")), reporter=QUIET)
    assert seen.passed


def test_their_code_is_never_run(place, trained, tmp_path):
    [code] = trained.glob("*.py")
    code.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    healing.check_given(place / "pruned", trained)
    assert not (tmp_path / "ran").exists()


def other_weights(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def other_config(folder, **keys):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **keys}))


def other_tokenizer(folder):
    values = json.loads((folder / "tokenizer.json").read_text())
    vocab = values["model"]["vocab"]
    first, second = sorted(vocab, key=vocab.get)[100:102]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    (folder / "tokenizer.json").write_text(json.dumps(values))


NORM, DOWN = "model.norm.weight", "model.layers.2.mlp.down_proj.weight"
SPOILT = {
    "other drops": (
        lambda f: other_config(f, dropped_attn_layers=[1]),
        "config.json .* dropped_attn_layers",
    ),
    "other positions": (lambda f: other_config(f, rope_parameters={"rope_theta": 5e5}), "differs .* rope_parameters"),
    "a tensor less": (lambda f: other_weights(f, lambda t: t.pop(NORM)), f"lacks 1 tensors, {NORM}"),
    "a tensor more": (lambda f: other_weights(f, lambda t: t.update(more=torch.ones(1))), "1 tensors too many, more"),
    "another shape": (
        lambda f: other_weights(f, lambda t: t.update({DOWN: torch.ones(32, 16)})),
        f"{DOWN} in .* shape",
    ),
    "another tokenizer": (other_tokenizer, "gives other ids"),
    "no tokenizer at all": (lambda f: (f / "tokenizer.json").write_text("{"), "cannot be loaded"),
}


@pytest.mark.parametrize(("spoil", "said"), SPOILT.values(), ids=SPOILT)
def test_what_is_not_the_pruned_model_with_other_weights_is_refused(place, trained, spoil, said):
    spoil(trained)
    with pytest.raises(CheckpointError, match=said) as refused:
        healing.check_given(place / "pruned", trained)
    assert "same base, same drops, same tokenizer" in refused.value.hint


UNFIT = {
    "no folder": (shutil.rmtree, "is no folder", "save_pretrained"),
    "an adapter": (
        lambda f: [(f / "model.safetensors").unlink(), (f / "adapter_config.json").write_text("{}")],
        "holds an adapter and no whole model",
        "merge_and_unload",
    ),
    "pickles": (lambda f: (f / "model.safetensors").unlink(), "no checkpoint in safetensors", "save_pretrained"),
    "quantized": (lambda f: other_config(f, quantization_config={"quant_method": "x"}), "are quantized", "made of"),
}


@pytest.mark.parametrize(("spoil", "said", "hint"), UNFIT.values(), ids=UNFIT)
def test_a_folder_that_cannot_be_taken_is_refused_before_anything_is_computed(trained, spoil, said, hint):
    spoil(trained)
    run = SimpleNamespace(recipe=made.recipe(), base=None)
    with pytest.raises(RecipeError, match=said) as refused:
        healing.check_healing(run, trained)
    assert hint in refused.value.hint


def test_narrower_mlps_are_refused_for_both_ways_to_heal(trained):
    from hubprune.core.specs import HealSpec, WidthSpec

    for changes, given in (({"heal": HealSpec()}, None), ({}, trained)):
        run = SimpleNamespace(recipe=made.recipe(width=WidthSpec(neuron_drop="60%"), **changes), base=None)
        with pytest.raises(RecipeError, match="MLPs get narrower"):
            healing.check_healing(run, given)


WAYS = ("qwen2", "phi3", "gemma3_text")


@pytest.mark.parametrize("family", WAYS)
def test_what_transformers_5_writes_in_its_own_way_is_the_same_config(family, tmp_path):
    before = {**FAMILIES[family], "hubprune": {"base_model": "a/b"}}
    before.pop("auto_map", None)
    (tmp_path / "config.json").write_text(json.dumps(before))
    AutoConfig.from_pretrained(tmp_path).save_pretrained(tmp_path / "again")
    after = read_config(tmp_path / "again")
    assert {key for key in before if key in after and before[key] != after[key]} or "rope_parameters" in after
    assert healing._understood(before, tmp_path) == healing._understood(after, tmp_path)
    other = {**after, "rms_norm_eps": 0.1}
    assert healing._understood(other, tmp_path) != healing._understood(after, tmp_path)
