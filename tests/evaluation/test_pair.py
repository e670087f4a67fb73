"""Base and pruned model in memory: every number is that of the files, and what they have in common is there once."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from bases import FAMILIES, LLAMA, MISTRAL, family_tensors, plan, random_tensors, write_base, write_tensors, written
from safetensors.torch import load_file

from hubprune.core.artifacts import BaseCheckpoint
from hubprune.evaluation import generation, models
from hubprune.evaluation.models import load_model
from hubprune.evaluation.pair import ModelFolder, Pair

NAS = {**LLAMA, "intermediate_size": 512}
KINDS = {
    "llama": (LLAMA, {"attn": (1, 3)}),
    "llama, head tied": ({**LLAMA, "tie_word_embeddings": True}, {"attn": (1,)}),
    "llama, a block": (LLAMA, {"attn": (2,), "mlp": (2,)}),
    "llama, nemotron-nas": (NAS, {"attn": (1, 3), "layout": "nemotron-nas"}),
    "mistral, window": (MISTRAL, {"attn": (0,), "mlp": (0,)}),
    **{name: (config, {"attn": (1,), "mlp": (2,)}) for name, config in FAMILIES.items()},
}
IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11]])


@pytest.fixture
def write(tmp_path):
    """Write a base and what is left of it."""

    def make(config, **dropped):
        known = config["model_type"] in ("llama", "mistral")
        tensors = random_tensors(config) if known else family_tensors(config)
        write_base(tmp_path / "base", config, tensors)
        base = BaseCheckpoint(name="tiny", commit=None, folder=str(tmp_path / "base"), config=config, files=())
        layers = len({name.split(".")[2] for name in tensors if name.startswith("model.layers.")})
        return tmp_path / "base", written(base, plan(layers, **dropped), tmp_path / "pruned")

    return make


@pytest.fixture
def open_pair(reporter):
    def make(base, pruned, dtype="auto"):
        return Pair(ModelFolder(base), ModelFolder(pruned, own_code=True), device="cpu", dtype=dtype, reporter=reporter)

    return make


def own(pair):
    """Names of the pruned model's parameters that the base does not have in its memory."""
    base = {parameter.data_ptr() for parameter in pair.load("base").model.parameters()}
    pruned = pair.load("pruned").model.named_parameters()
    return [name for name, parameter in pruned if parameter.data_ptr() not in base]


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_beside_its_base_is_the_one_that_transformers_loads(write, open_pair, kind, dtype):
    config, dropped = KINDS[kind]
    base, pruned = write(config, **dropped)
    alone = load_model(pruned, device="cpu", dtype=dtype, trust_remote_code=True)
    with open_pair(base, pruned, dtype) as pair, torch.no_grad():
        assert own(pair) == []
        beside = pair.load("pruned")
        assert type(beside.model).__name__ == type(alone.model).__name__
        for ours, theirs in ((beside.model.state_dict(), alone.model.state_dict()), map(buffers, (beside, alone))):
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
            assert {name: t.dtype for name, t in ours.items()} == {name: t.dtype for name, t in theirs.items()}
        # torch copies frozen weights where others are used in place.
        assert all(p.requires_grad == alone.model.get_parameter(n).requires_grad for n, p in named(beside))
        assert torch.equal(beside.model(IDS).logits, alone.model(IDS).logits)
        assert generate(beside) == generate(alone)
        assert (beside.dtype, beside.device, beside.max_positions) == (alone.dtype, alone.device, alone.max_positions)


def named(loaded):
    return loaded.model.named_parameters()


def buffers(loaded):
    return dict(loaded.model.named_buffers())


def generate(loaded):
    ends = loaded.model.generation_config.eos_token_id
    return ends, loaded.model.generate(IDS, max_new_tokens=5, pad_token_id=0).tolist()


@pytest.mark.parametrize("kind", ["llama, a block", "mistral, window", *(name for name in FAMILIES)])
def test_free_text_of_both_models_is_what_transformers_makes_of_their_folders(write, open_pair, reporter, kind):
    config, dropped = KINDS[kind]
    folders = write(config, **dropped)
    request = generation.Request(prompts=("a b c d", "e"), max_new_tokens=12)
    for folder, name in zip(folders, ("base", "pruned"), strict=True):
        alone = load_model(folder, device="cpu", dtype="auto", trust_remote_code=name == "pruned")
        with open_pair(*folders) as pair:
            pair.load("base")
            texts = generation.write(pair, name, request, reporter=reporter).texts
        for prompt, text in zip(request.prompts, texts, strict=True):
            ids = torch.tensor([alone.tokenizer(prompt)["input_ids"]])
            new = alone.model.generate(ids, max_new_tokens=12, pad_token_id=0)[0, ids.shape[1] :].tolist()
            assert list(text.token_ids) == new[: len(text.token_ids)]
            assert text.tokens == len(new)


