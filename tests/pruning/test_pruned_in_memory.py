"""A base with bypassed sublayers computes what the reloaded checkpoint computes, and is itself again afterwards."""

from __future__ import annotations

import pytest
import torch
from bases import FAMILIES, LLAMA, MISTRAL, family_tensors, plan, random_tensors, write_base
from transformers import AutoModelForCausalLM

from hubprune.core.architectures import architecture_of
from hubprune.core.bypass import bypassed
from hubprune.pruning.checkpoint import write_checkpoint
from hubprune.pruning.layouts import make_runnable

CONFIGS = {"llama": LLAMA, "mistral": MISTRAL, **FAMILIES}
TEXT = torch.arange(24).remainder(11).add(40)[None]
PLANS = {
    "attention of two layers": {"attn": (0, 3)},
    "an MLP": {"mlp": (2,)},
    "a whole layer and a sublayer": {"attn": (1, 2), "mlp": (1, 0)},
}


def load(folder, **options):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()


def outputs(model):
    """Logits of a text, and a greedy text written with the KV cache."""
    with torch.inference_mode():
        written = model.generate(
            TEXT, attention_mask=torch.ones_like(TEXT), max_new_tokens=12, min_new_tokens=12, do_sample=False
        )
        return model(TEXT).logits, written


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("drops", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("family", CONFIGS)
def test_a_bypassed_base_computes_bit_for_bit_what_the_reloaded_checkpoint_computes(family, drops, tmp_path):
    config = CONFIGS[family]
    tensors = random_tensors(config) if family in ("llama", "mistral") else family_tensors(config)
    base = write_base(tmp_path / "base", config, tensors)
    made = plan(config["num_hidden_layers"], **drops)
    (tmp_path / "pruned").mkdir()
    write_checkpoint(base, made, tmp_path / "pruned", advance=lambda _: None)
    written = outputs(load(tmp_path / "pruned", trust_remote_code=made.layout != "stock"))
    model = load(tmp_path / "base")
    before = outputs(model)
    with bypassed(model, made, architecture_of(config)):
        assert same(outputs(model), written)
    assert same(outputs(model), before)
    assert not torch.equal(before[0], written[0])


def test_a_base_that_was_pruned_before_is_bypassed_as_well(llama, tmp_path):
    from hubprune.core.artifacts import BaseCheckpoint, DroppedSublayer, DropPlan
    from hubprune.core.config import read_config

    for name, layers in (("once", {"attn": (1,)}), ("twice", {"attn": (1, 3)})):
        (tmp_path / name).mkdir()
        write_checkpoint(llama, plan(5, **layers), tmp_path / name, advance=lambda _: None)
    config = read_config(tmp_path / "once")
    once = BaseCheckpoint(name="once", commit=None, folder=str(tmp_path / "once"), config=config, files=())
    runnable = make_runnable(once, tmp_path / "runnable")
    model = load(runnable.folder, trust_remote_code=True)
    again = DropPlan(
        selected_by="hand",
        num_hidden_layers=5,
        dropped=(DroppedSublayer(kind="attn", layer=3),),
        absent=(("attn", 1),),
    )
    with bypassed(model, again, architecture_of(config)):
        assert same(outputs(model), outputs(load(tmp_path / "twice", trust_remote_code=True)))
    assert same(outputs(model), outputs(load(tmp_path / "once", trust_remote_code=True)))


def interrupt(model, made):
    with bypassed(model, made, architecture_of(LLAMA)):
        assert type(model.model.layers[0]).__name__ == "NoLayer"
        raise KeyboardInterrupt


def test_an_error_inside_puts_the_base_back(llama):
    model = load(llama.folder)
    names = [type(module).__name__ for module in model.modules()]
    with pytest.raises(KeyboardInterrupt):
        interrupt(model, plan(5, attn=(0,), mlp=(0, 2)))
    assert [type(module).__name__ for module in model.modules()] == names
    assert [layer.self_attn.layer_idx for layer in model.model.layers] == list(range(5))