def test_what_differs_in_one_number_is_read_from_its_own_file(write, open_pair):
    base, pruned = write(LLAMA, attn=(1,))
    tensors = load_file(pruned / "model.safetensors")
    changed = "model.layers.2.mlp.up_proj.weight"
    tensors[changed] = tensors[changed].clone()
    tensors[changed].view(-1)[len(tensors[changed].view(-1)) // 3] += 1e-3
    write_tensors(pruned, tensors)
    with open_pair(base, pruned) as pair:
        assert own(pair) == [changed]
        assert torch.equal(pair.load("pruned").model.get_parameter(changed), tensors[changed])


def test_tensors_that_only_look_alike_are_told_apart_by_all_of_their_numbers(write, open_pair, monkeypatch):
    base, pruned = write(LLAMA, attn=(2,), mlp=(2,))
    monkeypatch.setattr(models, "_look", lambda name, shape, glance: tuple(shape))
    monkeypatch.setattr(models, "PIECE_BYTES", 64)
    with open_pair(base, pruned) as pair:
        assert own(pair) == []
        for name, tensor in load_file(pruned / "model.safetensors").items():
            assert torch.equal(pair.load("pruned").model.state_dict()[name], tensor)


def test_files_that_name_tensors_otherwise_are_left_to_transformers(write, open_pair, reporter):
    base, pruned = write(LLAMA, attn=(1,))
    tensors = load_file(pruned / "model.safetensors")
    write_tensors(pruned, {name.replace("model.norm", "model.last_norm"): t for name, t in tensors.items()})
    with open_pair(base, pruned) as pair:
        pair.load("base")
        assert pair.load("pruned").model.model.norm.weight.shape == tensors["model.norm.weight"].shape
    assert any("the pruned model shares nothing with the base" in note for note in reporter.notes)


def test_two_models_need_the_memory_of_the_base_and_of_what_it_does_not_have(write, open_pair):
    base, pruned = write(LLAMA, attn=(1,))
    whole = (base / "model.safetensors").stat().st_size
    assert open_pair(base, pruned).needed == whole
    assert open_pair(base, pruned, "bfloat16").needed == whole // 2
    tensors = load_file(pruned / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    write_tensors(pruned, tensors | {name: tensors[name][:-1].contiguous()})
    assert whole < open_pair(base, pruned).needed < whole + 2 * tensors[name].numel() * 4


def test_the_base_is_let_go_before_the_other_model_is_loaded_where_both_do_not_fit(write, open_pair, monkeypatch):
    base, pruned = write(LLAMA, attn=(1,))
    pair = open_pair(base, pruned)
    monkeypatch.setattr(models, "free_bytes", lambda device: pair.needed)
    assert not pair.fits
    gone = weakref.ref(pair.load("base").model)
    alive = []
    original = models.load_model

    def load(*arguments, **options):
        gc.collect()
        alive.append(gone() is not None)
        return original(*arguments, **options)

    monkeypatch.setattr(models, "load_model", load)
    assert pair.load("pruned").model is pair.load("pruned").model
    assert alive == [False]


def test_a_base_that_went_to_disk_after_all_lends_no_tensors(write, open_pair, monkeypatch):
    with open_pair(*write(LLAMA, attn=(1,))) as pair, torch.no_grad():
        assert pair.fits
        monkeypatch.setattr(models, "_own_memory", lambda: 2 * 10**5)  # somebody else took the rest meanwhile
        offloaded = pair.load("base"), pair.load("pruned")
        assert all(map(models.is_on_disk, (loaded.model for loaded in offloaded)))
        assert offloaded[1].model(IDS).logits.isfinite().all()


def test_nothing_is_loaded_for_stages_that_ask_for_no_model(tmp_path, open_pair):
    with open_pair(tmp_path / "nowhere", tmp_path / "nowhere else"):
        pass


def test_models_are_let_go_at_the_end(write, open_pair):
    with open_pair(*write(LLAMA, attn=(1,))) as pair:
        gone = [weakref.ref(pair.load(name).model) for name in ("base", "pruned")]
    gc.collect()
    assert [reference() for reference in gone] == [None, None]
